"""length-shift: which form of the rate stays right when the context is longer or shorter than in training?

The best rate of one step on the sum over n examples is c*(n) = 1 / (s (n + n0)), n0 = d - 2 + m4 / s^2, for inputs of variance s
and fourth moment m4. A layer can hold a rate in three forms: for the sum, c; for the mean, eta / n; with a learned offset,
eta / (n + n0). Each is trained on one length or on several, and tested from short contexts to long ones. Lambda is 1 throughout,
so that the rate is all there is to learn about length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .. import learners, theory
from ..analysis import squared_loss
from ..blocks import Block, Dots, Lines, Row, Series, Table, Text, as_records
from ..layers import GDSSM
from ..models import InContextModel
from ..settings import TrainConfig
from ..tasks import LinearRegression, MixedLengths
from . import Outcome, Sizes
from .claims import Claim
from .jobs import Job
from .trainings import expected_loss, held_out, moments, optimum, target_of, train_seeds

TITLE = "Longer and shorter contexts than in training"
QUESTION = "Which form of the learning rate stays right at lengths that were not trained?"
FORMS = {"sum": "c", "mean": "eta / n", "offset": "eta / (n + n0)"}
# Clipping would weigh the longest contexts, whose gradients are the largest, less than the mean of losses does.
UNCLIPPED = 1e6
VARIANTS = (("sum", "one"), ("mean", "one"), ("sum", "mixed"), ("mean", "mixed"), ("offset", "mixed"))


@dataclass(frozen=True)
class Preset(Sizes):
    """Sizes: training, the lengths of mixed training, the lengths tested and the tasks at each."""

    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=2000, batch=128, clip=UNCLIPPED))
    rates: tuple[float, ...] = (0.02, 0.06)
    lengths: tuple[int, ...] = (5, 10, 20, 50, 100)
    tested: tuple[int, ...] = (5, 7, 10, 14, 20, 35, 50, 100, 200, 500)
    eval_tasks: int = 2_000


PRESETS = {
    "quick": Preset(),
    "paper": Preset(seeds=tuple(range(10)), training=TrainConfig(steps=6000, batch=256, clip=UNCLIPPED), eval_tasks=10_000),
}


class MeanRate(nn.Module):
    """A layer whose prediction is divided by the number of examples: tokens (B, 2n + 1, D) -> (B, d_y)."""

    def __init__(self, model: InContextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens) / (tokens.shape[1] // 2)

    def last_stacked(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """S copies at once, as InContextModel's."""
        inner = {name.removeprefix("model."): value for name, value in parameters.items()}
        return self.model.last_stacked(inner, tokens) / (tokens.shape[1] // 2)


def build(form: str, task: LinearRegression, seed: int) -> nn.Module:
    """A layer with Lambda = 1 and random weights whose rate has one of the FORMS."""
    layer = GDSSM(max(task.d_x, task.d_y), decay="none", normalize=form == "offset")
    layer.reset_parameters(torch.Generator().manual_seed(seed))
    model = InContextModel(layer, task.d_x, task.d_y)
    return MeanRate(model) if form == "mean" else model


def jobs(sizes: Preset) -> dict[str, Job]:
    """The training of every form on one length or on several."""
    return {f"{form}-{lengths}": Job(trained, (sizes, form, lengths)) for form, lengths in VARIANTS}


def trained(sizes: Preset, form: str, lengths: str) -> dict[str, Any]:
    """Loss of all seeds over that of the best step of each length, on the same tasks; learned offsets."""
    task = sizes.training.task
    law = MixedLengths(task.d_x, task.d_y, lengths=sizes.lengths) if lengths == "mixed" else task
    config = replace(sizes.training, task=law, data_seed=sizes.seeds[0])
    found = train_seeds(lambda seed: build(form, task, seed), sizes.seeds, sizes.rates, config, label=f"{form}, {lengths}")
    ratios: list[list[float | None]] = []  # [length][seed]
    for length in sizes.tested:
        one = replace(task, n_examples=length)
        context = held_out(one, sizes.eval_tasks)
        target = target_of(context)
        best = learners.gradient_descent(context.x, context.y, context.x_query, lr=optimum(one)[0])
        reference = squared_loss(best, target)
        with torch.no_grad():
            ratios.append([None if p is None else squared_loss(p(context), target) / reference for p in found.predictors])
    return {"rate": found.rate, "ratios": ratios, "offsets": [_offset(module) for module in found.modules]}


def _offset(module: nn.Module | None) -> float | None:
    layer = module.layer if isinstance(module, InContextModel) else None
    return layer.count_offset.item() if isinstance(layer, GDSSM) and layer.count_offset is not None else None


def best_offset(task: LinearRegression) -> float:
    """n0 = d - 2 + m4 / s^2: with it the rate 1 / (s (n + n0)) is the best for the sum at every n."""
    return task.d_x - 2 + task.input_fourth_moment / task.input_variance**2


def computed(task: LinearRegression, form: str, trained_on: Sequence[int], tested: Sequence[int]) -> list[float]:
    """Expected loss over that of the best step at every tested length, with the one number that is best for the lengths
    trained on: c of the sum or eta of the mean at which the mean of the lengths' expected losses is lowest; 1 for offset.
    """
    if form == "offset":
        return [1.0] * len(tested)
    value = _best_number(task, form, trained_on)
    found = []
    for length in tested:
        one = replace(task, n_examples=length)
        rate = value * length if form == "sum" else value
        found.append(expected_loss(one, rate) / optimum(one)[1])
    return found


def _best_number(task: LinearRegression, form: str, lengths: Sequence[int]) -> float:
    """c or eta: the lengths' losses are parabolas in it, so it follows from their values at -1, 0 and 1."""
    slope = curvature = 0.0
    for length in lengths:
        scale = length if form == "sum" else 1
        below, at, above = (theory.one_step_loss(length, task.d_x, number * scale, **moments(task)) for number in (-1.0, 0.0, 1.0))
        slope, curvature = slope + (above - below) / 2, curvature + above - 2 * at + below
    return -slope / curvature


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Whether sums and means follow their computed curves, whether the offset is found, and the curves."""
    task = sizes.training.task
    curves = {
        (form, lengths): computed(task, form, sizes.lengths if lengths == "mixed" else (task.n_examples,), sizes.tested)
        for form, lengths in VARIANTS
    }
    claims = []
    for form in ("sum", "mean"):
        off = max(_off_curve(results[f"{form}-{lengths}"], curves[form, lengths]) for lengths in ("one", "mixed"))
        claims.append(Claim(f"{form}_off_computed_curve", "hypothesis", 0.0, off, "<=", 0.05))
    for length in (50, 500):
        if length in sizes.tested:
            i = sizes.tested.index(length)
            predicted = curves["mean", "one"][i]
            claims.append(
                Claim(
                    f"fixed_eta_over_optimum_at_{length}",
                    "hypothesis",
                    predicted,
                    _middle(results["mean-one"]["ratios"][i]),
                    "between",
                    (0.95 * predicted, 1.05 * predicted),
                )
            )
    offset, wanted = results["offset-mixed"], best_offset(task)
    claims.append(Claim("offset_over_optimum", "hypothesis", 1.0, max(max(_known(row)) for row in offset["ratios"]), "<=", 1.01))
    furthest = max(_known(offset["offsets"]), key=lambda value: abs(value - wanted))
    claims.append(Claim("learned_offset", "hypothesis", wanted, furthest, "between", (0.95 * wanted, 1.05 * wanted)))
    blocks: list[Block] = [
        _answer(sizes, results, curves),
        _figure(sizes, results, curves, "one", f"Trained at N = {task.n_examples}"),
        _figure(sizes, results, curves, "mixed", f"Trained at N = {', '.join(map(str, sizes.lengths))}"),
        _offsets(offset, wanted),
        _table(sizes, results, curves),
    ]
    return Outcome(tuple(claims), _record(sizes, results, blocks), sizes.seeds)


def _record(sizes: Preset, results: Mapping[str, Mapping[str, Any]], blocks: Sequence[Block]) -> dict[str, Any]:
    training, task = sizes.training, sizes.training.task
    return {
        "experiment": "length-shift",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "inputs": "x uniform on (-1/2, 1/2), W standard normal, no noise",
            "input features d_x": task.d_x,
            "target features d_y": task.d_y,
            "examples N, one length": task.n_examples,
            "examples N, mixed": ", ".join(map(str, sizes.lengths)),
            "decay": "none, Lambda = 1",
            "optimiser": f"Adam, warm-up {training.warmup}, cosine to 0",
            "peak rates, best of the grid": ", ".join(f"{name} {found['rate']:g}" for name, found in results.items()),
            "updates": training.steps,
            "tasks per update": training.batch,
            "evaluation tasks of each length": sizes.eval_tasks,
        },
        "blocks": as_records(blocks),
    }


def _known(values: Sequence[float | None]) -> list[float]:
    """Infinity for a seed that diverged."""
    return [float("inf") if value is None else value for value in values]


def _middle(values: Sequence[float | None]) -> float:
    return median(_known(values))


def _off_curve(found: Mapping[str, Any], curve: Sequence[float]) -> float:
    """The largest relative distance of a seed's ratio from the computed one."""
    return max(abs(ratio / wanted - 1) for row, wanted in zip(found["ratios"], curve, strict=True) for ratio in _known(row))


def _answer(sizes: Preset, results: Mapping[str, Any], curves: Mapping[tuple[str, str], Sequence[float]]) -> Text:
    task, last = sizes.training.task, len(sizes.tested) - 1

    def at_end(form: str, lengths: str) -> str:
        return f"{_middle(results[f'{form}-{lengths}']['ratios'][last]):.4g} (computed {curves[form, lengths][last]:.4g})"

    offset = results["offset-mixed"]
    worst = max(max(_known(row)) for row in offset["ratios"])
    found, wanted = _known(offset["offsets"]), best_offset(task)
    off = {f: max(_off_curve(results[f"{f}-{which}"], curves[f, which]) for which in ("one", "mixed")) for f in ("sum", "mean")}
    return Text(
        "What the numbers answer",
        (
            f"With one number for the rate, other lengths {'cost' if max(off.values()) <= 0.05 else 'do not all cost'} what is "
            f"computed. At N = {sizes.tested[last]}, in "
            f"multiples of the loss of the best step there, medians over seeds: a rate of the sum trained at N = {task.n_examples} "
            f"{at_end('sum', 'one')}, a rate of the mean {at_end('mean', 'one')}; trained on mixed lengths "
            f"{at_end('sum', 'mixed')} and {at_end('mean', 'mixed')}. Over all lengths and seeds, measured ratios are at most "
            f"{100 * off['sum']:.2g} % (sum) and {100 * off['mean']:.2g} % (mean) from the computed ones.",
            f"With a learned offset, trained on mixed lengths, the worst ratio at any tested length and seed is {worst:.4f}. "
            f"The offsets learned are {min(found):.4g} to {max(found):.4g}; the computed one is d - 2 + m4 / s^2 = {wanted:.4g}.",
            "The mean is the exact gradient step of one rate eta at every length, which is not the best step at every length: the "
            "best eta grows with n, as n / (s (n + n0)). The offset is the one number more that this takes.",
        ),
    )


def _figure(
    sizes: Preset, results: Mapping[str, Any], curves: Mapping[tuple[str, str], Sequence[float]], lengths: str, title: str
) -> Lines:
    series: list[Series] = []
    x = tuple(float(length) for length in sizes.tested)
    for form in FORMS:
        if (form, lengths) not in curves:
            continue
        rows = [[ratio for ratio in row if ratio is not None] or [1.0] for row in results[f"{form}-{lengths}"]["ratios"]]
        ends = tuple(min(row) for row in rows), tuple(max(row) for row in rows)
        series.append(Series(f"rate {FORMS[form]}", x, tuple(median(row) for row in rows), *ends))
        series.append(Series(f"computed, {FORMS[form]}", x, tuple(curves[form, lengths]), reference=True))
    caption = (
        "Loss over that of one step at the best rate of each length, on the same tasks. Lines are medians of "
        f"{len(sizes.seeds)} seeds, bands go from the lowest to the highest, dashed lines are computed."
    )
    return Lines(title, "examples in the context", "loss over the best step's", tuple(series), caption, x_log=True, y_log=True)


def _offsets(found: Mapping[str, Any], wanted: float) -> Dots:
    return Dots(
        "The offset that is learned",
        "n0",
        (Row("trained on mixed lengths", tuple(found["offsets"])),),
        "Every dot is a seed, the mark is the median. Offsets start at 0.",
        reference=wanted,
        reference_label="d - 2 + m4 / s^2",
    )


def _table(sizes: Preset, results: Mapping[str, Any], curves: Mapping[tuple[str, str], Sequence[float]]) -> Table:
    rows = []
    for form, lengths in VARIANTS:
        for i, length in enumerate(sizes.tested):
            known = [ratio for ratio in results[f"{form}-{lengths}"]["ratios"][i] if ratio is not None]
            on = "mixed" if lengths == "mixed" else str(sizes.training.task.n_examples)
            spread = (median(known), min(known), max(known)) if known else (None, None, None)
            rows.append((FORMS[form], on, length, curves[form, lengths][i], *spread))
    heads = ("rate", "trained at N", "tested at N", "ratio, computed", "ratio, median", "lowest", "highest")
    return Table("Every length", heads, tuple(rows), "Ratio: loss over that of one step at the best rate of that length.")
