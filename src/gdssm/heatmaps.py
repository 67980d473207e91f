"""Heatmaps of the report's interactive view, as SVG: drawn here at one position, redrawn by assets/report.js at the others.

Colours, inks and marks follow the same rules in both places; assets/report.js names the functions here that it repeats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import rounded

Array = NDArray[np.float64]

SHADES = 101  # odd, so that 0 has its own on a scale symmetric about it
# Both are told apart by colour-blind readers. Blue to red is ColorBrewer's RdBu, as in the figures; purple to yellow, which
# also grows lighter, is viridis. The sign is marked too, since blue and red print as the same grey.
ANCHORS = {
    "signed": (
        *("#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7"),
        *("#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"),
    ),
    "share": ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"),
}


def shades(palette: str) -> list[str]:
    """The palette's SHADES colours, lowest first, interpolated between its anchors."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in ANCHORS[palette]], dtype=float)
    at = np.linspace(0, len(anchors) - 1, SHADES)
    channels = [np.interp(at, range(len(anchors)), anchors[:, i]) for i in range(3)]
    return ["#" + "".join(f"{int(value + 0.5):02x}" for value in colour) for colour in zip(*channels, strict=True)]


def is_dark(colour: str) -> bool:
    """Whether marks on the colour should be white."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One matrix at P positions, or one for all of them.

    name     in words, for readouts
    frames   (P, R, C) or (1, R, C); NaN is an empty cell
    low, high  ends of the colour scale; cells beyond them have the end's colour and a cross, or their value
    palette  a key of ANCHORS
    written  values stand in the cells
    """

    name: str
    frames: Array
    low: float
    high: float
    palette: str = "signed"
    written: bool = False

    def frame(self, position: int) -> Array:
        """The matrix (R, C) at a position, which may count from the end."""
        return self.frames[position if len(self.frames) > 1 else 0]

    def shade(self, value: float) -> int:
        """Which of the palette's colours a value has."""
        share = (value - self.low) / (self.high - self.low)
        return int(min(max(share, 0.0), 1.0) * (SHADES - 1) + 0.5)

    def as_data(self) -> dict[str, Any]:
        """What assets/report.js needs to draw it: frames row by row, six digits, null for an empty cell."""
        frames = [[None if math.isnan(v) else rounded(v) for v in frame.ravel().tolist()] for frame in self.frames]
        data = {"name": self.name, "rows": self.frames.shape[1], "columns": self.frames.shape[2], "frames": frames}
        data |= {"low": self.low, "high": self.high, "palette": self.palette}
        if self.written:
            data["written"] = [[short(value) for value in frame.ravel()] for frame in self.frames]
        return data


def short(value: float) -> str:
    """A value in at most five characters, e.g. 0.01, -1.00, 12.3, 456, 7e4."""
    size = abs(value)
    if size < 99.95:
        text = f"{value:.2f}" if size < 9.995 else f"{value:.1f}"
        return text.removeprefix("-") if float(text) == 0 else text
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{value:.0f}" if size < 999.5 else f"{mantissa}e{int(exponent)}"


def grid(key: str, heatmap: Heatmap, *, at: tuple[float, float] = (0, 0), cell: tuple[float, float] = (1, 1)) -> str:
    """The cells of a heatmap's last position as a <g>, its upper left corner and the size of a cell in SVG units."""
    values, colours = heatmap.frame(-1), shades(heatmap.palette)
    parts = []
    for (row, column), value in np.ndenumerate(values):
        fill = "none" if math.isnan(value) else colours[heatmap.shade(value)]
        parts.append(f'<rect x="{column}" y="{row}" width="1" height="1" fill="{fill}"/>')
    if heatmap.written:
        for (row, column), value in np.ndenumerate(values):
            ink = "light" if is_dark(colours[heatmap.shade(value)]) else "dark"
            parts.append(f'<text class="{ink}" x="{column + 0.5}" y="{row + 0.6}">{short(value)}</text>')
    else:
        parts += [f'<path class="{name}" d="{d}"/>' for name, d in marks(heatmap, values).items()]
    place = f"translate({at[0]:g} {at[1]:g}) scale({cell[0]:g} {cell[1]:g})"
    return f'<g data-map="{escape(key)}" transform="{place}">{"".join(parts)}</g>'


def marks(heatmap: Heatmap, values: Array) -> dict[str, str]:
    """Paths over the cells: a dash in a negative one, dark or light by its colour; a cross in one beyond the scale.

    Negative values with the colour of 0 have no dash: noise should look like none.
    """
    colours, paths = shades(heatmap.palette), {"dark": "", "light": "", "beyond": ""}
    for (row, column), value in np.ndenumerate(values):
        if value > heatmap.high or value < heatmap.low:
            paths["beyond"] += f"M{column}.2 {row}.2l.6 .6m0 -.6l-.6 .6"
        elif value < 0 and heatmap.shade(value) < SHADES // 2:
            paths["light" if is_dark(colours[heatmap.shade(value)]) else "dark"] += f"M{column}.3 {row}.5h.4"
    return paths


def picture(parts: Sequence[str], box: tuple[float, float, float, float], label: str) -> str:
    """Grids and labels as one <svg>; box is (left, top, width, height)."""
    shown = " ".join(f"{value:g}" for value in box)
    return f'<svg class="map" viewBox="{shown}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def label(text: str, x: float, y: float, size: float, anchor: str = "middle") -> str:
    """A label in SVG units."""
    return f'<text class="label" x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}">{escape(text)}</text>'


def scale_bar(heatmap: Heatmap, of: str) -> str:
    """The colour scale with its ends, and its middle where that is 0."""
    colours = shades(heatmap.palette)[::5]
    cells = "".join(f'<rect x="{i}" width="1.02" height="1" fill="{colour}"/>' for i, colour in enumerate(colours))
    ends = [
        f"{value:.3g}" for value in ((heatmap.low, 0, heatmap.high) if heatmap.palette == "signed" else (heatmap.low, heatmap.high))
    ]
    row = "".join(f"<span>{end}</span>" for end in ends)
    svg = f'<svg viewBox="0 0 {len(colours)} 1" preserveAspectRatio="none" aria-hidden="true">{cells}</svg>'
    return f'<div class="bar"><span class="of">{escape(of)}</span>{svg}<div class="ends">{row}</div></div>'
