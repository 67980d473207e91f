"""recall: how much state does recalling many keys at once take, in the layer's deep models and in others?

Multi-query associative recall (Zoology, 2312.04927) at several settings (tokens, pairs) and widths. A recurrent model keeps
its pairs in a state of fixed size, attention keeps every token: accuracy is shown against the numbers kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from ..blocks import Block, Lines, Series, Text, as_records
from ..recipe import Recipe
from ..sequences import AssociativeRecall
from . import Outcome
from .claims import Claim
from .jobs import Job
from .sequence_contenders import CONTENDERS, Shape
from .sequence_runs import Chosen, Comparison, choose, further_of, jobs_of, settings_of, spread, table, trained

TITLE = "Associative recall"
QUESTION = "How much state does it take to recall the values of many keys at once?"
SMALL = (64, 8)  # the setting that has a target of its own
RECALLED = 0.99


@dataclass(frozen=True)
class Preset(Comparison):
    """Sizes: settings (tokens, pairs), widths, the vocabulary, held-out sequences.

    tokens  of a step, whatever the setting: so many sequences that they are as many; 0: the recipe's batch
    """

    contenders: tuple[str, ...] = ("gdssm", "linear-attention", "delta-net", "gpt2")
    cells: tuple[tuple[int, int], ...] = (SMALL,)
    widths: tuple[int, ...] = (32,)
    vocabulary: int = 64
    noise: bool = True
    held: int = 512
    tokens: int = 0


PRESETS = {
    "quick": Preset(
        shape=Shape(width=32, n_layers=2, n_heads=2),
        recipe=Recipe(steps=400, batch=32, warmup=40),
        rates=(1e-2,),
        widths=(32,),
        points=8,
    ),
    "reduced": Preset(
        contenders=("gdssm", "linear-attention", "delta-net", "mamba", "gpt2"),
        cells=(SMALL, (256, 64)),
        widths=(32, 64),
        vocabulary=256,
        noise=False,
        shape=Shape(n_layers=2, n_heads=2),
        recipe=Recipe(steps=600, warmup=50, device="auto"),
        tokens=2048,
        rates=(3e-3, 1e-2),
        tuned=1,
        points=6,
    ),
    "paper": Preset(
        contenders=("gdssm", "gdssm-input-decay", "linear-attention", "gated-linear-attention", "delta-net", "mamba", "gpt2"),
        cells=(SMALL, (256, 64)),
        widths=(32, 64, 128),
        vocabulary=8192,
        shape=Shape(n_layers=2, n_heads=2),
        recipe=Recipe(steps=8000, batch=64, warmup=400, device="auto"),
        rates=(1e-3, 3e-3, 1e-2),
        held=2048,
        points=16,
    ),
}


def part_of(sizes: Preset, cell: tuple[int, int], width: int) -> Preset:
    """The sizes of one setting and width."""
    recipe = replace(sizes.recipe, batch=max(1, sizes.tokens // cell[0])) if sizes.tokens else sizes.recipe
    return replace(sizes, shape=replace(sizes.shape, width=width, max_tokens=cell[0]), recipe=recipe)


def parts(sizes: Preset) -> dict[str, tuple[tuple[int, int], int]]:
    """Settings and widths by the prefix of their jobs."""
    return {f"t{cell[0]}-n{cell[1]}-w{width}-": (cell, width) for cell in sizes.cells for width in sizes.widths}


def jobs(sizes: Preset) -> dict[str, Job]:
    """One training for every setting, width, contender, rate and seed."""
    found: dict[str, Job] = {}
    for prefix, (cell, width) in parts(sizes).items():
        found |= jobs_of(part_of(sizes, cell, width), trained, (_task(sizes, cell),), prefix)
    return found


def further(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> dict[str, Job]:
    """The seeds that train at the best rate alone."""
    found: dict[str, Job] = {}
    for prefix, (cell, width) in parts(sizes).items():
        found |= further_of(part_of(sizes, cell, width), results, trained, (_task(sizes, cell),), prefix)
    return found


def _task(sizes: Preset, cell: tuple[int, int]) -> AssociativeRecall:
    return AssociativeRecall(*cell, vocabulary=sizes.vocabulary, noise=sizes.noise, held=sizes.held)


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims at the small setting, and the record of all."""
    chosen = {(cell, width): choose(part_of(sizes, cell, width), results, prefix) for prefix, (cell, width) in parts(sizes).items()}
    record = {
        "experiment": "recall",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "task": f"keys and values without replacement, power-law gaps, vocabulary of {sizes.vocabulary:,}"
            + (", random tokens between" if sizes.noise else ""),
            "settings (tokens, pairs)": ", ".join(map(str, sizes.cells)),
            "widths of GDSSM": ", ".join(map(str, sizes.widths)),
            **settings_of(sizes, sequences=f"as many as make {sizes.tokens:,} tokens" if sizes.tokens else ""),
        },
        "blocks": as_records(_blocks(chosen)),
    }
    return Outcome(_claims(sizes, chosen), record, sizes.seeds)


