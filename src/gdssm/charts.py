"""Drawings of the blocks that are charts: curves with their spread, and dots for every seed. Style and SVG are those of figures.py.

Colours are told apart by colour-blind readers; curves differ in dashes and markers too, groups of dots in markers, for print
in grey. Read `draw` first.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import quantiles
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from .blocks import Dots, Lines, Row, Series
from .config import counted
from .figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, STYLE, VERMILION, WIDTH, logarithmic, to_svg

Look = dict[str, Any]  # keywords of a Line2D

# MOST_SERIES looks, the plainest first. Black and dashed is a reference.
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, "#56B4E9", "#7F7F7F", "#882255")
DASHES = ("-", (0, (6, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (6, 1, 1, 1, 1, 1)), (0, (9, 3)), (0, (2, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SIZES = (5, 4.6, 5.6, 4.6, 5.6, 6, 5.6, 7.5)  # so that all look equally large
REFERENCE_DASHES = ((0, (5, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)))
LABEL = 30  # characters of a label before it is broken
LINE = 0.2  # inches of height per line of dots
BEYOND, MISSING = 1.025, 1.095  # where the marks of values beyond the scale and of missing ones stand, in widths of the axes


def draw(block: Lines | Dots, prefix: str) -> str:
    """The chart as an <svg> element for HTML whose ids start with prefix, with a description for readers without the picture."""
    if isinstance(block, Lines):
        return to_svg(lines_figure(block), prefix, describe_lines(block))
    return to_svg(dots_figure(block), prefix, describe_dots(block))


def lines_figure(block: Lines) -> Figure:
    """The curves with their bands, and a legend below."""
    curves = [series for series in block.series if not series.reference]
    references = [series for series in block.series if series.reference]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 3.6 + 0.22 * len(block.series)), layout="constrained")
        axes = figure.add_subplot()
        for i, series in enumerate(curves):
            draw_curve(axes, series, i)
        for i, series in enumerate(references):
            draw_reference(axes, series, i)
        xs = [x for series in block.series for x in series.x]
        ys = [y for series in block.series for values in (series.y, series.low, series.high) for y in values or ()]
        scale_axis(axes, "x", xs, block.x_log)
        scale_axis(axes, "y", ys, block.y_log)
        axes.set_xlabel(plain(block.x_label, 60))
        axes.set_ylabel(plain(block.y_label, 40))
        handles = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
        figure.legend(handles, [plain(series.label, 60) for series in (*curves, *references)], loc="outside lower left")
    return figure


def draw_curve(axes: Axes, series: Series, i: int) -> None:
    """The i-th curve: its own colour, dashes and markers; a band, or a bar where there is one point, is the spread."""
    colour = COLOURS[i]
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, facecolor=colour, alpha=0.2, linewidth=0, label=series.label)
        if len(series.x) == 1:
            axes.vlines(series.x, series.low, series.high, colors=colour, linewidth=1.2)
    every = max(1, math.ceil(len(series.x) / 12))
    axes.plot(
        series.x,
        series.y,
        color=colour,
        linestyle=DASHES[i],
        linewidth=1.6,
        marker=MARKERS[i],
        markersize=SIZES[i],
        markevery=(i * every // len(COLOURS), every),  # markers of curves that lie on each other stand side by side
        label=f"curve {i}",
    )


def draw_reference(axes: Axes, series: Series, i: int) -> None:
    """A dashed black line; of a single point, a level across the axes."""
    look: Look = {"color": BLACK, "linestyle": REFERENCE_DASHES[i], "linewidth": 1.4, "label": f"reference {i}"}
    if len(series.x) == 1:
        axes.axhline(series.y[0], **look)
    else:
        axes.plot(series.x, series.y, **look)


def scale_axis(axes: Axes, which: str, values: Sequence[float], log: bool) -> None:
    """Linear or logarithmic, with few plain labels; on a logarithmic x axis the few values that occur are the labels."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        logarithmic(axes, values, which)
        few = sorted(set(values))
        if which == "x" and len(few) <= 8 and all(right >= 1.5 * left for left, right in pairwise(few)):
            axis.set_major_locator(FixedLocator(few))
        return
    integers = which == "x" and all(value == round(value) for value in values)
    axis.set_major_locator(MaxNLocator(nbins=6, integer=integers))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def dots_figure(block: Dots) -> Figure:
    """One line per row from top to bottom, groups under their names, and a legend above."""
    labels = {id(row): plain(row.label, LABEL) for row in block.rows}
    named = any(block.groups)
    names = [plain(group, LABEL) for group in block.groups] if named else []
    lines = sum(text.count("\n") + 1 for text in (*names, *labels.values())) + 0.6 * len(block.groups)
    with style.context(["default", STYLE, {"axes.grid": False, "axes.spines.left": False}]):
        legend = legend_entries(block)
        figure = Figure(figsize=(WIDTH, 0.8 + LINE * (lines + len(legend))), layout="constrained")
        axes = figure.add_subplot()
        low, high = ends(block)
        heights: list[float] = []
        at = 0.0
        for i, (group, rows) in enumerate(block.groups.items()):
            if named:
                name = plain(group, LABEL)
                size = name.count("\n") + 1
                beside = axes.get_yaxis_transform()  # x in widths of the axes, y in rows
                axes.text(-0.015, at + 0.3 + (size + 1) / 2, name, weight="bold", va="center", ha="right", transform=beside)
                at += size + 0.3
            for row in rows:
                size = labels[id(row)].count("\n") + 1
                heights.append(at + (size + 1) / 2)
                draw_row(axes, row, heights[-1], i, (low, high))
                at += size
            at += 0.3
        if block.reference is not None:
            axes.axvline(block.reference, color=BLACK, linestyle=REFERENCE_DASHES[0], linewidth=1.2, zorder=1)
        scale_axis(axes, "x", (low, high), False)
        if block.x_log:
            logarithmic(axes, (low, high), "x")
        axes.set_xlim(low, high)
        axes.set_ylim(at + 0.5, 0.3)
        ordered = [row for rows in block.groups.values() for row in rows]
        axes.set_yticks(heights, [labels[id(row)] for row in ordered])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.tick_params(axis="x", labeltop=len(block.rows) > 20, length=0)  # a tall figure is read from either end
        axes.set_xlabel(plain(block.x_label, 60))
        figure.legend([handle for handle, _ in legend], [text for _, text in legend], loc="outside upper left")
    return figure


