"""learning-dynamics: in what order and how fast does training learn the directions of unequal variance?

A layer with key_map whose gates are one step's (w_q = e1 e2^T, d = e3) is trained by plain gradient descent on C and P, from
small weights near a multiple of 1, on inputs whose variances fall as a power of their index. Its prediction is C A P x_query
with A = sum y x^T. With C = c I and P = diag(p) the expected loss per output is

    L = 0.5 sum_i s_i (1 - 2 N s_i g_i + e_i g_i^2)      g_i = c p_i,   e_i as in theory.preconditioned_step

and gradient descent on it is a recursion of d + 1 numbers:

    p_i <- p_i - h c D_i      c <- c - (h / d_y) sum_i p_i D_i      D_i = s_i (e_i g_i - N s_i)

While the weights are small, they grow by 1 + h k in a step, k = N sqrt(sum_i s_i^4 / d_y): a plateau whose length grows with the
logarithm of the initial scale. Then mode i approaches its end at the rate c^2 s_i e_i, large variances first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch

from .. import theory
from ..blocks import Dots, Lines, Row, Series, Table, Text, as_records
from ..ensemble import Ensemble
from ..layers import GDSSM
from ..models import InContextModel
from ..progress import track
from ..tasks import LinearRegression
from ..tokens import interleave
from ..train import limited_threads, summed_loss
from ..views import HELD_OUT_SEED
from . import Outcome, Sizes
from .claims import Claim
from .grid import EVALUATION_STEP, losses
from .jobs import Job
from .trainings import target_of

TITLE = "Learning dynamics"
QUESTION = "In what order, and how fast, does training learn directions of unequal variance?"
NOISE = 0.1  # of the initial weights, relative to their scale
TRAINED = ("layer.c", "layer.key_map")


@dataclass(frozen=True)
class Preset(Sizes):
    """Sizes: d, N, the power of the spectrum, initial scales, rate h and steps of gradient descent, tasks."""

    features: int = 6
    examples: int = 20
    power: float = 1.0
    scales: tuple[float, ...] = (0.03, 0.01, 0.003, 0.001)
    rate: float = 0.005
    steps: int = 1500
    batch: int = 128
    every: int = 5
    curve_points: int = 30
    eval_tasks: int = 1_000

    @property
    def task(self) -> LinearRegression:
        """Gaussian inputs of variances 1, 2^-power, 3^-power, .."""
        spectrum = tuple(k**-self.power for k in range(1, self.features + 1))
        d = self.features
        return LinearRegression(d, d, self.examples, inputs="gaussian", input_range=math.sqrt(12), spectrum=spectrum)


PRESETS = {
    "quick": Preset(),
    "paper": Preset(
        seeds=tuple(range(10)),
        features=10,
        examples=40,
        rate=0.001,
        steps=8_000,
        batch=256,
        every=10,
        curve_points=60,
        eval_tasks=10_000,
    ),
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """One job: all scales and seeds are one program."""
    return {"training": Job(trained, (sizes,))}


def _moments(task: LinearRegression) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """s_i and e_i; the latter from the best rates, p_i = N s_i / e_i."""
    s = task.input_variance * np.array(task.spectrum)
    m = task.input_fourth_moment * np.array(task.spectrum) ** 2
    best, _ = theory.preconditioned_step(task.n_examples, variances=s, fourth_moments=m)
    return s, task.n_examples * s / np.array(best)


def predicted(sizes: Preset, scale: float) -> dict[str, Any]:
    """The recursion from C = P = scale I: modes g_i over their ends at every `every`th step, and losses at those steps."""
    task, h = sizes.task, sizes.rate
    n, d_y = task.n_examples, task.d_y
    s, e = _moments(task)
    end = n * s / e
    p, c = np.full(len(s), scale), scale
    steps, modes, curve = [], [], []
    for step in range(sizes.steps + 1):
        g = c * p
        if step % sizes.every == 0:
            steps.append(step)
            modes.append((g / end).tolist())
            curve.append(float(0.5 * (s * (1 - 2 * n * s * g + e * g**2)).sum()))
        slope = s * (e * g - n * s)
        p, c = p - h * c * slope, c - h / d_y * float(p @ slope)
    return {"steps": steps, "modes": modes, "losses": curve}


def growth(sizes: Preset) -> float:
    """k, the rate at which small weights grow."""
    s, _ = _moments(sizes.task)
    return float(sizes.task.n_examples * np.sqrt((s**4).sum() / sizes.task.d_y))


def initial(sizes: Preset, scale: float, seed: int) -> InContextModel:
    """The gates of one step, and C and P near scale times 1."""
    d = sizes.features
    layer = GDSSM(d, decay="none", key_map=True)
    generator = torch.Generator().manual_seed(seed)
    w_q = torch.zeros(3, 3)
    w_q[0, 1] = 1
    c, p = (scale * (torch.eye(d) + NOISE * torch.randn(d, d, generator=generator)) for _ in range(2))
    layer.load_arrays(w_q=w_q, d=[0, 0, 1], c=c)
    assert layer.key_map is not None
    with torch.no_grad():
        layer.key_map.copy_(p[None])
    return InContextModel(layer, d, d)


def trained(sizes: Preset) -> dict[str, Any]:
    """Gradient descent on fresh tasks, all scales and seeds at once: modes and losses [scale][seed][point]."""
    task = sizes.task
    order = [(scale, seed) for scale in sizes.scales for seed in sizes.seeds]
    ensemble = Ensemble([initial(sizes, scale, seed) for scale, seed in order])
    s, e = _moments(task)
    end = torch.tensor(task.n_examples * s / e)
    context = task.sample(sizes.eval_tasks, seed=HELD_OUT_SEED, step=EVALUATION_STEP)
    spacing = max(1, sizes.steps // sizes.curve_points)
    steps: list[int] = []
    modes: list[torch.Tensor] = []
    points: list[int] = []
    curve: list[list[float]] = []
    with limited_threads(1):
        for step in track(sizes.steps + 1, "learning dynamics"):
            if step % sizes.every == 0:
                steps.append(step)
                modes.append(_modes(ensemble) / end)
            if step % spacing == 0:
                points.append(step)
                curve.append(losses(ensemble, context))
            _descend(ensemble, sizes, step)
    by_copy = torch.stack(modes, dim=1)  # (copies, points, d)
    count = len(sizes.seeds)
    return {
        "steps": steps,
        "half_times": [
            [half_times(steps, by_copy[i].tolist()) for i in range(j * count, (j + 1) * count)] for j in range(len(sizes.scales))
        ],
        "modes": by_copy.unflatten(0, (-1, count)).median(1).values.tolist(),
        "points": points,
        "losses": [[[losses[j * count + i] for losses in curve] for i in range(count)] for j in range(len(sizes.scales))],
    }


@torch.no_grad()
def _modes(ensemble: Ensemble) -> torch.Tensor:
    """g_i = mean C_jj times P_ii of every copy, (S, d)."""
    c, p = (ensemble.parameters[name][:, 0].double() for name in TRAINED)
    return c.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) * p.diagonal(dim1=1, dim2=2)


def _descend(ensemble: Ensemble, sizes: Preset, step: int) -> None:
    """One step of plain gradient descent on C and P of every copy; the gates stay."""
    context = sizes.task.sample(sizes.batch, seed=sizes.seeds[0], step=step)
    prediction = ensemble(interleave(context.x, context.y, context.x_query))
    ensemble.differentiate(summed_loss(prediction, target_of(context)[:, 0]))
    with torch.no_grad():
        for name in TRAINED:
            columns = ensemble.columns[name]
            ensemble.flat[:, columns] -= sizes.rate * ensemble.gradient[:, columns]


def half_times(steps: Sequence[int], modes: Sequence[Sequence[float]]) -> list[float | None]:
    """When each mode first reaches half of its end, between two points by a straight line; None where it never does."""
    found: list[float | None] = []
    for one in zip(*modes, strict=True):
        j = next((j for j, value in enumerate(one) if value >= 0.5), None)
        if j is None:
            found.append(None)
        elif j == 0:
            found.append(float(steps[0]))
        else:
            share = (0.5 - one[j - 1]) / (one[j] - one[j - 1])
            found.append(steps[j - 1] + share * (steps[j] - steps[j - 1]))
    return found


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims, the answer in words, curves, half times and the table."""
    found = results["training"]
    expected = [predicted(sizes, scale) for scale in sizes.scales]
    task = sizes.task
    record = {
        "experiment": "learning-dynamics",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "inputs": f"Gaussian, variances k^-{sizes.power:g} for k = 1 .. {sizes.features}; W standard normal, no noise",
            "examples N": task.n_examples,
            "layer": "gates of one step, which stay; C and P trained from small multiples of 1",
            "deviation of the initial weights, relative": NOISE,
            "optimiser": f"plain gradient descent, rate {sizes.rate:g}, no momentum",
            "updates": sizes.steps,
            "tasks per update": sizes.batch,
            "seeds per scale": len(sizes.seeds),
            "evaluation tasks": sizes.eval_tasks,
        },
        "blocks": as_records(
            [
                _answer(sizes, found, expected),
                _loss_figure(sizes, found, expected),
                _mode_figure(sizes, found, expected),
                _ratio_figure(sizes, found, expected),
                _table(sizes, found, expected),
            ]
        ),
    }
    return Outcome(tuple(_claims(sizes, found, expected)), record, sizes.seeds)


