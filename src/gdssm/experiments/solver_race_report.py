"""What the solver race says: its claims, figures, table and answer, all from the measured numbers.

A race is what experiments.solver_race.race returns; races holds them by condition and solver.
"""

import math
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from ..blocks import Block, Lines, Series, Table, Text, as_records
from ..config import counted
from .claims import Claim

NAMES = {
    "gd": "gradient descent",
    "momentum": "heavy-ball momentum",
    "chebyshev": "Chebyshev",
    "cg": "conjugate gradient",
    "newton": "Newton-Schulz",
}
CLAIMED = 1e3  # conditions beyond this are reported without a target: float64 itself limits what is reached there
ROUNDING = 1e-12  # times the condition: what float64 may add to a prediction, relative to the target
WINDOW = (1e-9, 1e-2)  # errors between which a rate is read off: past the start, above rounding
FLOOR = 1e-17  # smaller errors are drawn here
Race = Mapping[str, Any]
Races = Mapping[float, Mapping[str, Race]]


def exponent(steps: list[int], errors: list[float]) -> float | None:
    """The slope of log error over steps, by least squares, where errors lie in WINDOW; None for fewer than two points."""
    points = [(k, math.log(e)) for k, e in zip(steps, errors, strict=True) if WINDOW[0] <= e <= WINDOW[1]]
    if len(points) < 2:
        return None
    mean_k, mean_e = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((k - mean_k) * (e - mean_e) for k, e in points) / sum((k - mean_k) ** 2 for k, _ in points)


def rate(race: Race, errors: str) -> float | None:
    """The measured exponent ("whole") or the closed form's ("theory") over the asymptotic one."""
    if race["contraction"] is None:
        return None
    found = exponent(race["steps"], race[errors])
    return None if found is None else found / math.log(race["contraction"])


def order(errors: list[float], rounding: float) -> float | None:
    """By what factor one task's fall of log error grows per step, at the last three steps above rounding: 2 for Newton.

    Of an error over many tasks it would say less: tasks in which the inverse starts worse lag behind, and the slowest count.
    """
    kept = [error for error in errors if error > rounding]
    if len(kept) < 3 or kept[-3] <= kept[-2]:
        return None
    a, b, c = (math.log(error) for error in kept[-3:])
    return (c - b) / (b - a)


def claims(races: Races) -> tuple[Claim, ...]:
    """Claims at the conditions up to CLAIMED; a rate that cannot be read off does not hold."""
    return tuple(claim for condition, found in races.items() if condition <= CLAIMED for claim in _claims(condition, found))


def _claims(condition: float, found: Mapping[str, Race]) -> Iterator[Claim]:
    at = f"at_{condition:.0f}"
    rounding = ROUNDING * condition
    gap = max(race["closed_form_gap"] for name, race in found.items() if name != "cg")
    yield Claim(f"closed_form_gap_{at}", "identity", 0.0, gap, "<=", rounding)
    others = max(race["learner_gap"] for name, race in found.items() if name != "cg")
    yield Claim(f"learner_gap_{at}", "identity", 0.0, others, "<=", rounding)
    steps = "d" if condition <= 10 else "2d"
    yield Claim(f"cg_error_after_{steps}_{at}", "identity", 0.0, found["cg"]["after"][condition > 10], "<=", 1e-10)
    for name in ("gd", "momentum", "chebyshev"):
        predicted, value = (_known(rate(found[name], which)) for which in ("theory", "whole"))
        yield Claim(f"{name}_speed_{at}", "hypothesis", predicted, value, "between", (0.9, 1.1))
    orders = found["newton"]["orders"]
    yield Claim(f"newton_order_{at}", "hypothesis", 2.0, _known(median(orders) if orders else None), "between", (1.95, 2.05))


def _known(value: float | None) -> float:
    return math.inf if value is None else value


def blocks(races: Races, d: int, tolerances: tuple[float, ...]) -> list[dict[str, Any]]:
    """The answer, a figure for every condition, and the table."""
    parts: list[Block] = [_answer(races, d, tolerances), *(_figure(c, found) for c, found in races.items())]
    return as_records([*parts, _steps_table(races, tolerances), _agreement_table(races)])