def draw_row(axes: Axes, row: Row, height: float, i: int, scale: tuple[float, float]) -> None:
    """A row of the i-th group: its dots, the median over them, and at the margins how many values have no place."""
    low, high = scale
    axes.axhline(height, color="#e4e4e4", linewidth=0.6, zorder=0)
    inside = [value for value in row.known if low <= value <= high]
    axes.plot(inside, [height] * len(inside), **dot(i), label=row.label)
    if row.median is not None and low <= row.median <= high:
        axes.plot([row.median], [height], **MEDIAN, zorder=3, label=f"median of {row.label}")
    above, below = (sum(value > high for value in row.known), sum(value < low for value in row.known))
    missing = len(row.values) - len(row.known)
    margin = axes.get_yaxis_transform()  # x in widths of the axes, y in rows
    for count, look, x in ((above, ABOVE, BEYOND), (below, BELOW, 0.015), (missing, NONE, MISSING)):
        if count:
            axes.plot([x], [height], **look, transform=margin, clip_on=False, zorder=4, label=f"{row.label}: {count}")
        if count > 1:
            axes.text(x + 0.022, height, str(count), fontsize=8, va="center", transform=margin, clip_on=False)


def dot(i: int) -> Look:
    """How a seed of the i-th group looks."""
    look: Look = {"linestyle": "", "marker": MARKERS[i], "markersize": SIZES[i]}
    return look | {"color": COLOURS[i], "markeredgewidth": 0, "alpha": 0.75}


