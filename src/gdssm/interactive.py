"""The report's interactive view of one variant: a state filling up over one context, weights over training.

Each is a Panel: positions of a slider, heatmaps and texts for every position. The HTML made here shows the last position
and needs no script; assets/report.js moves through the others with the data embedded beside it. Read `view` first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from .heatmaps import ANCHORS, Array, Heatmap, grid, label, picture, scale_bar, shades
from .records import middle_seed, rounded

Variant = Mapping[str, Any]
MOST_NUMBERS = 30_000  # of one heatmap in the page: more positions than that are thinned out
TOKENS = ("xₖ", "yₖ", "xₖ₊₁")
UNDEFINED = "-"


@dataclass(frozen=True)
class Group:
    """Heatmaps of the same shape that are read cell by cell together, with the names of their rows and columns."""

    maps: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """A slider with P positions.

    key    its name in the page's address, e.g. "example" in #example=3
    at     what that name counts, (P,), ascending
    texts  name -> text at every position; "position" says where the slider is
    maps   key -> heatmap         groups  which of them belong together
    marker x, y in SVG units at every position, or none
    """

    key: str
    at: list[int]
    texts: dict[str, list[str]]
    maps: dict[str, Heatmap]
    groups: list[Group]
    marker: list[tuple[float, float]]

    def as_script(self) -> str:
        """The panel as a data block; "<" is escaped, so that no text can end it."""
        data = {
            "key": self.key,
            "at": self.at,
            "texts": self.texts,
            "maps": {key: heatmap.as_data() for key, heatmap in self.maps.items()},
            "groups": [group.__dict__ for group in self.groups],
            "marker": self.marker,
            "palettes": {name: shades(name) for name in ANCHORS},
        }
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        return f'<script type="application/json">{text}</script>'


def view(variant: Variant, suffix: str = "") -> str:
    """The panels of a variant as HTML, none where its record has no views. suffix keeps ids and address names apart.

    KeyError for a missing part, ValueError for one of the wrong shape.
    """
    parts = [draw(variant, suffix) for key, draw in (("filling", filling_html), ("snapshots", weights_html)) if key in variant]
    return '<div class="panels">\n' + "\n".join(parts) + "\n</div>" if parts else ""


def array(values: Any, shape: tuple[int, ...], name: str) -> Array:
    """The values as an array of this shape, or ValueError."""
    made = np.asarray(values, dtype=float)
    if made.shape != shape:
        raise ValueError(f"{name} has shape {made.shape}, it must be {shape}")
    return made


def thinned(count: int, cells: int) -> list[int]:
    """Positions to embed: all of them, or the first, the last and evenly spaced ones between that fit MOST_NUMBERS."""
    most = max(2, MOST_NUMBERS // cells)
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def filling_panel(variant: Variant, suffix: str = "") -> Panel:
    """The state over one context: trained layer, gradient descent and true weights, latest example, distances."""
    filling = variant["filling"]
    n, d_x, d_y = len(filling["x"]), len(filling["x"][0]), len(filling["y"][0])
    kept = thinned(n + 1, d_x * d_y)
    blank = np.full((1, 1, 1), np.nan)
    x = np.concatenate([blank.repeat(d_x, 2), array(filling["x"], (n, d_x), "filling.x")[:, None]])[kept]
    y = np.concatenate([blank.repeat(d_y, 1), array(filling["y"], (n, d_y), "filling.y")[..., None]])[kept]
    true = array(filling["true"], (d_y, d_x), "filling.true")
    trained = array(filling["trained"], (n + 1, d_y, d_x), "filling.trained")[kept]
    explicit = array(filling["gradient_descent"], (n + 1, d_y, d_x), "filling.gradient_descent")[kept]
    most = largest(true, trained, explicit)
    inputs, targets = (tuple(f"{what} {i + 1}" for i in range(d)) for what, d in (("input", d_x), ("target", d_y)))
    pairs = [(comparison(a, b), comparison(b, true)) for a, b in zip(trained, explicit, strict=True)]
    return Panel(
        key=f"example{suffix}",
        at=kept,
        texts={
            "position": [f"after {k} of {n} examples" for k in kept],
            "layer_cosine": [layer[0] for layer, _ in pairs],
            "layer_distance": [layer[1] for layer, _ in pairs],
            "step_cosine": [step[0] for _, step in pairs],
            "step_distance": [step[1] for _, step in pairs],
        },
        maps={
            "trained": Heatmap("trained layer", trained, -most, most),
            "gradient_descent": Heatmap("gradient descent", explicit, -most, most),
            "true": Heatmap("true W", true[None], -most, most),
            "x": Heatmap("x of the latest example", x, -largest(x), largest(x)),
            "y": Heatmap("y of the latest example", y, -largest(y), largest(y)),
        },
        groups=[
            Group(("trained", "gradient_descent", "true"), targets, inputs),
            Group(("x",), ("",), inputs),
            Group(("y",), targets, ("",)),
        ],
        marker=[],
    )


def weights_panel(variant: Variant, suffix: str = "") -> Panel:
    """w_q, d, C and Lambda over training beside the construction's, with the loss of that layer."""
    snapshots, built = variant["snapshots"], variant["constructed"]
    steps, size = snapshots["steps"], len(built["c"])
    if snapshots["seed"] not in variant["seeds"]:
        raise ValueError(f"snapshots.seed is {snapshots['seed']}, which is none of the variant's seeds")
    row = variant["seeds"].index(snapshots["seed"])
    shape = (len(variant["seeds"]), len(variant["steps"]))
    loss, cosine = (array(variant[name], shape, name)[row].tolist() for name in ("loss", "sensitivity_cosine"))
    curve = dict(zip(variant["steps"], zip(loss, cosine, strict=True), strict=True))
    if not steps or not all(isinstance(step, int) and step in curve for step in steps):
        raise ValueError(f"snapshots.steps must be some of the variant's steps, got {steps}")
    kept = thinned(len(steps), size * size)
    features = tuple(f"feature {i + 1}" for i in range(size))
    names = {"w_q": (TOKENS, TOKENS), "d": (("d",), TOKENS), "c": (features, features), "decay": (features, features)}
    maps = {name: pair for matrix in names for name, pair in weight_maps(matrix, snapshots, built, kept).items()}
    at = [steps[i] for i in kept]
    return Panel(
        key=f"step{suffix}",
        at=at,
        texts={
            "position": [f"step {step} of {steps[-1]}" for step in at],
            "loss": [f"{curve[step][0]:.4g}" for step in at],
            "ratio": [f"{curve[step][0] / variant['gd_loss']:.5g}" for step in at],
            "cosine": [f"{curve[step][1]:.5f}" for step in at],
        },
        maps=maps,
        groups=[Group((name, f"{name}_constructed"), *names[name]) for name in names],
        marker=[on_curve(variant, row, step) for step in at],
    )