def _answer(races: Races, d: int, tolerances: tuple[float, ...]) -> Text:
    tight = f"{tolerances[-1]:g}"
    paragraphs = []
    for condition, found in races.items():
        parts = [f"{NAMES[name]} {_steps(race['to_tolerance'][-1], race)}" for name, race in found.items()]
        best = ", ".join(f"{NAMES[name]} {race['predicted'][-1]}" for name, race in found.items() if race["predicted"][-1])
        paragraphs.append(
            f"Condition {condition:,.0f}: steps to a relative error of {tight}: {'; '.join(parts)}. "
            f"The closed forms, in exact arithmetic, say {best}."
        )
    rates = [
        f"{NAMES[name]} {measured:.3f} ({expected:.3f})"
        for condition, found in races.items()
        for name, race in found.items()
        if (measured := rate(race, "whole")) is not None and (expected := rate(race, "theory")) is not None
        if condition <= CLAIMED
    ]
    paragraphs.append(
        "Speed in the long run, measured over theoretical, for errors from 1e-2 to 1e-9, in brackets what the closed form of the "
        f"residual has over the same steps: {', '.join(rates)}. Heavy-ball momentum comes near its limit from below: both ends of "
        "the spectrum are double roots, so its error is k times a power, not a power."
    )
    orders = [
        f"{median(found['newton']['orders']):.3f} at condition {condition:,.0f}"
        for condition, found in races.items()
        if condition <= CLAIMED and found["newton"]["orders"]
    ]
    if orders:
        paragraphs.append(
            "Newton-Schulz doubles the digits in every step: the fall of a task's log error grows per step by the factor "
            f"{', '.join(orders)} (median over tasks; 2 is expected)."
        )
    for condition, found in races.items():
        after = found["cg"]["after"]
        paragraphs.append(
            f"Conjugate gradient at condition {condition:,.0f}: error {after[0]:.1e} after d = {d} steps, {after[1]:.1e} after "
            f"{2 * d}. In exact arithmetic {d} steps would do; the steps beyond are the price of rounding."
        )
    paragraphs.append(
        "The best coefficients of the first three need the ends of the spectrum, which differ from context to context; conjugate "
        "gradient finds its own. A Newton-Schulz step costs D products where the others take one, and the readout needs D x D "
        "numbers more per query."
    )
    return Text("Answer", tuple(paragraphs))


def _steps(steps: int | None, race: Race) -> str:
    if steps is not None:
        return str(steps)
    return f"not within {race['steps'][-1]} (least error {min(race['whole']):.1e})"


def _figure(condition: float, found: Mapping[str, Race]) -> Lines:
    series = []
    for name, race in found.items():
        rows = [sorted(max(error, FLOOR) for error in row) for row in race["curve"]]
        middle = tuple(max(error, FLOOR) for error in race["whole"])
        low, high = (tuple(row[i] for row in rows) for i in (0, -1))
        series.append(Series(NAMES[name], tuple(race["steps"]), middle, low, high))
    seeds = counted(len(found["gd"]["curve"][0]), "seed")
    return Lines(
        f"Error against steps, condition {condition:,.0f}",
        "steps at the readout",
        "relative error of the prediction",
        tuple(series),
        f"Root mean square over the tasks of {seeds}; bands from the smallest to the largest of the seeds. "
        "A step of Newton-Schulz is as dear as D steps of the others.",
        x_log=True,
        y_log=True,
    )


def _steps_table(races: Races, tolerances: tuple[float, ...]) -> Table:
    heads = ["condition", "solver"]
    for tolerance in tolerances:
        heads += [f"steps to {tolerance:g}", "closed form"]
    rows = []
    for condition, found in races.items():
        for name, race in found.items():
            steps = [n for pair in zip(race["to_tolerance"], race["predicted"], strict=True) for n in pair]
            rows.append((f"{condition:,.0f}", NAMES[name], *steps, min(race["whole"])))
    note = (
        "Steps to a relative error, measured and from the eigenvalues in exact arithmetic; above 50 they are found to 2 %. "
        "A dash: not reached, or no closed form."
    )
    return Table("Steps", (*heads, "least error"), tuple(rows), note)


def _agreement_table(races: Races) -> Table:
    rows = []
    for condition, found in races.items():
        for name, race in found.items():
            limit = race["contraction"]
            rows.append(
                (
                    f"{condition:,.0f}",
                    NAMES[name],
                    None if limit is None else f"{limit:.7f}",
                    rate(race, "whole"),
                    rate(race, "theory"),
                    race["closed_form_gap"],
                    race["learner_gap"],
                )
            )
    note = (
        "Speed: the fall of the log error per step over its limit. Off closed form: largest distance of the "
        "construction's predictions to those computed from the eigenvalues, over all step counts; off learner: to the explicit "
        "learner's, up to 2 d steps; both relative to the targets. Conjugate gradients that round differently go different ways "
        "before they arrive, so at high condition the last number is large on the way and says nothing about the end."
    )
    heads = ("condition", "solver", "limit per step", "speed", "closed form", "off closed form", "off learner")
    return Table("Against theory", heads, tuple(rows), note)
