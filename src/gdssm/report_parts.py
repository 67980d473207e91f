"""Parts of the report's page as HTML: tables of claims, values and settings, and the figures of a variant."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from .records import KINDS, Claim, ReportError, number

PLAIN = {
    "loss_ratio": "loss, over that of one gradient-descent step on the same tasks",
    "sensitivity_cosine": "cosine between the layer's implicit weights and gradient descent's",
    "sensitivity_difference": "distance between the layer's implicit weights and gradient descent's",
    "prediction_difference": "distance between the layer's predictions and gradient descent's",
    "off_construction": "largest weight where the construction has 0, over the largest of its matrix",
    "success_rate": "share of random layers that became gradient descent",
    "success_rate_lower_95": "that share's lower end of the 95 % interval",
    "construction_is_gradient_descent": "constructed layer against gradient descent, relative difference of predictions",
    "gd_loss_over_closed_form": "loss of one gradient-descent step on these tasks, over its closed form",
    "rate_spread": "how far the learned rates of the features differ, over their mean",
    "rate": "learned rate per summed example",
    "decay_gap": "largest 1 - Λ: what is forgotten per example",
}


def table(label: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table in a box of its own that scrolls; the cells are HTML."""
    right = [' class="number"' if i in numeric else "" for i in range(len(heads))]
    head = "".join(f'<th scope="col"{css}>{escape(text)}</th>' for css, text in zip(right, heads, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{css}>{cell}</td>" for css, cell in zip(right[1:], rest, strict=True))
        lines.append(f'<tr><th scope="row"{right[0]}>{first}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def answer(holds: bool) -> str:
    """A sign and a word, so that no colour is needed."""
    return "✓ yes" if holds else "✗ no"


def plain_name(name: str) -> str:
    """A claim's name in words; what stands before or after a known name goes in brackets."""
    for known in sorted(PLAIN, key=len, reverse=True):
        before, found, after = f"_{name}_".partition(f"_{known}_")
        if found:
            rest = f"{before} {after}".replace("_", " ").strip()
            return f"{PLAIN[known]} ({rest})" if rest else PLAIN[known]
    return name.replace("_", " ")


def claims_table(claims: Sequence[Claim]) -> str:
    """Claims with what was measured, wanted and predicted; what a narrow screen must show comes first."""
    heads = ("claim", "holds", "measured", "target", "predicted", "kind")
    rows = [
        [
            f"{escape(plain_name(claim.name))}<br><code>{escape(claim.name)}</code>",
            f'<span class="{"yes" if claim.holds else "no"}">{answer(claim.holds)}</span>',
            number(claim.value),
            claim.wanted,
            number(claim.predicted),
            f'<abbr title="{KINDS[claim.kind]}">{claim.kind}</abbr>',
        ]
        for claim in claims
    ]
    kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    return table("Claims", heads, rows, numeric=(2, 3, 4)) + f'\n<p class="note">{escape(kinds)}.</p>'


def final_values(variant: Mapping[str, Any]) -> str:
    """The last values of the variant's series over the seeds: what the figures show, as text. Empty without series."""
    names = {
        "loss": "loss per output",
        "sensitivity_cosine": "sensitivity cosine",
        "sensitivity_difference": "sensitivity difference",
        "prediction_difference": "prediction difference",
    }
    ends = {name: [row[-1] for row in variant[key]] for key, name in names.items() if key in variant}
    if "rate" in variant:
        ends["learned rate per summed example"] = variant["rate"]
    rows = [[name, *(number(value) for value in (median(end), min(end), max(end)))] for name, end in ends.items()]
    if "loss" in variant and "gd_loss" in variant:
        ratios = [value / variant["gd_loss"] for value in ends["loss per output"]]
        rows.insert(1, ["loss / loss of one step", *(number(value) for value in (median(ratios), min(ratios), max(ratios)))])
    heads = ("at the last step", "median", "lowest seed", "highest seed")
    return table(f"Final values, {variant['name']}", heads, rows, numeric=(1, 2, 3)) if rows else ""


def pairs_table(values: Mapping[str, Any], label: str) -> str:
    """Names and values."""
    return table(label, ("name", "value"), [[escape(str(key)), escape(shown(value))] for key, value in values.items()])


def shown(value: object) -> str:
    """A setting as text: words for truth values, JSON for lists and objects."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value)


@contextlib.contextmanager
def matplotlib_needed() -> Iterator[None]:
    """A ReportError that says what to install where matplotlib is not there to be imported."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ReportError("figures need matplotlib: pip install 'gdssm[report]'") from None


def plots(variant: Mapping[str, Any], prefix: str) -> str:
    """The variant's figures with captions. KeyError for a missing part, ReportError where matplotlib is not installed."""
    with matplotlib_needed():
        from .figures import PLOTS, to_svg
    made = []
    for i, plot in enumerate(PLOTS):
        if plot.key not in variant:
            continue
        for key in plot.needs:
            _ = variant[key]
        svg = to_svg(plot.draw(variant), f"{prefix}f{i}", plot.describe(variant))
        made.append(f'<figure>\n<div class="card">{svg}</div>\n<figcaption>{escape(plot.caption(variant))}</figcaption>\n</figure>')
    return '<div class="figures">\n' + "\n".join(made) + "\n</div>" if made else ""
