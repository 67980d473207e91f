"""token-layouts: does training find one step of gradient descent however the examples are made into tokens?

Interleaved tokens with vector targets, with scalar ones and with d_x != d_y, constructed tokens (arXiv 2410.11687, v1), and
concatenated ones (von Oswald et al., 2212.07677), each read by the recurrent layer that it was made for, from random weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .. import learners
from ..analysis import wilson_interval
from ..baselines import LastOutput, LinearAttention, parameter_count
from ..blocks import Block, Dots, Lines, Row, Series, Table, Text, as_records
from ..layers import GDSSM
from ..models import InContextModel
from ..settings import ModelConfig, TrainConfig
from ..tasks import LinearRegression
from ..tokens import LAYOUTS
from ..train import build_model
from ..weights import DecayParameter
from . import Outcome, Sizes
from .claims import Claim
from .jobs import Job
from .trainings import held_out, measured, optimum, train_seeds

TITLE = "Token layouts"
QUESTION = "Does training find one step of gradient descent in each layout of the tokens?"
SUCCESS = (1.01, 0.999)  # largest loss ratio, smallest cosine
RATE = 0.8  # of the seeds


class GatedRecurrence(nn.Module):
    """A diagonal linear recurrence with an output gate, both learned: tokens (B, T, D) -> (B, d_y).

        z_t = lambda * z_{t-1} + s_t        y = sum_ij G[., i, j] z_i s_j at the last token

    For constructed tokens [x_k y_k, x_{k+1}] one step of gradient descent is lambda = 1 and G = (eta / N) I from the first half
    of z to the second half of s. There is no input gate: the products of targets and inputs are in the tokens.
    """

    def __init__(self, d_model: int, d_y: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(d_y, d_model, d_model).normal_(0, 1 / d_model, generator=generator))
        self.decay = DecayParameter("row", 1, d_model)
        self.decay.reset_parameters(generator)

    def forward(self, tokens: Tensor) -> Tensor:
        log = self.decay.log()
        assert log is not None
        age = torch.arange(tokens.shape[1] - 1, -1, -1, dtype=tokens.dtype, device=tokens.device)
        z = torch.einsum("ti,bti->bi", (age[:, None] * log).exp(), tokens)
        return torch.einsum("yij,bi,bj->by", self.gate, z, tokens[:, -1])


def _interleaved(task: LinearRegression, seed: int) -> nn.Module:
    return build_model(ModelConfig(), task, seed)


def _constructed(task: LinearRegression, seed: int) -> nn.Module:
    return GatedRecurrence(2 * task.d_x, task.d_y, generator=torch.Generator().manual_seed(seed))


def _window_of_one(task: LinearRegression, seed: int) -> nn.Module:
    layer = GDSSM(task.d_x + task.d_y, window=1, stride=1, decay="head")
    layer.reset_parameters(torch.Generator().manual_seed(seed))
    return InContextModel(layer, task.d_x, task.d_y)


def _attention(task: LinearRegression, seed: int) -> nn.Module:
    layer = LinearAttention(task.d_x + task.d_y, d_out=task.d_y)
    layer.reset_parameters(torch.Generator().manual_seed(seed))
    return LastOutput(layer, task.d_y)


@dataclass(frozen=True)
class Entry:
    """A layout with sizes of input and target (d stands for Preset.d, narrow for Preset.narrow) and the layer that reads it.

    slower  times by which its peak rates are lower and its batches larger. Layers with a weight for every pair of features follow
            the noise of the batches more: at (1, 1) the two ended at cosines of 0.993 (gate) and 0.998 (attention).
    """

    title: str
    layout: str
    make: Callable[[LinearRegression, int], nn.Module]
    layer: str
    d_x: str = "d"
    d_y: str = "d"
    slower: tuple[int, int] = (1, 1)


ENTRIES = {
    "vector": Entry("interleaved, d_x = d_y", "interleaved", _interleaved, "GDSSM, window 3, stride 2"),
    "scalar": Entry("interleaved, scalar targets", "interleaved", _interleaved, "GDSSM, window 3, stride 2", d_y="one"),
    "narrow-targets": Entry("interleaved, d_x > d_y", "interleaved", _interleaved, "GDSSM, window 3, stride 2", d_y="narrow"),
    "narrow-inputs": Entry("interleaved, d_x < d_y", "interleaved", _interleaved, "GDSSM, window 3, stride 2", d_x="narrow"),
    "constructed": Entry(
        "constructed, scalar targets", "constructed", _constructed, "diagonal recurrence, output gate", d_y="one", slower=(10, 4)
    ),
    "concatenated": Entry("concatenated, recurrent layer", "concatenated", _window_of_one, "GDSSM, window 1, stride 1"),
    "attention": Entry("concatenated, linear attention", "concatenated", _attention, "linear attention", slower=(1, 4)),
}


@dataclass(frozen=True)
class Preset(Sizes):
    """Sizes: training, its grid of peak rates, evaluation tasks; d features, and narrow ones where inputs and targets differ."""

    seeds: tuple[int, ...] = tuple(range(10))
    d: int = 10
    narrow: int = 4
    n_examples: int = 10
    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1800, batch=64))
    rates: tuple[float, ...] = (0.02,)
    eval_tasks: int = 2_000

    def task(self, entry: Entry) -> LinearRegression:
        """The tasks of an entry."""
        sizes = {"d": self.d, "narrow": self.narrow, "one": 1}
        return LinearRegression(sizes[entry.d_x], sizes[entry.d_y], self.n_examples)


PRESETS = {
    "quick": Preset(),
    "paper": Preset(
        seeds=tuple(range(20)),
        training=TrainConfig(steps=6000, batch=256),
        rates=(0.005, 0.01, 0.02),
        eval_tasks=10_000,
    ),
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """The training of every entry."""
    return {name: Job(trained, (sizes, name)) for name in ENTRIES}


def trained(sizes: Preset, name: str) -> dict[str, Any]:
    """All seeds of one entry beside the explicit step, at the end and along the training."""
    entry = ENTRIES[name]
    task = sizes.task(entry)
    rate_divisor, batches = entry.slower
    rates = tuple(rate / rate_divisor for rate in sizes.rates)
    config = replace(sizes.training, task=task, data_seed=sizes.seeds[0], batch=batches * sizes.training.batch)
    found = train_seeds(lambda seed: entry.make(task, seed), sizes.seeds, rates, config, layout=LAYOUTS[entry.layout], label=name)
    rate, computed = optimum(task)
    gd = learners.predictor(learners.gradient_descent, lr=rate)
    return {
        "rate": found.rate,
        "parameters": parameter_count(entry.make(task, 0)),
        "computed": computed,
        "copies": measured(found.predictors, gd, held_out(task, sizes.eval_tasks)),
        "steps": found.steps,
        "curves": found.curves,
    }


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Of every entry the median seed's loss ratio and cosine, and the share of seeds that became the step."""
    claims = []
    for name in ENTRIES:
        copies, title = results[name]["copies"], name.replace("-", "_")
        claims += [
            Claim(f"{title}_loss_ratio", "replication", 1.0, median(_all(copies, "loss_ratio", float("inf"))), "<=", SUCCESS[0]),
            Claim(
                f"{title}_sensitivity_cosine", "replication", 1.0, median(_all(copies, "sensitivity_cosine", 0.0)), ">=", SUCCESS[1]
            ),
            Claim(f"{title}_success_rate", "replication", 1.0, _successes(copies) / len(copies), ">=", RATE),
        ]
    training = sizes.training
    blocks: list[Block] = [_answer(sizes, results), _curves(results), *_dots(results), _table(sizes, results)]
    record = {
        "experiment": "token-layouts",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "inputs": "x uniform on (-1/2, 1/2), W standard normal, no noise",
            "examples N": sizes.n_examples,
            "features d": sizes.d,
            "features where inputs and targets differ": f"{sizes.d} and {sizes.narrow}",
            "optimiser": f"Adam, warm-up {training.warmup}, cosine to 0",
            "peak rates tried": f"{', '.join(f'{rate:g}' for rate in sizes.rates)}; "
            f"constructed, divided by {ENTRIES['constructed'].slower[0]}",
            "updates": training.steps,
            "tasks per update": f"{training.batch}; constructed and attention, times {ENTRIES['constructed'].slower[1]}",
            "evaluation tasks": sizes.eval_tasks,
        },
        "blocks": as_records(blocks),
    }
    return Outcome(tuple(claims), record, sizes.seeds)


