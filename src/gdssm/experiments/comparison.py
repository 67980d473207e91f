"""What the baselines comparison says: its table, its figures, and the answers to the questions, all from the measured numbers.

A cell's result is what experiments.baselines.trained returns. "Reached" is a loss within 5 % of one gradient-descent step's.
"""

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any

from ..analysis import wilson_interval
from ..blocks import Block, Dots, Row, Table, Text
from ..config import counted
from .contenders import CONTENDERS, INPUTS, MATCHES, Cell

REACHED = 1.05  # of one-step gradient descent's loss
Result = Mapping[str, Any]
Results = Mapping[Cell, Result]


def ratios(result: Result) -> list[float | None]:
    """Loss over that of one step of gradient descent by seed; None where a seed diverged."""
    return [None if copy is None else copy["loss_ratio"] for copy in result["copies"]]


def middle(result: Result) -> float | None:
    """The median loss ratio, None where no seed has one."""
    known = [ratio for ratio in ratios(result) if ratio is not None]
    return median(known) if known else None


def reached(result: Result) -> int:
    """How many seeds reached gradient descent's loss."""
    return sum(ratio is not None and ratio <= REACHED for ratio in ratios(result))


def steps_to_reach(result: Result) -> float | None:
    """Median over the seeds that reached it on the validation tasks of the first evaluation that did."""
    first = [
        next((step for step, ratio in zip(result["steps"], curve, strict=True) if ratio is not None and ratio <= REACHED), None)
        for curve in result["curves"]
    ]
    known = [step for step in first if step is not None]
    return median(known) if known else None


def identified(result: Result) -> str:
    """The most frequent answer of identify, with its count where not all seeds have it."""
    names = [(copy["identified"] or {"name": "none"})["name"] for copy in result["copies"] if copy is not None]
    if not names:
        return "diverged"
    name, count = Counter(names).most_common(1)[0]
    return name if count == len(result["copies"]) else f"{name} ({count} of {len(result['copies'])})"


def table(results: Results) -> Table:
    """One row for every cell."""
    rows = []
    for cell, result in results.items():
        known = [ratio for ratio in ratios(result) if ratio is not None]
        cosines = [copy["cosine"] for copy in result["copies"] if copy is not None]
        low, high = wilson_interval(reached(result), len(result["copies"]))
        rows.append(
            (
                CONTENDERS[cell.architecture].title,
                cell.inputs,
                cell.layers,
                MATCHES[cell.matched],
                result["parameters"],
                result["state"],
                result["rate"],
                median(known) if known else None,
                min(known, default=None),
                max(known, default=None),
                median(cosines) if cosines else None,
                identified(result),
                f"{reached(result)} of {len(result['copies'])} ({low:.2f} to {high:.2f})",
                steps_to_reach(result),
                result["milliseconds"],
            )
        )
    heads = (
        *("architecture", "reads", "layers", "width matched by", "parameters", "state", "best rate"),
        *("loss ratio, median", "lowest", "highest", "cosine, median", "identified as", "reached"),
        *("steps to reach", "ms per step"),
    )
    copies = len(next(iter(results.values()))["copies"]) * len(next(iter(results.values()))["validation"])
    note = (
        f"Loss ratio: loss over that of one step of gradient descent on the same tasks. Reached: seeds within {REACHED:g} of it, "
        "with the 95 % interval of the rate (Wilson). Steps to reach: median over those seeds. State: numbers kept per sequence, "
        f"the window's last tokens included. ms per step: {copies} copies as one program, one thread, while other jobs ran. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in INPUTS.items())
        + "."
    )
    return Table("Every architecture", heads, tuple(rows), note)


def figures(results: Results) -> list[Block]:
    """Loss ratios of all seeds, for each way of choosing the width."""
    caption = (
        "Every dot is a seed at the architecture's best learning rate; the mark is the median. 1 is one step of gradient descent, "
        "below it a model does better than one step; what learned nothing stands at the loss of predicting zero."
    )
    blocks: list[Block] = []
    for matched in ("parameters", "state"):
        rows = tuple(
            Row(CONTENDERS[cell.architecture].title, tuple(ratios(result)), _group(cell))
            for cell, result in results.items()
            if cell.matched in (matched, "")
        )
        if rows:
            blocks.append(
                Dots(
                    f"Loss, width matched by {MATCHES[matched]}",
                    "loss over that of one step of gradient descent",
                    rows,
                    caption,
                    x_log=True,
                    reference=1.0,
                    reference_label="one step of gradient descent",
                )
            )
    return blocks


def _group(cell: Cell) -> str:
    return f"{cell.inputs}, {counted(cell.layers, 'layer')}"


def answers(results: Results, updates: int, tasks: int) -> Text:
    """The questions that reviewers of the paper asked, answered from the numbers; updates of so many tasks trained them."""
    return Text(
        "What the numbers answer",
        (
            _window(results),
            _gates(results),
            _depth(results),
            _single(results),
            _sizes(results),
            f"What this does not say: every entry had {updates:,} updates of {tasks} tasks. For the layers without a gate it is "
            "a matter of form that they learn nothing; of every other entry it says that it did not learn within this budget, "
            "not that it cannot. Depth in particular lengthens the plateau at the start.",
        ),
    )


