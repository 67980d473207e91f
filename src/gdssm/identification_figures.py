"""The figures of an identification, drawn from what identify.json holds.

What a learner is to the answer is told by shape and word as well as by colour. Axes are distances or fitted numbers; rows are
families, or what was fitted.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .analysis.results import NAMES, Match, Spread
from .figures import BLUE, GREEN, STYLE, VERMILION, WIDTH

LEAST = 1e-5  # distances below count as this one: rounding
GREY = "#555555"
MARKS = {"answer": ("o", BLUE), "the same": ("s", GREEN), "tie": ("^", VERMILION), "": ("D", GREY)}
ROW, MARGIN = 0.44, 0.85  # inches: height of a row, and of axis and labels


def families(spread: Spread) -> list[list[Match]]:
    """For each family its nearest learner in every answer, the answer's own first, then by the distance in the middle one."""
    middle = spread.each[spread.middle]
    order = [match.family for match in middle.by_family]
    order += [family for family in NAMES if family not in order]
    rows = [[match for one in spread.each for match in one.by_family if match.family == family] for family in order]
    return [row for row in rows if row]


def row_name(matches: Sequence[Match]) -> str:
    """The learner of a row; the family alone where the predictors differ in the number of steps."""
    return matches[0].name if len({match.steps for match in matches}) == 1 else NAMES[matches[0].family]


def row_relation(spread: Spread, family: str) -> tuple[str, str]:
    """What a family's nearest learner is to the answer, in one of MARKS' words; of several predictors for the one in the middle,
    and then in words how many have it as what, the most frequent first.
    """
    each = [(i, one.relation(match)) for i, one in enumerate(spread.each) for match in one.by_family if match.family == family]
    word = next((relation for i, relation in each if i == spread.middle), "")
    if len(spread.each) == 1:
        return word, word
    counts = Counter(relation for _, relation in each if relation)
    return word, ", ".join(f"{relation} in {count}" for relation, count in counts.most_common())