MEDIAN: Look = {"linestyle": "", "marker": "|", "markersize": 11, "markeredgewidth": 1.8, "color": BLACK}
ABOVE: Look = {"linestyle": "", "marker": ">", "markersize": 5.5, "markerfacecolor": "none", "color": BLACK}
BELOW: Look = ABOVE | {"marker": "<"}
NONE: Look = {"linestyle": "", "marker": "x", "markersize": 5.5, "markeredgewidth": 1.4, "color": BLACK}


def legend_entries(block: Dots) -> list[tuple[Line2D, str]]:
    """What the marks of this block mean; those that do not occur are left out."""

    def entry(look: Look, text: str) -> tuple[Line2D, str]:
        return Line2D([], [], **look), text

    low, high = ends(block)
    values = [value for row in block.rows for value in row.known]
    found = [entry(dot(i), plain(f"{group}, one seed" if group else "one seed", 60)) for i, group in enumerate(block.groups)]
    gaps = any(None in row.values for row in block.rows)
    found.append(entry(MEDIAN, "median of the seeds that have a value" if gaps else "median of the seeds"))
    if block.reference is not None:
        line = {"color": BLACK, "linestyle": REFERENCE_DASHES[0], "linewidth": 1.2}
        found.append(entry(line, plain(f"{block.reference_label or 'reference'}: {block.reference:.4g}", 60)))
    for count, look, text in (
        (sum(value > high for value in values), ABOVE, f"beyond {high:.4g}, the end of the scale"),
        (sum(value < low for value in values), BELOW, f"below {low:.4g}, the end of the scale"),
        (gaps, NONE, "a seed without a value; a number counts several"),
    ):
        if count:
            found.append(entry(look, text))
    return found


def ends(block: Dots) -> tuple[float, float]:
    """The ends of the x axis: block.scale, or those of the values and the reference with a margin.

    Values further from the middle 80 % than three times their width are left out, so that one seed does not hide the others.
    """
    if block.scale is not None:
        return block.scale
    into, back = (math.log10, lambda value: 10.0**value) if block.x_log else (float, float)
    values = sorted(into(value) for row in block.rows for value in row.known)
    shown = list(values)
    if len(values) > 1:
        tenths = quantiles(values, n=10, method="inclusive")
        far = 3 * (tenths[-1] - tenths[0])
        shown = [value for value in values if tenths[0] - far <= value <= tenths[-1] + far] if far else values
    if block.reference is not None:
        shown.append(into(block.reference))
    low, high = (min(shown), max(shown)) if shown else (into(1.0), into(1.0))
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
    return back(low - margin), back(high + margin)


def plain(text: str, width: int) -> str:
    """The text for a figure: broken into lines, and no part of it read as a formula or left out of a legend."""
    lines = "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")
    return f" {lines}" if lines.startswith("_") else lines


def describe_lines(block: Lines) -> str:
    """The curves' ends in words."""
    parts = [
        f"{series.label} from {series.y[0]:.4g} at {series.x[0]:.4g} to {series.y[-1]:.4g} at {series.x[-1]:.4g}"
        for series in block.series
    ]
    return f"{block.y_label} over {block.x_label}: {'; '.join(parts)}."


def describe_dots(block: Dots) -> str:
    """How many rows, and between which values their medians lie, by group."""
    parts = [f"{group or 'all'}: {counted(len(rows), 'row')}, {medians(rows)}" for group, rows in block.groups.items()]
    line = "" if block.reference is None else f" {block.reference_label or 'Reference'}: {block.reference:.4g}."
    return f"{block.x_label}. {'; '.join(parts)}.{line}"


def medians(rows: Iterable[Row]) -> str:
    """The range of the rows' medians."""
    known = [row.median for row in rows if row.median is not None]
    return f"medians {min(known):.4g} to {max(known):.4g}" if known else "no values"
