"""The report of saved experiments: one HTML page that stands alone, and a table for the terminal.

Made from saved records, never from a live run; the same records give the same bytes. Read `write_report` first.
"""

import base64
import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .blocks import Block, from_records
from .config import one_line
from .interactive import view
from .records import FILES, Experiment, ReportError, number, parse_results, read_experiments
from .report_blocks import block_html
from .report_parts import answer, claims_table, final_values, pairs_table, plots
from .verdicts import about, asks_about_gradient_descent, opening, overview, verdict

if TYPE_CHECKING:
    from rich.table import Table


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


def render(experiments: Sequence[Experiment]) -> str:
    """The page. ReportError where a block is malformed or a figure cannot be drawn."""
    views = dict(all_views(experiments))
    blocks = [from_records(experiment.record["blocks"], str(experiment.record_path)) for experiment in experiments]
    names = ", ".join(experiment.results.experiment for experiment in experiments)
    openings = [opening(one, guarded(one, None, partial(verdict, one.results, one.record["variants"]))) for one in experiments]
    several = len(experiments) > 1
    top = f"{overview(experiments)}\n{contents(experiments, blocks)}" if several else openings[0]
    first = min(views, default=None)
    if first is not None:
        title = f"{experiments[first[0]].results.experiment}, {experiments[first[0]].record['variants'][first[1]]['name']}"
        top += f'\n<h2>What the recurrent state does <span class="note">({escape(title)})</span></h2>\n{views.pop(first)}'
    parts = [
        section(
            experiment,
            f"e{i}",
            openings[i] if several else "",
            blocks[i],
            {j: html for (at, j), html in views.items() if at == i},
        )
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


def contents(experiments: Sequence[Experiment], blocks: Sequence[Sequence[Block]]) -> str:
    """Links to the experiments and to what each shows, folded away."""
    lines = []
    for i, (experiment, shown) in enumerate(zip(experiments, blocks, strict=True)):
        parts = [f'<a href="#e{i}b{j}">{escape(block.title)}</a>' for j, block in enumerate(shown)]
        ending = f": {', '.join(parts)}" if parts else ""
        lines.append(f'<li><a href="#e{i}">{escape(experiment.record["title"])}</a>{ending}</li>')
    listed = "\n".join(lines)
    return f'<nav aria-label="Contents"><details><summary>Contents</summary>\n<ol>\n{listed}\n</ol>\n</details></nav>'


def section(experiment: Experiment, anchor: str, opening: str, blocks: Sequence[Block], views: Mapping[int, str]) -> str:
    """One experiment: opening, claims, blocks, final values, figures, settings, environment; views by the variant's number.

    The question is left out where the opening, here or at the top of the page, asks it.
    """
    results, record = experiment.results, experiment.record
    parts = [
        f'<section id="{anchor}">',
        f"<h2>{escape(record['title'])}</h2>",
        f"<p>{escape(record['question'])}</p>" if asks_about_gradient_descent(experiment) else "",
        opening,
        f'<p class="note">{escape(f"Experiment {about(results)}.")}</p>',
    ]
    if results.claims:
        parts += ["<h3>Claims</h3>", claims_table(results.claims)]
    parts += [block_html(block, f"{anchor}b{i}") for i, block in enumerate(blocks)]
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