Cells = Mapping[tuple[tuple[int, int], int], Mapping[str, Chosen]]


def _claims(sizes: Preset, chosen: Cells) -> tuple[Claim, ...]:
    found = []
    if SMALL in sizes.cells:
        best = max(_accuracy(chosen[SMALL, width]["gdssm"]) for width in sizes.widths)
        found.append(Claim("accuracy_64_tokens_8_pairs", "hypothesis", 1.0, best, ">=", RECALLED))
    last = (sizes.cells[-1], max(sizes.widths))
    if "delta-net" in sizes.contenders:  # the same size of state, and the rule that makes room for a new value
        apart = _accuracy(chosen[last]["gdssm"]) - _accuracy(chosen[last]["delta-net"])
        found.append(Claim("accuracy_over_delta_net", "hypothesis", 0.0, apart, ">=", -0.02))
    if "linear-attention" in sizes.contenders:
        apart = _accuracy(chosen[last]["gdssm"]) - _accuracy(chosen[last]["linear-attention"])
        found.append(Claim("accuracy_over_linear_attention", "hypothesis", 0.0, apart, ">=", -0.02))
    return tuple(found)


def _accuracy(one: Chosen) -> float:
    """Mean over the seeds; a seed that diverged has recalled nothing."""
    return mean(0.0 if value is None else value for value in one.values("test_accuracy"))


def _blocks(chosen: Cells) -> list[Block]:
    blocks: list[Block] = [_answer(chosen)]
    for cell in dict.fromkeys(cell for cell, _ in chosen):
        widths = [width for own, width in chosen if own == cell]
        if len(widths) > 1:
            blocks.append(_against_state(cell, {width: chosen[cell, width] for width in widths}))
        for width in widths:
            title = f"{cell[0]} tokens, {cell[1]} pairs, GDSSM of width {width}"
            note = "Accuracy: of the values asked for, mean and standard deviation over the seeds."
            blocks.append(table(title, chosen[cell, width], {"accuracy": lambda one: spread(one.values("test_accuracy"))}, note))
    return blocks


def _against_state(cell: tuple[int, int], by_width: Mapping[int, Mapping[str, Chosen]]) -> Lines:
    """Accuracy of every contender against the numbers it keeps."""
    series = []
    for name in next(iter(by_width.values())):
        points = []
        for found in by_width.values():
            one = found[name]
            values = [0.0 if value is None else value for value in one.values("test_accuracy")]
            points.append((float(one.results[0]["state"]), mean(values), min(values), max(values)))
        ordered = sorted({point[0]: point for point in points}.values())
        x, y, low, high = (tuple(column) for column in zip(*ordered, strict=True))
        series.append(
            Series(CONTENDERS[name].title, x, tuple(min(max(m, a), b) for m, a, b in zip(y, low, high, strict=True)), low, high)
        )
    caption = "Every point is a width, at its best rate; the band reaches over the seeds. Attention keeps every token it has read."
    title = f"{cell[0]} tokens, {cell[1]} pairs"
    return Lines(title, "numbers kept per sequence", "accuracy", tuple(series[:8]), caption, x_log=True)


def _answer(chosen: Cells) -> Text:
    paragraphs = []
    for (cell, width), found in chosen.items():
        parts = [f"{one.title} {_accuracy(one):.3f} ({one.results[0]['state']:,} numbers kept)" for one in found.values()]
        paragraphs.append(f"{cell[0]} tokens, {cell[1]} pairs, width {width}, accuracy: {'; '.join(parts)}.")
    return Text("Answer", tuple(paragraphs))