Found = Mapping[str, Any]
Expected = Sequence[Mapping[str, Any]]


def _ratios(found: Found, expected: Expected) -> list[list[list[float]]]:
    """Half times over predicted ones, [scale][mode][seed]; infinite where one is missing."""
    ratios = []
    for copies, one in zip(found["half_times"], expected, strict=True):
        wanted = half_times(one["steps"], one["modes"])
        ratios.append(
            [[math.inf if not copy[i] or not want else copy[i] / want for copy in copies] for i, want in enumerate(wanted)]
        )
    return ratios


def _in_order(found: Found) -> float:
    """The share of copies whose modes reached half of their ends in the order of the spectrum."""
    copies = [[math.inf if time is None else time for time in copy] for scale in found["half_times"] for copy in scale]
    return sum(all(a < b for a, b in pairwise(copy)) for copy in copies) / len(copies)


def _slope(sizes: Preset, found: Found) -> float:
    """Steps that the first mode's half time grows by for every factor e in the initial scale: a least-squares line."""
    times = [median(math.inf if copy[0] is None else copy[0] for copy in copies) for copies in found["half_times"]]
    if not all(map(math.isfinite, times)) or len(times) < 2:
        return math.inf
    return float(np.polyfit([-math.log(scale) for scale in sizes.scales], times, 1)[0])