def _all(copies: list[dict[str, float] | None], key: str, missing: float) -> list[float]:
    """A number of every seed, with `missing` for those that diverged."""
    return [missing if copy is None else copy[key] for copy in copies]


def _successes(copies: list[dict[str, float] | None]) -> int:
    return sum(c is not None and c["loss_ratio"] <= SUCCESS[0] and c["sensitivity_cosine"] >= SUCCESS[1] for c in copies)


def _answer(sizes: Preset, results: Mapping[str, Mapping[str, Any]]) -> Text:
    seeds = len(sizes.seeds)
    counts = {name: _successes(results[name]["copies"]) for name in ENTRIES}
    whole = [name for name in ENTRIES if counts[name] == seeds]
    rest = [f"{ENTRIES[name].title} {counts[name]} of {seeds}" for name in ENTRIES if name not in whole]
    found = f"In {len(whole)} of {len(ENTRIES)} all {seeds} seeds do." + (f" The others: {'; '.join(rest)}." if rest else "")
    slow = {name: _plateau(results[name]) for name in ENTRIES}
    reached = {steps: name for name, steps in slow.items() if steps is not None}
    ends = (
        " The median seed is first seen within 5 % of the step's expected loss after "
        f"{min(reached)} updates at the earliest ({ENTRIES[reached[min(reached)]].title}) and {max(reached)} at the latest "
        f"({ENTRIES[reached[max(reached)]].title})."
        if reached
        else ""
    )
    return Text(
        "What the numbers answer",
        (
            f"A seed has become the step where its loss is at most {SUCCESS[0]:g} times the step's and the cosine of the "
            f"sensitivities at least {SUCCESS[1]:g}. {found}{ends}",
            "The layouts differ in what is left to learn. Interleaved tokens leave all of it: which of three neighbours to "
            "multiply, and which to read out with. Concatenated tokens bring input and target together, so that a window of one is "
            "enough. Constructed tokens hold the products of both; a linear recurrence sums them, and one gate is left to learn.",
        ),
    )


