"""listops: does the recurrence help to evaluate nested expressions, beside the same model without memory and attention?

ListOps in the form of Long Range Arena: fresh expressions by a seed, or with `--lra DIR` the published files. Accuracy is
split by depth, since shallow expressions can be guessed from their first operator.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..analysis import wilson_interval
from ..blocks import Block, Table, as_records
from ..recipe import Recipe
from ..sequences import ListOps, PublishedListOps, SequenceTask
from . import Outcome, whole_sequences
from .claims import Claim
from .jobs import Job
from .sequence_contenders import Shape
from .sequence_runs import Chosen, Comparison, choose, equal_parameters, further_of, jobs_of, settings_of, trained

TITLE = "ListOps"
QUESTION = "What does the recurrence add to evaluating nested expressions, and at which depths?"
RELEVANT = 0.03  # three points of accuracy over the control
PUBLISHED_S5 = 0.6215  # S5 at full size, as published (2208.04933)


@dataclass(frozen=True)
class Preset(Comparison):
    """Sizes: lengths, depth and arguments of expressions, held-out ones; a folder of Long Range Arena in place of them."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    contenders: tuple[str, ...] = ("gdssm", whole_sequences.CONTROL, "attention")
    min_length: int = 501
    max_length: int = 1999
    max_depth: int = 9
    max_args: int = 10
    held: int = 2000
    lra: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_sequences.check_control(self.contenders)


PRESETS = {
    "quick": Preset(
        shape=Shape(width=32, n_layers=2, n_heads=2, max_tokens=40, pooled=True, both=True),
        recipe=Recipe(steps=300, batch=32, warmup=30),
        rates=(5e-3,),
        min_length=5,
        max_length=40,
        max_depth=4,
        max_args=5,
        held=1000,
    ),
    "reduced": Preset(
        shape=Shape(width=48, n_layers=2, n_heads=4, max_tokens=200, pooled=True, both=True),
        recipe=Recipe(steps=800, batch=16, warmup=50, device="auto"),
        rates=(5e-3,),
        points=5,
        min_length=20,
        max_length=200,
    ),
    "paper": Preset(
        shape=Shape(width=128, n_layers=6, n_heads=4, max_tokens=2000, pooled=True, both=True),
        recipe=Recipe(steps=20_000, batch=32, warmup=1000, device="auto"),
        rates=(1e-3, 3e-3),
    ),
}


@cache
def task_of(sizes: Preset) -> SequenceTask:
    """Fresh expressions, or the published ones."""
    if sizes.lra:
        return PublishedListOps.read(sizes.lra, sizes.max_length + 1)
    return ListOps(sizes.min_length, sizes.max_length, sizes.max_depth, sizes.max_args, sizes.held)


def jobs(sizes: Preset) -> dict[str, Job]:
    """One training for every contender, rate and seed."""
    task_of(sizes)  # its errors come before anything is trained
    return jobs_of(sizes, one)


def further(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> dict[str, Job]:
    """The seeds that train at the best rate alone."""
    return further_of(sizes, results, one)


def one(sizes: Preset, name: str, rate: float, seed: int) -> dict[str, Any]:
    """One model's numbers, by depth too, and how often the commonest value is right."""
    task = task_of(sizes)
    values = Counter(int(value) for batch in task.held_out("test") for value in batch.targets)
    return trained(sizes, task, name, rate, seed) | {"commonest": max(values.values()) / sum(values.values())}


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims about the difference to the control, and the record."""
    chosen = choose(sizes, results)
    commonest = next(iter(results.values()))["commonest"]
    expressions = (
        f"published files in {sizes.lra}"
        if sizes.lra
        else f"fresh, {sizes.min_length} to {sizes.max_length} tokens, depth <= {sizes.max_depth}, arguments <= {sizes.max_args}"
    )
    extra = (
        f"The commonest value is right for {commonest:.3f} of the expressions. S5's published accuracy, at 500 to 2,000 tokens "
        f"and full budget, is {PUBLISHED_S5:.4f}.",
    )
    record = {
        "experiment": "listops",
        "title": TITLE,
        "question": QUESTION,
        "settings": {"expressions": expressions, "reading": "both directions, mean over tokens", **settings_of(sizes)},
        "blocks": as_records([*whole_sequences.blocks(chosen, "seed", extra), _by_depth(chosen)]),
    }
    return Outcome(_claims(chosen, commonest), record, sizes.seeds)


def _claims(chosen: Mapping[str, Chosen], commonest: float) -> tuple[Claim, ...]:
    apart = whole_sequences.gain(chosen)
    middle, low = (-1.0, -1.0) if apart is None else apart[:2]
    ours = chosen["gdssm"].middle("test_accuracy")
    return (
        equal_parameters(chosen),
        Claim("accuracy_over_commonest_value", "hypothesis", 0.1, -1.0 if ours is None else ours - commonest, ">=", 0.05),
        Claim("accuracy_over_window_only", "hypothesis", 0.05, middle, ">=", RELEVANT),
        Claim("lower_end_of_its_interval", "hypothesis", 0.0, low, ">=", 0.0),
    )


def _by_depth(chosen: Mapping[str, Chosen]) -> Block:
    """Accuracy of every model at every depth, all seeds together, with Wilson's interval."""
    sums: dict[str, dict[int, list[int]]] = {}
    for name, found in chosen.items():
        for result in found.results:
            for depth, right, count in result["groups"]:
                own = sums.setdefault(name, {}).setdefault(depth, [0, 0])
                own[0] += right
                own[1] += count
    depths = sorted({depth for own in sums.values() for depth in own})
    rows = []
    for depth in depths:
        cells = []
        for name in chosen:
            right, count = sums.get(name, {}).get(depth, (0, 0))
            low, high = wilson_interval(right, count) if count else (0.0, 1.0)
            cells.append(f"{right / count:.3f} ({low:.3f} to {high:.3f})" if count else None)
        rows.append(
            (depth, max(own.get(depth, [0, 0])[1] for own in sums.values()) // max(1, len(chosen["gdssm"].results)), *cells)
        )
    heads = ("depth", "expressions", *(found.title for found in chosen.values()))
    note = "Share of right values, all seeds together, with the 95 % interval of the rate (Wilson)."
    return Table("By depth", heads, tuple(rows) or ((None,) * len(heads),), note)
