"""The report of saved experiments: one HTML page that stands alone, and a table for the terminal.

Reads DIR/NAME/results.json and record.json, never a live run; the same records give the same bytes. Read `write_report` first.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from .config import ConfigError, UserError, check_choice, from_mapping

if TYPE_CHECKING:
    from rich.table import Table

KINDS = {
    "identity": "holds exactly in theory; checked here in floating point",
    "replication": "reported by others; measured again here",
    "hypothesis": "a prediction put to the test; one that fails is a result too",
}
RELATIONS = {"<=": "≤", ">=": "≥", "==": "=", "between": "between"}
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


class ReportError(UserError):
    """Records that cannot be reported; one line that names the file."""


@dataclass(frozen=True)
class Claim:
    """One claim of results.json; target is [low, high] where the relation is "between"."""

    name: str
    kind: str
    predicted: float
    value: float
    target: float | tuple[float, ...]
    relation: str
    holds: bool

    def __post_init__(self) -> None:
        check_choice(f"kind of {self.name!r}", self.kind, tuple(KINDS))
        check_choice(f"relation of {self.name!r}", self.relation, tuple(RELATIONS))
        bounds = len(self.target) if isinstance(self.target, tuple) else 0
        if bounds != (2 if self.relation == "between" else 0):
            raise ConfigError(f"target of {self.name!r} is {self.target!r}, which does not fit the relation {self.relation!r}")

    @property
    def wanted(self) -> str:
        """The target with its relation, e.g. "≤ 1.02"."""
        if isinstance(self.target, tuple):
            return f"{number(self.target[0])} to {number(self.target[1])}"
        return f"{RELATIONS[self.relation]} {number(self.target)}"


@dataclass(frozen=True)
class Results:
    """One results.json without its environment."""

    experiment: str
    preset: str
    seeds: tuple[int, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Experiment:
    """The two files of one experiment."""

    results: Results
    environment: Mapping[str, Any]
    record: Mapping[str, Any]
    record_path: Path


def write_report(directory: Path) -> Path:
    """Read every DIR/*/results.json with the record.json beside it, write DIR/report.html and return its path.

    The page replaces an older one in one move. ReportError where there are no results, a file is missing or holds something
    else, or matplotlib is not installed; then nothing is written.
    """
    directory = Path(directory)
    page = render(read_experiments(directory))
    path = directory / "report.html"
    unfinished = directory / f".report.html.{os.getpid()}"
    try:
        unfinished.write_text(page, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def summary_table(results: Mapping[str, Any]) -> "Table":
    """The claims of one results.json as a table for a terminal of 80 columns; the report has more of each claim.

    ReportError where it is not a results.json's content.
    """
    from rich.table import Table
    from rich.text import Text

    read = parse_results(results, "results")
    title = f"{read.experiment}, preset {read.preset}, {counted(len(read.seeds), 'seed')}"
    table = Table(title=Text(title), caption=Text(verdict(read)))
    table.add_column("claim", overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("holds")
    for claim in read.claims:
        cells = (claim.name, number(claim.value), claim.wanted)
        table.add_row(*map(Text, cells), Text(answer(claim.holds), style="green" if claim.holds else "bold red"))
    return table


def read_experiments(directory: Path) -> list[Experiment]:
    """Every experiment of a directory, by name. ReportError as in write_report."""
    paths = sorted({path.parent for name in ("results.json", "record.json") for path in directory.glob(f"*/{name}")})
    if not paths:
        raise ReportError(f"{directory}: holds no experiment, that is no NAME/results.json")
    return [read_experiment(path) for path in paths]


def read_experiment(path: Path) -> Experiment:
    """The two files of path. ReportError where one is missing, is not JSON or lacks something."""
    results_path, record_path = path / "results.json", path / "record.json"
    content = read_json(results_path)
    results = parse_results(content, str(results_path))
    if not isinstance(content.get("environment"), dict):
        raise ReportError(f"{results_path}: environment must be an object")
    record = read_json(record_path)
    shape = {"title": str, "question": str, "settings": dict, "variants": list}
    for key, kind in shape.items():
        if not isinstance(record.get(key), kind):
            raise ReportError(f"{record_path}: {key} must be of type {kind.__name__}, got {record.get(key)!r:.80}")
    for variant in record["variants"]:
        if not isinstance(variant, dict) or not isinstance(variant.get("name"), str):
            raise ReportError(f"{record_path}: every variant must be an object with a name, got {variant!r:.80}")
    return Experiment(results, content["environment"], record, record_path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of finite numbers, or ReportError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_finite)
    except FileNotFoundError:
        raise ReportError(f"{path}: is missing") from None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ReportError(f"{path}: is no JSON of finite numbers: {error}") from None
    if not isinstance(value, dict):
        raise ReportError(f"{path}: holds no JSON object")
    return value


def _not_finite(name: str) -> None:
    raise ValueError(f"{name} is not finite")


