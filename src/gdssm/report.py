"""The report of saved experiments: one HTML page that stands alone, and a table for the terminal.

Made from saved records, never from a live run; the same records give the same bytes. Read `write_report` first.
"""

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from .config import counted, one_line
from .interactive import view
from .records import FILES, KINDS, Claim, Experiment, ReportError, Results, number, parse_results, read_experiments

if TYPE_CHECKING:
    from rich.table import Table

GOALS = {"one-step": "one step of gradient descent"}
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


def write_report(directory: Path, out: Path | None = None) -> Path:
    """Read the records of a directory (records.read_experiments), write the page and return its path.

    out is DIR/report.html where None; the page replaces an older one in one move. ReportError where there are no results, a
    file is missing or holds something else, matplotlib is not installed, or out cannot be written; then nothing is written.
    """
    directory = Path(directory)
    path = directory / "report.html" if out is None else Path(out)
    check_page(path)
    return save_page(render(read_experiments(directory)), path)


def check_page(path: Path) -> None:
    """ReportError where a page of this name would replace data."""
    if path.name in FILES or path.suffix in (".json", ".jsonl", ".safetensors"):
        raise ReportError(f"{path}: the page would stand where a record or other data belong; it needs another name")


def save_page(page: str, path: Path) -> Path:
    """Write a page in one move, in a directory that exists, and return its path; ReportError where it cannot be written."""
    unfinished = path.parent / f".{path.name}.{os.getpid()}"
    try:
        if path.is_dir():
            raise ReportError(f"{path}: is a directory; the page needs the name of a file")
        unfinished.write_text(page, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    return path


def summary_table(results: Mapping[str, Any]) -> "Table":
    """The claims of one results.json as a table for a terminal of 80 columns; the report has more of each claim.

    ReportError where it is not a results.json's content.
    """
    from rich.table import Table
    from rich.text import Text

    read = parse_results(results, "results")
    title = about(read)
    table = Table(title=Text(title), caption=Text(verdict(read)))
    table.add_column("claim", overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("holds")
    for claim in read.claims:
        cells = (claim.name, number(claim.value), claim.wanted)
        table.add_row(*map(Text, cells), Text(answer(claim.holds), style="green" if claim.holds else "bold red"))
    return table


def answer(holds: bool) -> str:
    """A sign and a word, so that no colour is needed."""
    return "✓ yes" if holds else "✗ no"


def about(results: Results) -> str:
    """What was run, e.g. "one-step, preset quick, 20 seeds"."""
    preset = f", preset {results.preset}" if results.preset else ""
    return f"{results.experiment}{preset}, {counted(len(results.seeds), 'seed')}"


def plain_name(name: str) -> str:
    """A claim's name in words; what stands before or after a known name goes in brackets."""
    for known in sorted(PLAIN, key=len, reverse=True):
        before, found, after = f"_{name}_".partition(f"_{known}_")
        if found:
            rest = f"{before} {after}".replace("_", " ").strip()
            return f"{PLAIN[known]} ({rest})" if rest else PLAIN[known]
    return name.replace("_", " ")


def successes(rate: float, seeds: int, goal: str) -> str:
    """How many random layers became goal: a count and the rate's interval, or a share where the rate is not one over seeds."""
    from .analysis import wilson_interval  # imports torch

    count = round(rate * seeds)
    if seeds == 0 or not 0 <= count <= seeds or abs(rate * seeds - count) > 1e-3:
        return f"{100 * rate:.3g} % of the random layers became {goal}"
    low, high = wilson_interval(count, seeds)
    interval = f"95 % interval of the rate: {100 * low:.0f} to {100 * high:.0f} %"
    return f"{count} of {counted(seeds, 'random layer')} became {goal} ({interval})"


def verdict(results: Results, variants: Sequence[Mapping[str, Any]] = ()) -> str:
    """One line that answers whether it became gradient descent.

    Yes: every identity and replication holds. The count comes from success_rate and the seeds, where both are there.
    Without claims there is no yes or no, only what the variants of the record measured.
    """
    if not results.claims:
        return measured(variants)
    failed = [claim for claim in results.claims if not claim.holds]
    required = [claim for claim in failed if claim.kind != "hypothesis"]
    rates = [claim.value for claim in results.claims if claim.name == "success_rate"]
    opening = "Yes"
    if required:
        opening = "Not entirely" if any(rates) else "No"
    if rates:
        goal = GOALS.get(results.experiment, "gradient descent")
        line = f"{opening}: {successes(rates[0], len(results.seeds), goal)}"
    else:
        line = f"{opening}: {len(results.claims) - len(failed)} of {counted(len(results.claims), 'claim')} hold"
    for kind, names in (
        ("claim", [claim.name for claim in required]),
        ("hypothesis", [claim.name for claim in failed if claim not in required]),
    ):
        if names:
            several = {"claim": "claims", "hypothesis": "hypotheses"}[kind]
            shown = f"{kind} does" if len(names) == 1 else f"{several} do"
            line += f"; {len(names)} {shown} not hold: {', '.join(names)}"
    return line + "."


def measured(variants: Sequence[Mapping[str, Any]]) -> str:
    """The last loss over that of one step of gradient descent and the last cosine, of each variant's worst seed."""
    lines = []
    for variant in variants:
        if not {"loss", "gd_loss", "sensitivity_cosine", "name"} <= variant.keys():
            continue
        losses = [row[-1] for row in variant["loss"]]
        ratio, cosine = max(losses) / variant["gd_loss"], min(row[-1] for row in variant["sensitivity_cosine"])
        whose = f"worst of {len(losses)} seeds" if len(losses) > 1 else "one seed"
        name = f"{variant['name']}: " if len(variants) > 1 else ""
        lines.append(f"{name}Loss {ratio:.5g} times one step of gradient descent, cosine {cosine:.5f} ({whose}).")
    return " ".join(lines) or "No claims were tested, and the record has no loss and cosine to compare with gradient descent."


def render(experiments: Sequence[Experiment]) -> str:
    """The page. ReportError where a figure cannot be drawn."""
    views = dict(all_views(experiments))
    names = ", ".join(experiment.results.experiment for experiment in experiments)
    first = min(views, default=None)
    top = answers(experiments)
    if first is not None:
        title = f"{experiments[first[0]].results.experiment}, {experiments[first[0]].record['variants'][first[1]]['name']}"
        top += f'\n<h2>What the recurrent state does <span class="note">({escape(title)})</span></h2>\n{views.pop(first)}'
    parts = [
        section(experiment, f"e{i}", {j: html for (at, j), html in views.items() if at == i})
        for i, experiment in enumerate(experiments)
    ]
    script = asset("report.js") if first is not None else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return PAGE.format(
        title=escape(f"gdssm: {names}"),
        heading="gdssm report",
        policy=f"; script-src 'sha256-{digest}'" if script else "",
        style=asset("report.css"),
        top=top,
        body="\n".join(parts),
        script=f"<script>{script}</script>\n" if script else "",
    )


def asset(name: str) -> str:
    """A file of the package's assets."""
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def answers(experiments: Sequence[Experiment]) -> str:
    """The verdict; where there are several experiments, how many agree and the verdict of each."""
    verdicts = [
        guarded(experiment, None, partial(verdict, experiment.results, experiment.record["variants"])) for experiment in experiments
    ]
    question = '<p class="verdict"><strong>Did it become gradient descent?</strong> '
    if len(experiments) == 1:
        return f"{question}{escape(verdicts[0])}</p>"
    tested = [line for line, experiment in zip(verdicts, experiments, strict=True) if experiment.results.claims]
    agree = sum(line.startswith("Yes") for line in tested)
    line = "No claims were tested."
    if tested:
        opening = "Yes" if agree == len(tested) else "Not entirely" if agree else "No"
        line = f"{opening}: {agree} of {counted(len(tested), 'experiment')} came out as the theory says."
    lines = "".join(
        f'<li><a href="#e{i}">{escape(experiment.results.experiment)}</a>: {escape(line)}</li>\n'
        for i, (experiment, line) in enumerate(zip(experiments, verdicts, strict=True))
    )
    return f"{question}{line}</p>\n<ul>\n{lines}</ul>"


def all_views(experiments: Sequence[Experiment]) -> list[tuple[tuple[int, int], str]]:
    """(experiment, variant) and the interactive view of each that has one; the second's address names end in 2, and so on."""
    found: list[tuple[tuple[int, int], str]] = []
    for i, experiment in enumerate(experiments):
        for j, variant in enumerate(experiment.record["variants"]):
            suffix = str(len(found) + 1) if found else ""
            html = guarded(experiment, variant, partial(view, variant, suffix))
            if html:
                found.append(((i, j), html))
    return found


def guarded(experiment: Experiment, variant: Mapping[str, Any] | None, make: Callable[[], str]) -> str:
    """make(), whose complaints about a variant become a ReportError of one line."""
    where = f"{experiment.record_path}: " + ("a variant" if variant is None else f"variant {variant['name']!r}")
    try:
        return make()
    except ReportError:
        raise
    except KeyError as error:
        raise ReportError(f"{where} lacks {error.args[0]!r}") from None
    except (ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        line = one_line(str(error))
        raise ReportError(f"{where} cannot be drawn: {line}") from None


def section(experiment: Experiment, anchor: str, views: Mapping[int, str]) -> str:
    """One experiment: claims, final values, figures, settings, environment; views by the variant's number."""
    results, record = experiment.results, experiment.record
    parts = [
        f'<section id="{anchor}">',
        f"<h2>{escape(record['title'])}</h2>",
        f"<p>{escape(record['question'])}</p>",
        f'<p class="note">{escape(f"Experiment {about(results)}.")}</p>',
    ]
    if results.claims:
        parts += ["<h3>Claims</h3>", claims_table(results.claims)]
    for i, variant in enumerate(record["variants"]):
        parts += [
            f"<h3>Trained layers: {escape(variant['name'])}</h3>",
            views.get(i, ""),
            guarded(experiment, variant, partial(final_values, variant)),
            guarded(experiment, variant, partial(plots, variant, f"{anchor}v{i}")),
        ]
    parts += ["<h3>Settings</h3>", pairs_table(record["settings"], "Settings")]
    parts += ["<h3>Environment</h3>", pairs_table(experiment.environment, "Environment"), "</section>"]
    return "\n".join(part for part in parts if part)


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


def table(label: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table in a box of its own that scrolls; the cells are HTML."""
    right = [' class="number"' if i in numeric else "" for i in range(len(heads))]
    head = "".join(f'<th scope="col"{css}>{escape(text)}</th>' for css, text in zip(right, heads, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{css}>{cell}</td>" for css, cell in zip(right[1:], rest, strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def plots(variant: Mapping[str, Any], prefix: str) -> str:
    """The variant's figures with captions. KeyError for a missing part, ReportError where matplotlib is not installed."""
    try:
        from .figures import PLOTS, to_svg
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ReportError("figures need matplotlib: pip install 'gdssm[report]'") from None
    made = []
    for i, plot in enumerate(PLOTS):
        if plot.key not in variant:
            continue
        for key in plot.needs:
            _ = variant[key]
        svg = to_svg(plot.draw(variant), f"{prefix}f{i}", plot.describe(variant))
        made.append(f'<figure>\n<div class="card">{svg}</div>\n<figcaption>{escape(plot.caption(variant))}</figcaption>\n</figure>')
    return '<div class="figures">\n' + "\n".join(made) + "\n</div>" if made else ""


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{heading}</h1>
{top}
</header>
<main>
{body}
</main>
{script}</body>
</html>
"""