def weight_maps(name: str, snapshots: Variant, built: Variant, kept: list[int]) -> dict[str, Heatmap]:
    """One matrix over training and the constructed one, with a colour scale that fits both at the end of training."""
    size = len(built["c"])
    shape = {"w_q": (3, 3), "d": (3,)}.get(name, (size, size))
    over_time = array(snapshots[name], (len(snapshots["steps"]), *shape), f"snapshots.{name}")[kept]
    wanted = array(built[name], shape, f"constructed.{name}")[None]
    if name == "d":
        over_time, wanted = over_time[:, None], wanted[:, None]
    if name == "decay":
        low, high, palette = min(0.9, float(over_time.min()), float(wanted.min())), 1.0, "share"
    else:
        high, palette = largest(over_time[-1], wanted), "signed"
        low = -high
    written = name in ("w_q", "d")
    return {
        name: Heatmap("trained", over_time, low, high, palette, written),
        f"{name}_constructed": Heatmap("constructed", wanted, low, high, palette, written),
    }


def largest(*values: Array) -> float:
    """The largest absolute value, 1 where all are 0 or empty; rounded as the cells are, so none lies beyond it."""
    return rounded(max(float(np.nanmax(np.abs(value), initial=0)) for value in values)) or 1.0


def comparison(found: Array, wanted: Array) -> tuple[str, str]:
    """Cosine of two matrices and |found - wanted| / |wanted|, in Frobenius' norm, as text; a dash where a norm is 0."""
    norms = float(np.linalg.norm(found)), float(np.linalg.norm(wanted))
    cosine = f"{float((found * wanted).sum()) / (norms[0] * norms[1]):.5f}" if all(norms) else UNDEFINED
    distance = f"{float(np.linalg.norm(found - wanted)) / norms[1]:.3f}" if norms[1] else UNDEFINED
    return cosine, distance


