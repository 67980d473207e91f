"""What scaling says: fitted exponents, ratios, claims, figures and table, all from the measured numbers.

results["axis-decay"] is what experiments.scaling.measured returns, results["threads"] what experiments.scaling.threaded does.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks import Lines, Series, Table, Text, as_records
from .claims import Claim

FITTED = 3  # the largest sizes of an axis, which exponents are fitted to: at small ones a step's fixed cost rules
SLACK = 0.15  # on exponents: caches and memory are not the same at all sizes
TIME = {"examples": 1.0, "features": 2.0, "batch": 1.0, "copies": 1.0}  # at most, from counting operations
MEMORY = {
    "head": {"examples": 1.0, "features": 1.0, "batch": 1.0, "copies": 1.0},
    "full": {"examples": 1.0, "features": 2.0, "batch": 1.0, "copies": 1.0},
}
SAID = {"examples": "N", "features": "d", "batch": "tasks", "copies": "seeds"}
TITLES = {"head": "one decay per head", "full": "full decay"}
Results = Mapping[str, Mapping[str, Any]]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value over log size at the FITTED largest sizes, by least squares."""
    points = [(math.log(size), math.log(value)) for size, value in zip(sizes, values, strict=True)][-FITTED:]
    x, y = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def share(result: Mapping[str, Any]) -> float:
    """Time of the largest program of many seeds over that of as many programs of one."""
    sizes, seconds = result["sizes"], result["seconds"]
    return float(seconds[-1] / seconds[0] * sizes[0] / sizes[-1])


def claims(axes: Mapping[str, str], decays: Sequence[str], results: Results) -> tuple[Claim, ...]:
    """Exponents of time and memory, and what one program for all seeds saves."""
    found = []
    for decay in decays:
        for axis in axes:
            result = results[f"{axis}-{decay}"]
            time, memory = (exponent(result["sizes"], result[what]) for what in ("seconds", "bytes"))
            at_most = TIME[axis] + SLACK
            found.append(Claim(f"time_exponent_{axis}_{decay}", "hypothesis", TIME[axis], time, "<=", at_most))
            at_most = MEMORY[decay][axis] + SLACK
            found.append(Claim(f"memory_exponent_{axis}_{decay}", "hypothesis", MEMORY[decay][axis], memory, "<=", at_most))
    one = share(results["copies-head"])
    found.append(Claim("one_program_over_separate_ones", "hypothesis", 0.5, one, "<=", 0.7))
    return tuple(found)


def blocks(axes: Mapping[str, str], decays: Sequence[str], batch: int, results: Results) -> list[dict[str, Any]]:
    """The answer, a figure of time and one of memory for every axis, threads, and the table."""
    figures = [_figure(axis, label, what, decays, results) for axis, label in axes.items() for what in ("seconds", "bytes")]
    return as_records(
        [_answer(axes, decays, batch, results), *figures, _threads(results["threads"]), _table(axes, decays, results)]
    )


def _answer(axes: Mapping[str, str], decays: Sequence[str], batch: int, results: Results) -> Text:
    paragraphs = []
    for decay in decays:
        parts = []
        for axis in axes:
            result = results[f"{axis}-{decay}"]
            time, memory = (exponent(result["sizes"], result[what]) for what in ("seconds", "bytes"))
            parts.append(f"{SAID[axis]}^{time:.2f} and {SAID[axis]}^{memory:.2f}")
        paragraphs.append(
            f"With {TITLES[decay]}, time and kept memory of a training step grow as {', '.join(parts)}, fitted to the "
            f"{FITTED} largest sizes of each axis."
        )
    copies = results["copies-head"]
    paragraphs.append(
        f"One program that trains {copies['sizes'][-1]} seeds takes {share(copies):.2f} of the time of {copies['sizes'][-1]} "
        "programs of one seed, for all seeds share the tasks that are drawn and the fixed cost of every operation."
    )
    draws = results["examples-head"]
    parts = [
        f"{drawn / whole:.0%} at N = {size}"
        for size, drawn, whole in zip(draws["sizes"], draws["drawing"], draws["seconds"], strict=True)
    ]
    paragraphs.append(f"Of a step with one seed and {batch} tasks, drawing the tasks takes {', '.join(parts)}.")
    threads = results["threads"]
    gains = [
        f"{threads['seconds'][0] / seconds:.2f} times as fast with {count}"
        for count, seconds in zip(threads["sizes"][1:], threads["seconds"][1:], strict=True)
    ]
    if gains:
        paragraphs.append(
            f"Against one thread, by the wall clock, a step is {', '.join(gains)} threads. This number depends on what else the "
            "machine does, and no claim is made of it; the others are CPU time."
        )
    return Text("Answer", tuple(paragraphs))


def _figure(axis: str, label: str, what: str, decays: Sequence[str], results: Results) -> Lines:
    series = []
    for decay in decays:
        result = results[f"{axis}-{decay}"]
        scale = 1e3 if what == "seconds" else 1 / 2**20
        low = tuple(value * scale for value in result[what])
        high = tuple(value * scale for value in result["slowest"]) if what == "seconds" else None
        series.append(Series(TITLES[decay], tuple(result["sizes"]), low, None if high is None else low, high))
    first = results[f"{axis}-{decays[0]}"]
    top, scale = first["sizes"][-1], 1e3 if what == "seconds" else 1 / 2**20
    line = tuple(first[what][-1] * scale * size / top for size in first["sizes"])
    series.append(Series("proportional", tuple(first["sizes"]), line, reference=True))
    said = "Time" if what == "seconds" else "Memory"
    return Lines(
        f"{said} of a training step against {label.split(' (')[0]}",
        label,
        "CPU milliseconds per step" if what == "seconds" else "MiB kept for the backward pass",
        tuple(series),
        "The dashed line is proportional to the size and meets the curve of one decay per head at its end."
        + (" Curves are the fastest of several blocks of steps, bands reach to the slowest." if what == "seconds" else ""),
        x_log=True,
        y_log=True,
    )


def _threads(result: Mapping[str, Any]) -> Lines:
    x = tuple(float(count) for count in result["sizes"])
    return Lines(
        "Speed against threads",
        "threads",
        "speed over that of one thread",
        (
            Series("one decay per head", x, tuple(result["seconds"][0] / seconds for seconds in result["seconds"])),
            Series("proportional", x, x, reference=True),
        ),
        "By the wall clock, so it depends on what else the machine does.",
    )


def _table(axes: Mapping[str, str], decays: Sequence[str], results: Results) -> Table:
    rows = []
    for axis, label in axes.items():
        for decay in decays:
            result = results[f"{axis}-{decay}"]
            time, memory = (exponent(result["sizes"], result[what]) for what in ("seconds", "bytes"))
            ends = f"{result['sizes'][0]} to {result['sizes'][-1]}"
            seconds = f"{result['seconds'][0] * 1e3:.3g} to {result['seconds'][-1] * 1e3:.3g}"
            kept = f"{result['bytes'][0] / 2**20:.3g} to {result['bytes'][-1] / 2**20:.3g}"
            rows.append((label, ends, TITLES[decay], seconds, time, TIME[axis], kept, memory, MEMORY[decay][axis]))
    heads = ("axis", "sizes", "decay", "CPU ms", "exponent", "at most", "MiB kept", "exponent", "at most")
    return Table("Exponents", heads, tuple(rows), "At most: from counting operations and numbers, without slack.")