def _plateau(result: Mapping[str, Any]) -> int | None:
    """The first evaluated step at which the median seed's loss is within 5 % of the expected one of the step."""
    for i, step in enumerate(result["steps"]):
        losses = [float("inf") if curve[i] is None else curve[i] for curve in result["curves"]]
        if median(losses) <= 1.05 * result["computed"]:
            return int(step)
    return None


def _curves(results: Mapping[str, Mapping[str, Any]]) -> Lines:
    series = []
    for name, entry in ENTRIES.items():
        found = results[name]
        points = []
        for i, step in enumerate(found["steps"]):
            losses = [curve[i] / found["computed"] for curve in found["curves"] if curve[i] is not None]
            if losses:
                points.append((float(step), median(losses), min(losses), max(losses)))
        if points:
            x, y, low, high = zip(*points, strict=True)
            series.append(Series(entry.title, x, y, low, high))
    series.append(Series("one step, computed", (0.0,), (1.0,), reference=True))
    caption = (
        "Loss on validation tasks over the expected loss of the step; lines are medians of the seeds at the best peak rate, "
        "bands go from the lowest to the highest. Sampling alone moves a point by a few per cent."
    )
    return Lines("Training", "updates", "loss over the expected loss of one step", tuple(series), caption, y_log=True)


def _dots(results: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    def rows(key: str) -> tuple[Row, ...]:
        return tuple(
            Row(entry.title, tuple(None if copy is None else copy[key] for copy in results[name]["copies"]), entry.layout)
            for name, entry in ENTRIES.items()
        )

    caption = "Every dot is a seed, the mark is the median; the line is the smallest or largest value that counts as the step."
    return [
        Dots(
            "Loss",
            "loss over that of one step of gradient descent",
            rows("loss_ratio"),
            caption,
            reference=SUCCESS[0],
            reference_label="largest that counts",
        ),
        Dots(
            "Sensitivity",
            "cosine with the sensitivity of one step",
            rows("sensitivity_cosine"),
            caption,
            reference=SUCCESS[1],
            reference_label="smallest that counts",
        ),
    ]


def _table(sizes: Preset, results: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, entry in ENTRIES.items():
        found, task = results[name], sizes.task(entry)
        copies = [copy for copy in found["copies"] if copy is not None]
        ratios, cosines = [c["loss_ratio"] for c in copies], [c["sensitivity_cosine"] for c in copies]
        spread = (median(ratios), max(ratios), median(cosines), min(cosines)) if copies else (None,) * 4
        low, high = wilson_interval(_successes(found["copies"]), len(found["copies"]))
        success = f"{_successes(found['copies'])} of {len(found['copies'])} ({low:.2f} to {high:.2f})"
        rows.append((entry.title, entry.layer, task.d_x, task.d_y, found["parameters"], found["rate"], *spread, success))
    heads = (
        *("layout", "read by", "d_x", "d_y", "parameters", "peak rate", "loss ratio, median", "highest"),
        *("cosine, median", "lowest", "became the step"),
    )
    note = "Loss ratio: over the loss of one step on the same tasks. Became the step: seeds, with the 95 % interval (Wilson)."
    return Table("Every layout", heads, tuple(rows), note)