def _window(results: Results) -> str:
    """What the window gives: one layer, with and without it."""
    changes = []
    for cell, result in results.items():
        if (cell.inputs, cell.layers) == ("tokens", 1):
            other = results.get(Cell(cell.architecture, "windows", 1, cell.matched))
            if other is not None and cell.matched == "state":
                changes.append(f"{CONTENDERS[cell.architecture].title} {_number(middle(result))} to {_number(middle(other))}")
    return (
        "What does the window give? In one layer, median loss ratio without and with the window, width matched by state: "
        f"{'; '.join(changes) or 'not measured'}. {_share('tokens', 1, results)} {_share('windows', 1, results)}"
    )


def _gates(results: Results) -> str:
    """What each part of GDSSM gives."""
    parts = [
        f"{CONTENDERS[cell.architecture].title} {_number(middle(result))}"
        for cell, result in results.items()
        if cell.architecture == "gdssm" or cell.architecture.startswith("without_")
    ]
    zero = next(iter(results.values()))["zero_ratio"]
    s5 = [
        f"{CONTENDERS[name].title} {_number(middle(result))}"
        for name in ("s5", "s5_readout")
        if (result := results.get(Cell(name, "windows", 1, "state"))) is not None
    ]
    return (
        f"What do the input gate, the output gate and the decay give? Median loss ratios: {'; '.join(parts) or 'not measured'}; "
        f"predicting zero is {_number(zero)}. One step's prediction is a product of three tokens (target, input, query). Without "
        "either gate a layer forms products of two, and for weights that are as often positive as negative no such product says "
        "anything about the target: it cannot beat zero, whatever it is trained on. The decay is not needed here, since every "
        f"example counts the same. The readout alone, in S5 behind the same window: {'; '.join(s5) or 'not measured'}."
    )


def _depth(results: Results) -> str:
    """Whether two layers make up for a missing window."""
    return (
        "Do two layers make up for a missing window? "
        f"{_share('tokens', 2, results)} {_share('windows', 2, results)} {_best('tokens', 2, results)}"
    )


def _single(results: Results) -> str:
    """Why one layer of S5, Griffin or Mamba fails, where it does."""
    parts, mamba = [], []
    for name in ("s5", "rg_lru", "griffin", "mamba"):
        found = {cell: result for cell, result in results.items() if (cell.architecture, cell.layers) == (name, 1)}
        best = [
            min((value for cell, one in found.items() if cell.inputs == inputs and (value := middle(one))), default=None)
            for inputs in ("tokens", "windows")
        ]
        if found:
            parts.append(f"{CONTENDERS[name].title} {_number(best[0])} and {_number(best[1])}")
        if name == "mamba":
            mamba = [reached(one) for one in found.values()]
    line = (
        "Does a single layer of S5, Griffin or Mamba fail, and why? Median loss ratio on single tokens and on windows, at the "
        f"better width: {'; '.join(parts) or 'not measured'}. A gradient step needs the product of each target with its own "
        "input, one token earlier, summed over the examples. The recurrence of S5 is linear in what it reads: on single tokens "
        "its state holds sums of inputs and sums of targets, and no product of the two sums tells the pairs apart. The gates of "
        "RG-LRU see one token, so it multiplies tokens with themselves; the window brings it the pairs, through a sigmoid."
    )
    if mamba:
        line += (
            " Mamba has a window of its own (a convolution over four tokens), products of what it gives, and a readout by the "
            "token: form is not what it lacks; "
        ) + ("some seeds reached the loss of one step." if any(mamba) else "it did not find the step within these updates.")
    return line


def _sizes(results: Results) -> str:
    """The smallest model that reached gradient descent, by parameters and by state."""
    good = [(cell, result) for cell, result in results.items() if reached(result) == len(result["copies"])]
    if not good:
        return "No architecture reached the loss of one step with all seeds."
    lines = []
    for key in ("parameters", "state"):
        cell, result = min(good, key=lambda pair: pair[1][key])
        lines.append(f"{result[key]} {key} ({cell.title})")
    return (
        f"How large must it be? {len(good)} of {len(results)} entries reached the loss of one step with all seeds; "
        f"the smallest of them {' and '.join(lines)}."
    )


def _share(inputs: str, layers: int, results: Results) -> str:
    """Which architectures reached the loss of one step on such inputs, at either width, by at least half of the seeds."""
    tried, good = [], []
    for cell, result in results.items():
        if (cell.inputs, cell.layers) == (inputs, layers) and cell.matched:
            tried.append(cell.architecture)
            if 2 * reached(result) > len(result["copies"]):
                good.append(cell.architecture)
    names = [CONTENDERS[name].title for name in dict.fromkeys(good)]
    what = f"On {inputs}, {counted(layers, 'layer')}"
    if not tried:
        return f"{what}: not measured."
    which = f": {', '.join(names)}" if names else ""
    return f"{what}, {len(names)} of {len(set(tried))} architectures reached the loss of one step by most seeds{which}."


def _best(inputs: str, layers: int, results: Results) -> str:
    """The best of such cells."""
    found = {cell: value for cell, result in results.items() if (value := middle(result)) is not None}
    found = {cell: value for cell, value in found.items() if (cell.inputs, cell.layers) == (inputs, layers)}
    if not found:
        return ""
    cell = min(found, key=lambda one: found[one])
    return f"The best of two layers on single tokens is {CONTENDERS[cell.architecture].title}, {_number(found[cell])}."


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4g}"