def distance_figure(spread: Spread) -> Figure:
    """A row for each family: the distance with its 95 % interval; of several predictors every distance, and their range."""
    rows = families(spread)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, MARGIN + ROW * (len(rows) + 1)), layout="constrained")
        axes = figure.add_subplot()
        bounds = [bound for row in rows for match in row for bound in (match.distance, *match.interval)]
        _distance_axis(axes, bounds)
        share = spread.each[spread.middle].share
        if share < 1:
            limit = (1 - share) ** 0.5
            axes.axvline(limit, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            axes.text(limit, -0.75, "none of these beyond ", ha="right", va="center", fontsize=8, color=GREY)
        for y, row in enumerate(rows):
            _family(axes, y, row, spread)
            if y:
                axes.axhline(y - 0.68, color="#e4e4e4", linewidth=0.8, zorder=1)  # a name belongs to the mark below it
        axes.set_ylim(len(rows) - 0.5, -1.1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("relative distance of predictions (logarithmic; 0.01 is 1 %)")
    return figure


def _family(axes: Axes, y: int, row: Sequence[Match], spread: Spread) -> None:
    word, words = row_relation(spread, row[0].family)
    marker, colour = MARKS[word]
    distances = [max(match.distance, LEAST) for match in row]
    low, high = row[0].interval if len(spread.each) == 1 else (min(distances), max(distances))
    axes.plot([max(low, LEAST), max(high, LEAST)], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
    if len(spread.each) > 1:
        axes.plot(distances, [y] * len(distances), "|", color=colour, markersize=8, markeredgewidth=0.9, zorder=3)
    face = colour if word else "white"
    axes.plot([median(distances)], [y], marker, color=colour, markerfacecolor=face, markersize=7.5, markeredgewidth=1.4, zorder=4)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "fontsize": 9.5}
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.annotate(row_name(row), (0, y - 0.4), xytext=(0, 0), ha="left", bbox=behind, **place)
    if words:
        axes.annotate(
            words.partition(",")[0], (1, y - 0.4), xytext=(0, 0), ha="right", weight="bold", color=colour, bbox=behind, **place
        )


def _distance_axis(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic, from rounding or a little below the least to a little above the greatest; its ticks are plain numbers."""
    shown = np.maximum(values, LEAST)
    low, high = float(shown.min()) / 1.6, float(shown.max()) * 1.6
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    wide = np.log10(high / low) > 2
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())


def _plain(value: float, _: int) -> str:
    """A tick's number without a power of ten; the least one stands for all below it."""
    return f"{'≤ ' if value < 1.001 * LEAST else ''}{value:.6f}".rstrip("0").rstrip(".")


def spread_numbers(spread: Spread) -> dict[str, list[list[float]]]:
    """What the predictors with the most frequent answer have in common: name -> rows -> one number for each predictor.

    A list of rates has a row for each. Matrices and rates that are complex in one of them are left out.
    """
    answer = next(iter(spread.counts))
    matches = [one.best for one in spread.each if one.best is not None and one.best.name == answer]
    if not matches:
        return {}
    found: dict[str, list[list[float]]] = {}
    for name, first in matches[0].numbers.items():
        values = [match.numbers.get(name) for match in matches]
        if isinstance(first, list):
            if name == "rates" and all(
                isinstance(value, list) and len(value) == len(first) and "imaginary" not in match.numbers
                for value, match in zip(values, matches, strict=True)
            ):
                found[name] = [list(row) for row in zip(*values, strict=True)]
        elif all(isinstance(value, int | float) for value in values):
            found[name] = [[float(value) for value in values]]  # type: ignore[arg-type]
    return {"distance": [[match.distance for match in matches]], **found}


def spread_figure(spread: Spread) -> Figure:
    """A panel for the distances and for each fitted number: a point for each predictor with the most frequent answer."""
    panels = spread_numbers(spread)
    heights = [0.35 + 0.35 * len(rows) for rows in panels.values()]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.75 * len(heights)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, rows) in zip(grid, panels.items(), strict=True):
            _strip(axes, name, rows)
    return figure


def _strip(axes: Axes, name: str, rows: Sequence[Sequence[float]]) -> None:
    values = [max(value, LEAST) if name == "distance" else value for row in rows for value in row]
    for y, row in enumerate(rows):
        shown = [max(value, LEAST) for value in row] if name == "distance" else list(row)
        offsets = [0.24 * ((i % 5) - 2) / 2 for i in range(len(row))]  # so that equal numbers are seen
        axes.plot(shown, [y + offset for offset in offsets], "o", color=BLUE, alpha=0.6, markersize=5, markeredgewidth=0, zorder=3)
        axes.plot([median(shown)] * 2, [y - 0.38, y + 0.38], color=VERMILION, linewidth=2, zorder=4)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(rows)), [str(i) for i in range(1, len(rows) + 1)] if len(rows) > 1 else [""])
    axes.tick_params(axis="y", length=0)
    if name == "distance":
        _distance_axis(axes, values)
        axes.set_xlabel("relative distance of predictions (logarithmic)")
        return
    labels = {"lr": "lr, rate per mean of the examples", "rates": "rates per summed example, smallest first"}
    axes.set_xlabel(labels.get(name, name))
    low, high = min(values), max(values)
    if high - low < 1e-6 * max(abs(low), abs(high)):
        room = 0.01 * max(abs(low), abs(high), 1e-12)
        axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def describe_distances(spread: Spread) -> str:
    """The figure of distances in one sentence."""
    parts = []
    for row in families(spread):
        _, words = row_relation(spread, row[0].family)
        parts.append(f"{row_name(row)} {median(match.distance for match in row):.3g}{f' ({words})' if words else ''}")
    whose = "" if len(spread.each) == 1 else f", medians of {len(spread.each)}"
    return f"Relative distance of the predictions from the nearest learner of each family{whose}: {'; '.join(parts)}."


def describe_spread(spread: Spread) -> str:
    """The figure of the spread in one sentence."""
    parts = []
    for name, rows in spread_numbers(spread).items():
        for number, row in enumerate(rows, start=1):
            which = f"{name} {number}" if len(rows) > 1 else name
            parts.append(f"{which} {min(row):.4g} to {max(row):.4g}, median {median(row):.4g}")
    return f"Spread over the predictors with the answer {next(iter(spread.counts))}: {'; '.join(parts)}."