def _deviation(found: Found, expected: Expected) -> float:
    """Largest distance of the median loss from the predicted curve, over the loss before training."""
    most = 0.0
    for copies, one in zip(found["losses"], expected, strict=True):
        at = np.interp(found["points"], one["steps"], one["losses"])
        most = max(most, float(np.abs(np.median(copies, axis=0) - at).max() / one["losses"][0]))
    return most


def _claims(sizes: Preset, found: Found, expected: Expected) -> list[Claim]:
    middle = [median(seeds) for modes in _ratios(found, expected) for seeds in modes]
    slope = 1 / math.log1p(sizes.rate * growth(sizes))
    return [
        Claim("modes_in_order_of_spectrum", "hypothesis", 1.0, _in_order(found), ">=", 0.95),
        Claim("half_time_over_predicted_lowest", "hypothesis", 1.0, min(middle), "between", (0.9, 1.1)),
        Claim("half_time_over_predicted_highest", "hypothesis", 1.0, max(middle), "between", (0.9, 1.1)),
        Claim("plateau_steps_per_factor_e", "hypothesis", slope, _slope(sizes, found), "between", (0.9 * slope, 1.1 * slope)),
        Claim("loss_curve_deviation", "hypothesis", 0.0, _deviation(found, expected), "<=", 0.05),
    ]