def parse_results(values: Mapping[str, Any], where: str) -> Results:
    """Results from the content of results.json; further keys are left alone. ReportError that opens with where."""
    claims = values.get("claims")
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise ReportError(f"{where}: claims must be a list of objects")
    known = [_only(Claim, claim) for claim in claims]
    try:
        return from_mapping(Results, {**_only(Results, values), "claims": known})
    except ConfigError as error:
        raise ReportError(f"{where}: {error}") from None


def _only(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(cls) if field.name in values}


def number(value: float) -> str:
    """Six significant digits."""
    return f"{value:.6g}"


def answer(holds: bool) -> str:
    """A sign and a word, so that no colour is needed."""
    return "✓ yes" if holds else "✗ no"


def counted(count: int, noun: str) -> str:
    """E.g. "1 seed", "20 seeds"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


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


def verdict(results: Results) -> str:
    """One line that answers whether it became gradient descent.

    Yes: every identity and replication holds. The count comes from success_rate and the seeds, where both are there.
    """
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


def render(experiments: Sequence[Experiment]) -> str:
    """The page. ReportError where a figure cannot be drawn."""
    single = len(experiments) == 1
    verdicts = [verdict(experiment.results) for experiment in experiments]
    if single:
        top = f'<p class="verdict"><strong>Did it become gradient descent?</strong> {escape(verdicts[0])}</p>'
    else:
        agree = sum(line.startswith("Yes") for line in verdicts)
        lines = "".join(
            f'<li><a href="#e{i}">{escape(experiment.results.experiment)}</a>: {escape(line)}</li>\n'
            for i, (experiment, line) in enumerate(zip(experiments, verdicts, strict=True))
        )
        top = (
            '<p class="verdict"><strong>Did it become gradient descent?</strong> '
            f"{'Yes' if agree == len(verdicts) else 'Not entirely' if agree else 'No'}: "
            f"{agree} of {len(verdicts)} experiments came out as the theory says.</p>\n<ul>\n{lines}</ul>"
        )
    names = ", ".join(experiment.results.experiment for experiment in experiments)
    body = "\n".join(section(experiment, f"e{i}") for i, experiment in enumerate(experiments))
    return PAGE.format(title=escape(f"gdssm: {names}"), style=CSS, top=top, body=body)


def section(experiment: Experiment, anchor: str) -> str:
    """One experiment: claims, final values, figures, settings, environment."""
    results, record = experiment.results, experiment.record
    about = f"Experiment {results.experiment}, preset {results.preset}, {counted(len(results.seeds), 'seed')}."
    parts = [
        f'<section id="{anchor}">',
        f"<h2>{escape(record['title'])}</h2>",
        f"<p>{escape(record['question'])}</p>",
        f'<p class="note">{escape(about)}</p>',
        "<h3>Claims</h3>",
        claims_table(results.claims),
    ]
    for i, variant in enumerate(record["variants"]):
        parts.append(f"<h3>Trained layers: {escape(variant['name'])}</h3>")
        try:
            parts += [final_values(variant), plots(variant, f"{anchor}v{i}")]
        except KeyError as error:
            raise ReportError(f"{experiment.record_path}: variant {variant['name']!r} lacks {error.args[0]!r}") from None
        except (ValueError, TypeError, IndexError) as error:
            if isinstance(error, ReportError):
                raise
            line = " ".join(str(error).split())
            raise ReportError(f"{experiment.record_path}: variant {variant['name']!r} cannot be drawn: {line}") from None
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


CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --faint: #5a5a5a; --paper: #ffffff; --line: #d0d0d0; --band: #f3f4f6;
  --link: #00558c; --yes: #00694c; --no: #a83f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --faint: #b0b0b0; --paper: #16181c; --line: #44474d;
  --band: #22252b; --link: #7cc4f2; --yes: #4fd1a5; --no: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.25rem; margin-top: 2rem; } h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
a { color: var(--link); }
code { font-size: .85em; color: var(--faint); }
abbr { text-decoration: underline dotted; white-space: nowrap; }
.verdict { font-size: 1.15rem; padding: .75rem 1rem; background: var(--band); border-left: .3rem solid var(--link); }
.verdict strong { display: block; font-size: 1rem; }
.note, figcaption { color: var(--faint); font-size: .9rem; max-width: 46rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .95rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { background: var(--band); white-space: nowrap; }
tbody th { font-weight: normal; min-width: 11rem; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.yes, .no { font-weight: 600; white-space: nowrap; } .yes { color: var(--yes); } .no { color: var(--no); }
.figures { columns: 2 24rem; column-gap: 1.5rem; margin-top: 1rem; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
.card { background: #ffffff; border: 1px solid var(--line); border-radius: .3rem; padding: .4rem; }
.card svg { display: block; width: 100%; max-width: 36rem; height: auto; margin: auto; }
figcaption { margin-top: .4rem; }
@media print { :root { color-scheme: light; --ink: #000000; --faint: #333333; --paper: #ffffff; --line: #999999; --band: #ffffff;
    --link: #000000; --yes: #000000; --no: #000000; }
  body { max-width: none; padding: 0; font-size: 10pt; } .scroll { overflow: visible; } h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; } .figures { columns: 2 18rem; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>gdssm report</h1>
{top}
</header>
<main>
{body}
</main>
</body>
</html>
"""