CURVE = (300.0, 46.0)  # width and height of the loss curve, SVG units


def on_curve(variant: Variant, row: int, step: int) -> tuple[float, float]:
    """Where a step's loss stands on the loss curve; the height is logarithmic."""
    loss = variant["loss"][row][variant["steps"].index(step)]
    return round(CURVE[0] * step / max(variant["steps"][-1], 1), 1), height(variant, row, loss)


def height(variant: Variant, row: int, loss: float) -> float:
    """The height of a loss in SVG units, from the top. ValueError where losses are not positive."""
    known = [*variant["loss"][row], variant["gd_loss"]]
    if min(known) <= 0:
        raise ValueError(f"a loss of {min(known)} has no place on a logarithmic axis")
    low, high = np.log(min(known)), np.log(max(known))
    return round(CURVE[1] * (1 - float((np.log(loss) - low) / ((high - low) or 1))), 1)


def filling_html(variant: Variant, suffix: str) -> str:
    """The panel of filling_panel."""
    panel, filling = filling_panel(variant, suffix), variant["filling"]
    titles = {"trained": "Trained layer", "gradient_descent": "Gradient descent", "true": "True W"}
    maps = "\n".join(
        f'<figure class="matrix"><figcaption>{title}</figcaption>{example_map(panel, key, title)}</figure>'
        for key, title in titles.items()
    )
    numbers = numbers_table(
        panel,
        ("", "cosine", "relative distance"),
        (
            ("layer to gradient descent", "layer_cosine", "layer_distance"),
            ("gradient descent to true W", "step_cosine", "step_distance"),
        ),
    )
    note = (
        f"One held-out context of {len(filling['x'])} examples, read by the layer of seed {filling['seed']}. Layer: the linear "
        "model that its state holds, d₃ C Zᵀ, with the latest window closed by a zero token. Gradient descent: (η/N) Σ yₖ xₖᵀ "
        f"over the examples so far, η = {filling['rate']:.4g}, that is one step from 0 once all are read; one step is not meant "
        "to reach W. Rows are targets, columns inputs; x of the latest example stands above, y on the left. A dash marks a "
        "negative cell."
    )
    return panel_html(
        panel,
        "Within one context: the state fills up",
        "Examples read",
        numbers,
        f'<div class="three">{maps}</div>' + scale_bar(panel.maps["trained"], "weight"),
        note,
    )


def example_map(panel: Panel, key: str, title: str) -> str:
    """A matrix with the latest example's x above it and y on its left."""
    heatmap = panel.maps[key]
    rows, columns = heatmap.frames.shape[1:]
    unit = max(1.0, max(rows, columns) / 10)  # strips and letters keep their share of a large picture
    gap = 1.5 * unit
    parts = [
        f'<g class="latest">{grid("x", panel.maps["x"], at=(0, -gap), cell=(1, unit))}',
        f"{grid('y', panel.maps['y'], at=(-gap, 0), cell=(unit, 1))}</g>",
        label("x", columns + 0.3 * unit, -0.65 * unit, 1.2 * unit, "start"),
        label("y", -unit, rows + 1.0 * unit, 1.2 * unit),
        grid(key, heatmap),
    ]
    box = (-1.1 * gap, -1.1 * gap, columns + 2.2 * gap, rows + 2.0 * gap)
    return picture(parts, box, f"{title}, {rows} targets by {columns} inputs")


