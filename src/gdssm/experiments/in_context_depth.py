"""in-context-depth: which learner does a deep stack become when it predicts after every example, and what does each block add?

Linear regression as in Garg et al. (2208.01066): x_1, y_1, x_2, y_2, .., and at every x the model predicts y. Targets stand at
every x, so one sequence trains all context lengths; tasks grow along a curriculum. Errors are shown beside least squares.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from .. import learners
from ..analysis import IdentificationError, identify
from ..blocks import Block, Lines, Series, Table, Text, as_records
from ..deep import GDSSMForSequenceModeling
from ..recipe import Recipe
from ..sequence_train import outputs_of
from ..sequences import Curriculum, DenseRegression
from ..tasks import Context, LinearRegression
from ..tokens import as_predictor
from ..views import HELD_OUT_SEED
from . import Outcome
from .claims import Claim
from .jobs import Job
from .sequence_contenders import Shape
from .sequence_runs import Chosen, Comparison, choose, equal_parameters, jobs_of, settings_of, table, train_one
from .trainings import target_of

TITLE = "In-context regression by deep stacks"
QUESTION = "Which learner does a deep stack become when it predicts after every example, and what does each block add?"
EXCESS = 0.05  # of the error of predicting zero


@dataclass(frozen=True)
class Preset(Comparison):
    """Sizes: the task, the curriculum, held-out tasks, and those for `identify` (0: not asked) with the most steps to try."""

    contenders: tuple[str, ...] = ("gdssm", "gpt2")
    task: LinearRegression = field(default_factory=lambda: _garg(4, 12))
    curriculum: Curriculum = field(default_factory=Curriculum)
    held: int = 1000
    identify_tasks: int = 200
    identify_steps: int = 6


def _garg(inputs: int, examples: int) -> LinearRegression:
    """Standard normal inputs and weights, one target."""
    return LinearRegression(inputs, 1, examples, inputs="gaussian", input_range=math.sqrt(12))


PRESETS = {
    "quick": Preset(
        shape=Shape(width=36, n_layers=3, n_heads=2, max_tokens=25, embed=False),
        recipe=Recipe(steps=1000, batch=32, warmup=50),
        rates=(3e-3,),
        curriculum=Curriculum(2, 6, 100),
    ),
    "reduced": Preset(
        shape=Shape(width=48, n_layers=12, n_heads=2, max_tokens=25, embed=False),
        recipe=Recipe(steps=1500, batch=32, warmup=100, device="auto"),
        rates=(3e-3,),
        curriculum=Curriculum(2, 6, 150),
        identify_steps=15,
    ),
    "paper": Preset(
        task=_garg(20, 40),
        shape=Shape(width=256, n_layers=12, n_heads=8, max_tokens=81, embed=False),
        recipe=Recipe(steps=50_000, batch=64, warmup=2000, device="auto"),
        rates=(1e-4, 3e-4, 1e-3),
        curriculum=Curriculum(5, 10, 1000),
        held=4000,
        identify_tasks=400,
        identify_steps=15,
        points=20,
    ),
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """One training for every contender, rate and seed, and the errors of least squares and of predicting zero."""
    return {"references": Job(references, (sizes,))} | jobs_of(sizes, trained)


def _task(sizes: Preset) -> DenseRegression:
    return DenseRegression(sizes.task, sizes.curriculum, sizes.held)


def references(sizes: Preset) -> dict[str, Any]:
    """Mean squared errors after 0 .. N examples, on the test tasks."""
    contexts = _task(sizes).contexts("test")
    squares = [torch.cat([c.y, target_of(c)], dim=1).square().mean(2) for c in contexts]
    errors = [least_squares_errors(context) for context in contexts]
    return {"zero": torch.cat(squares).mean(0).tolist(), "least_squares": torch.cat(errors).mean(0).tolist()}


def least_squares_errors(context: Context) -> Tensor:
    """Squared errors (B, N + 1) of least squares, of minimum norm, on each next target from the examples before it."""
    x, y = (torch.cat(pair, dim=1).double() for pair in ((context.x, context.x_query), (context.y, target_of(context))))
    found = [y[:, :1].square().mean(2)]
    for k in range(1, x.shape[1]):
        prediction = learners.least_squares(x[:, :k], y[:, :k], x[:, k : k + 1])
        found.append((prediction - y[:, k : k + 1]).square().mean(2))
    return torch.cat(found, dim=1)


class ReadEarly(nn.Module):
    """A deep model read after its first `blocks` blocks: tokens (B, T, D) -> the last token's outputs (B, d_y)."""

    def __init__(self, model: GDSSMForSequenceModeling, blocks: int) -> None:
        super().__init__()
        self.model, self.blocks = model, blocks

    def forward(self, tokens: Tensor) -> Tensor:
        """The norm and the head read the stream as it stands there."""
        h = self.model.model.embed(tokens)
        for block in self.model.model.blocks[: self.blocks]:
            h = block(h)[0]
        return self.model.outputs(self.model.model.norm(h[:, -1]))