def _answer(sizes: Preset, found: Found, expected: Expected) -> Text:
    middle = [median(seeds) for modes in _ratios(found, expected) for seeds in modes]
    slope = 1 / math.log1p(sizes.rate * growth(sizes))
    share = _in_order(found)
    shown = [f"{value:.3f}" if math.isfinite(value) else "never" for value in (min(middle), max(middle))]
    return Text(
        "What the numbers answer",
        (
            f"The modes reached half of their ends in the order of the spectrum in {share:.0%} of the "
            f"{len(sizes.scales) * len(sizes.seeds)} trainings. Half times over those of the recursion of {sizes.features + 1} "
            f"numbers, medians over the seeds: from {shown[0]} to {shown[1]} over all modes and scales.",
            f"The plateau: for every factor e in the initial scale the first mode came {_slope(sizes, found):.2f} steps later; "
            f"growth by 1 + h k in a step predicts {slope:.2f}. From the recursion to the measured loss curve the largest distance "
            f"is {_deviation(found, expected):.3f} of the loss before training.",
            "All modes leave the plateau together, pulled by the largest variances, since they share C; then each approaches its "
            "end on its own time scale, which the variance sets. This is plain gradient descent; the other experiments train with "
            "Adam, which scales every weight's step by itself, so nothing here says how the modes behave there.",
        ),
    )


def _loss_figure(sizes: Preset, found: Found, expected: Expected) -> Lines:
    series = []
    chosen = sorted({0, len(sizes.scales) // 2, len(sizes.scales) - 1})
    for j in chosen:
        copies = np.array(found["losses"][j])
        low, high = copies.min(0).tolist(), copies.max(0).tolist()
        series.append(
            Series(
                f"initial scale {sizes.scales[j]:g}", found["points"], np.median(copies, axis=0).tolist(), tuple(low), tuple(high)
            )
        )
        series.append(Series(f"predicted, {sizes.scales[j]:g}", expected[j]["steps"], expected[j]["losses"], reference=True))
    return Lines(
        "The loss over training, beside the prediction",
        "updates",
        "loss",
        tuple(series),
        "Median over the seeds on the evaluation tasks, band from the lowest to the highest; predicted: the recursion.",
    )


def _mode_figure(sizes: Preset, found: Found, expected: Expected) -> Lines:
    j = len(sizes.scales) - 1
    modes = np.array(found["modes"][j])  # (points, d)
    chosen = [0, 1, *sorted({sizes.features // 2, sizes.features - 1} - {0, 1})]
    series = [Series(f"mode {i + 1}", found["steps"], modes[:, i].tolist()) for i in chosen]
    theirs = np.array(expected[j]["modes"])
    series += [
        Series(f"predicted, mode {i + 1}", expected[j]["steps"], theirs[:, i].tolist(), reference=True)
        for i in (chosen[0], chosen[len(chosen) // 2], chosen[-1])
    ]
    return Lines(
        f"The modes over training, initial scale {sizes.scales[j]:g}",
        "updates",
        "mode over its end",
        tuple(series),
        "C_jj P_ii e_i / (N s_i), median over the seeds. 1: the best preconditioner's rate for the input. Dashed: the recursion.",
    )


def _ratio_figure(sizes: Preset, found: Found, expected: Expected) -> Dots:
    rows = [
        Row(f"mode {i + 1}", tuple(value if math.isfinite(value) else None for value in seeds), f"initial scale {scale:g}")
        for scale, modes in zip(sizes.scales, _ratios(found, expected), strict=True)
        for i, seeds in enumerate(modes)
    ]
    return Dots(
        "Half times of the modes over the predicted ones",
        "updates until half of the end, over those of the recursion",
        tuple(rows),
        "Every dot is a seed, the mark is the median.",
        reference=1.0,
        reference_label="predicted",
    )


def _table(sizes: Preset, found: Found, expected: Expected) -> Table:
    rows = []
    s, _ = _moments(sizes.task)
    for scale, copies, one in zip(sizes.scales, found["half_times"], expected, strict=True):
        for i, wanted in enumerate(half_times(one["steps"], one["modes"])):
            known = [copy[i] for copy in copies if copy[i] is not None]
            middle = median(known) if len(known) == len(copies) else None
            rows.append((scale, i + 1, float(s[i]), wanted, middle, min(known, default=None), max(known, default=None)))
    heads = ("initial scale", "mode", "variance", "half time, predicted", "measured, median", "lowest", "highest")
    return Table("Half times", heads, tuple(rows), "Updates until a mode reaches half of its end; dash: not by every seed.")