def weights_html(variant: Variant, suffix: str) -> str:
    """The panel of weights_panel."""
    panel, snapshots = weights_panel(variant, suffix), variant["snapshots"]
    columns = []
    for keys, title, of in ((("w_q", "d"), "w_q, d", "w_q, d"), (("c",), "C", "C"), (("decay",), "Λ", "Λ")):
        for ending, whose in (("", "trained"), ("_constructed", "constructed")):
            drawn = "".join(weight_map(panel, f"{key}{ending}", f"{key} {whose}") for key in keys)
            columns.append(f'<figure class="matrix"><figcaption>{title} {whose}</figcaption>{drawn}</figure>')
        columns.append(scale_bar(panel.maps[keys[0]], of))
    losses = [row[-1] for row in variant["loss"]]
    median = len(losses) > 1 and variant["seeds"][middle_seed(losses)] == snapshots["seed"]
    numbers = numbers_table(
        panel, ("loss", "times one step of gradient descent", "cosine to it"), (("loss", "ratio", "cosine"),), first_is_text=False
    )
    note = (
        f"Weights of the layer of seed {snapshots['seed']}{', the median final loss' if median else ''}. Scaled so that w_q at "
        "(xₖ, yₖ) and d at xₖ₊₁ are 1, and without the part of w_q that the overlap of windows cancels; so C carries the "
        "learning rate. The colour scales are those of the trained and constructed weights: what lies beyond has the end's colour, "
        "in C with a cross. Curve: the loss of this layer, logarithmic; dashed: one step of gradient descent."
    )
    body = loss_curve(variant, panel) + f'<div class="six">{"".join(columns)}</div>'
    return panel_html(panel, "Over training: weights become the construction", "Training step", numbers, body, note)


def weight_map(panel: Panel, key: str, title: str) -> str:
    """One matrix of weights; the tokens of a window name the rows and columns of w_q and d."""
    heatmap = panel.maps[key]
    rows, columns = heatmap.frames.shape[1:]
    parts = [grid(key, heatmap)]
    left = right = top = below = 0.05 * columns
    if heatmap.written:  # w_q stands above d: one row of names below serves both
        left, right, top, below = 0.85, 0.1, 0.1, 0.1 if rows > 1 else 0.55
        parts += [label(name, -0.12, i + 0.6, 0.34, "end") for i, name in enumerate(TOKENS if rows > 1 else ("d",))]
        parts += [label(token, i + 0.5, rows + 0.42, 0.34) for i, token in enumerate(TOKENS) if rows == 1]
    return picture(parts, (-left, -top, columns + left + right, rows + top + below), f"{title}, {rows} by {columns}")


def loss_curve(variant: Variant, panel: Panel) -> str:
    """The layer's loss over training with a marker at the shown step, and one step of gradient descent."""
    row = variant["seeds"].index(variant["snapshots"]["seed"])
    points = " ".join("{:g},{:g}".format(*on_curve(variant, row, step)) for step in variant["steps"])
    level = height(variant, row, variant["gd_loss"])
    x, y = panel.marker[-1]
    return (
        f'<svg class="curve" viewBox="-5 -6 {CURVE[0] + 10:g} {CURVE[1] + 12:g}" role="img" aria-label="loss over training">'
        f'<path class="level" d="M0 {level:g}H{CURVE[0]:g}"/><polyline points="{points}"/>'
        f'<circle data-marker="" cx="{x:g}" cy="{y:g}" r="4"/></svg>'
    )


def numbers_table(panel: Panel, heads: Sequence[str], rows: Sequence[Sequence[str]], first_is_text: bool = True) -> str:
    """A small table whose cells are texts of the panel at the slider's position."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' if text else "<td></td>" for text in heads)
    lines = []
    for row in rows:
        cells = [f'<td data-text="{name}">{escape(panel.texts[name][-1])}</td>' for name in row[first_is_text:]]
        lines.append("<tr>" + (f'<th scope="row">{row[0]}</th>' if first_is_text else "") + "".join(cells) + "</tr>")
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def panel_html(panel: Panel, title: str, slider: str, numbers: str, body: str, note: str) -> str:
    """A panel at its last position; the controls are hidden until the script runs."""
    last = len(panel.at) - 1
    return (
        f'<section class="panel" id="{panel.key}" aria-labelledby="{panel.key}-title">\n'
        f'<h3 id="{panel.key}-title">{title}</h3>\n'
        f'<div class="where"><span class="controls" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="{slider}"></span>'
        f'<output data-text="position" aria-live="off">{escape(panel.texts["position"][-1])}</output></div>\n'
        f'{numbers}\n{body}\n<output class="cell" aria-live="polite"></output>\n<p class="note">{escape(note)}</p>\n'
        f"{panel.as_script()}\n</section>"
    )