def trained(sizes: Preset, name: str, rate: float, seed: int) -> dict[str, Any]:
    """One model: its numbers, its error after every count of examples, and the nearest learner after each of our blocks."""
    task = _task(sizes)
    fitted, result = train_one(sizes, task, name, rate, seed)
    model = fitted.module.cpu().eval()
    result |= {"errors": None, "blocks": []}
    if fitted.diverged is not None or result["test_loss"] is None:
        return result
    errors = []
    with torch.no_grad():
        for batch in task.held_out("test"):
            errors.append((outputs_of(model, batch)[:, ::2] - batch.targets[:, ::2]).square().mean(2))
    result["errors"] = torch.cat(errors).mean(0).tolist()
    if isinstance(model, GDSSMForSequenceModeling) and sizes.identify_tasks:
        result["blocks"] = [nearest(ReadEarly(model, i + 1), sizes) for i in range(len(model.model.blocks))]
    return result


def nearest(module: nn.Module, sizes: Preset) -> dict[str, Any]:
    """The learner that a module is nearest to after all N examples, in words, and its relative distance."""
    try:
        found = identify(
            as_predictor(module), sizes.task, tasks=sizes.identify_tasks, seed=HELD_OUT_SEED, max_steps=sizes.identify_steps
        )
    except IdentificationError as error:
        return {"answer": f"none ({error})", "nearest": "none", "distance": None}
    first = found.table[0]
    return {"answer": "none" if found.best is None else found.best.name, "nearest": first.name, "distance": first.distance}


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims after twice as many examples as inputs, and the record."""
    chosen = choose(sizes, results)
    known = results["references"]
    task, curriculum = sizes.task, sizes.curriculum
    record = {
        "experiment": "in-context-depth",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "tasks": f"x and W standard normal, no noise, d_x {task.d_x}, d_y {task.d_y}, {task.n_examples} examples",
            "curriculum": f"from {curriculum.inputs} inputs and {curriculum.examples} examples, +1 and +2 every "
            f"{curriculum.every} steps",
            **settings_of(sizes),
        },
        "blocks": as_records(_blocks(sizes, chosen, known)),
    }
    return Outcome(_claims(sizes, chosen, known), record, sizes.seeds)


def place(task: LinearRegression) -> int:
    """How many examples errors are compared at: twice the inputs, or all where there are fewer."""
    return min(2 * task.d_x, task.n_examples)


def excess(one: Chosen, known: Mapping[str, Any], k: int) -> float:
    """Error after k examples beyond least squares', over that of predicting zero: mean over the seeds."""
    values = [(errors[k] - known["least_squares"][k]) / known["zero"][k] for errors in one.values("errors") if errors is not None]
    return mean(values) if len(values) == len(one.results) else math.inf


def _claims(sizes: Preset, chosen: Mapping[str, Chosen], known: Mapping[str, Any]) -> tuple[Claim, ...]:
    k = place(sizes.task)
    ours = excess(chosen["gdssm"], known, k)
    found = [
        equal_parameters(chosen),
        Claim("least_squares_error", "identity", 0.0, known["least_squares"][k] / known["zero"][k], "<=", 1e-9),
        Claim("excess_error", "hypothesis", 0.0, ours, "<=", EXCESS),
    ]
    if "gpt2" in chosen:
        found.append(Claim("excess_error_over_gpt2", "hypothesis", 0.0, ours - excess(chosen["gpt2"], known, k), "<=", 0.0))
    return tuple(found)


def _blocks(sizes: Preset, chosen: Mapping[str, Chosen], known: Mapping[str, Any]) -> list[Block]:
    k = place(sizes.task)
    counts = tuple(float(i) for i in range(sizes.task.n_examples + 1))
    shares = tuple(error / zero for error, zero in zip(known["least_squares"], known["zero"], strict=True))
    series = [Series("least squares", counts, shares, reference=True)]
    for one in chosen.values():
        rows = [
            [e / z for e, z in zip(errors, known["zero"], strict=True)] for errors in one.values("errors") if errors is not None
        ]
        if rows:
            series.append(_band(one.title, counts, rows))
    answers = [
        f"{one.title}: after {k} examples of {sizes.task.d_x} inputs {excess(one, known, k):.4f} of the error of predicting zero "
        "is left beyond least squares'."
        for one in chosen.values()
    ]
    columns = {f"excess error after {k} examples": lambda one: _finite(excess(one, known, k))}
    caption = "Mean over the seeds at each model's best rate; the band reaches from the lowest to the highest seed."
    found: list[Block] = [
        Text("Answer", tuple(answers)),
        Lines("Error against examples", "examples in the context", "error over that of predicting zero", tuple(series), caption),
        table("All models", chosen, columns),
    ]
    return found + _per_block(chosen["gdssm"])


def _band(label: str, x: tuple[float, ...], rows: Sequence[Sequence[float]]) -> Series:
    columns = list(zip(*rows, strict=True))
    low, high = (tuple(f(column) for column in columns) for f in (min, max))
    middle = tuple(min(max(mean(column), a), b) for column, a, b in zip(columns, low, high, strict=True))
    return Series(label, x, middle, low, high)


def _per_block(ours: Chosen) -> list[Block]:
    """What each block's readout is nearest to, for every seed."""
    rows = tuple(
        (seed, i + 1, one["answer"], one["nearest"], one["distance"])
        for seed, result in enumerate(ours.results)
        for i, one in enumerate(result["blocks"])
    )
    heads = ("seed", "blocks read", "identified as", "nearest learner", "its relative distance")
    note = "The model's norm and head read the stream after so many blocks. Distance: 0 for equal predictions, 1 for zero."
    return [Table("After each block", heads, rows, note)] if rows else []


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
