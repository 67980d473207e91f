"""The page of an identification: identify.json as one HTML file that stands alone. Read `write_page` first.

Made from the file alone; the same file gives the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from .analysis.reading import read_identification
from .analysis.results import Identification, Match, Spread, listed
from .config import counted, one_line, shown
from .records import ReportError, read_json
from .report import PAGE, asset, check_page, save_page
from .report_parts import pairs_table, table

JSON, HTML = "identify.json", "identify.html"
ROUNDING = 1e-5  # distances below this one are rounding
SIGNS = {"answer": "●", "the same": "■", "tie": "▲", "": "◇"}
KINDS = {"ready": "ready model", "file": "model file", "run": "training run", "function": "function"}
TASK = {
    "d_x": "input features",
    "d_y": "target features",
    "n_examples": "examples in a context",
    "noise_std": "noise on the targets, standard deviation",
}


@dataclass(frozen=True)
class Depths:
    """What a model predicts after each of its layers or iterations; refused says why that is not known."""

    of: str
    unit: str
    each: tuple[Identification, ...]
    refused: str


@dataclass(frozen=True)
class Identified:
    """The content of identify.json."""

    model: str
    settings: Mapping[str, Any]
    names: tuple[str, ...]
    spread: Spread
    depths: Depths | None
    environment: Mapping[str, Any]


def write_page(directory: Path, out: Path | None = None) -> Path:
    """Read DIR/identify.json, write the page and return its path: out, or DIR/identify.html where that is None.

    ReportError where the file is missing, damaged or lacks something, matplotlib is not installed, or the page cannot be
    written; then nothing is written.
    """
    path = directory / HTML if out is None else Path(out)
    check_page(path)
    source = directory / JSON
    record = read_json(source)
    try:
        page = render(record)
    except ReportError as error:
        raise ReportError(f"{source}: {error}") from None
    return save_page(page, path)


def render(record: Mapping[str, Any]) -> str:
    """The page of the content of identify.json. ReportError that names what is missing or wrong."""
    found = read(record)
    try:
        body = _body(found)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"cannot be drawn: {one_line(str(error))}") from None
    question = '<p class="verdict"><strong>Which learner does this model run in its context?</strong> '
    return PAGE.format(
        title=escape(f"gdssm identify: {found.model}"),
        heading="gdssm identify",
        policy="",
        style=asset("report.css"),
        top=f"{question}{escape(verdict(found))}</p>",
        body=body,
        script="",
    )


def read(record: Mapping[str, Any]) -> Identified:
    """The content of identify.json, checked; what is not known is left alone. ReportError for what is missing or wrong."""
    parts: dict[str, Any] = {}
    for name, kind in (("model", str), ("task", dict), ("seed", int), ("max_steps", int), ("answers", dict), ("environment", dict)):
        parts[name] = record.get(name)
        if name not in record:
            raise ReportError(f"lacks {name!r}")
        if not isinstance(parts[name], kind):
            raise ReportError(f"{name} must be of type {kind.__name__}, got {shown(parts[name])}")
    if not parts["answers"]:
        raise ReportError("answers is empty; at least one is needed")
    each = tuple(read_identification(value, f"answers.{name}") for name, value in parts["answers"].items())
    first = each[0]
    settings: dict[str, Any] = {"model": parts["model"]}
    if isinstance(record.get("kind"), str):
        settings["kind"] = KINDS.get(record["kind"], record["kind"])
    settings |= {
        TASK.get(name, name.replace("_", " ")): value
        for name, value in parts["task"].items()
        if name != "n_queries" and value != []
    }
    settings |= {
        "tasks that the numbers were fitted on": first.tasks[0],
        "tasks that the distances were measured on": first.tasks[1],
        "seed of the tasks": parts["seed"],
        "largest number of steps tried": parts["max_steps"],
    }
    depths = None if record.get("layers") is None else _depths(record["layers"])
    return Identified(parts["model"], settings, tuple(parts["answers"]), Spread(each), depths, parts["environment"])


def _depths(values: Any) -> Depths:
    if not isinstance(values, Mapping) or not isinstance(values.get("each"), list):
        raise ReportError(f"layers must be an object with a list 'each', got {shown(values)}")
    texts = [values.get(name, "") for name in ("of", "unit", "refused")]
    for name, text in zip(("of", "unit", "refused"), texts, strict=True):
        if not isinstance(text, str):
            raise ReportError(f"layers.{name} must be of type str, got {shown(text)}")
    of, unit, refused = texts
    each = tuple(read_identification(one, f"layers.each[{i}]") for i, one in enumerate(values["each"]))
    return Depths(of, unit or "layer", each, refused)


def percent(distance: float) -> str:
    """A distance in words."""
    return "less than 0.001 %" if distance < ROUNDING else f"{100 * distance:.2g} %"


def verdict(found: Identified) -> str:
    """The answer for someone who has not seen the page before."""
    return _several(found) if len(found.names) > 1 else _one(found.model, found.spread.each[0])


def _one(model: str, one: Identification) -> str:
    if one.best is None:
        nearest = one.table[0]
        return (
            f"None of the learners tried: {_numbered(nearest)} is nearest to {model}, and explains {100 * one.explained:.3g} % of "
            f"its predictions; {100 * one.share:.3g} % are asked for."
        )
    low, high = one.best.interval
    off = percent(one.best.distance)
    if one.best.distance >= ROUNDING:
        off += f" (95 % interval {100 * low:.2g} to {100 * high:.2g} %)"
    text = (
        f"{model} predicts as {_numbered(one.best)} would: the two differ by {off}, on {one.tasks[1]} tasks that the "
        "learner was not fitted on."
    )
    if one.ties:
        text += f" These tasks do not tell it from {counted(len(one.ties), 'other learner')}, marked ▲."
    return text


def _numbered(match: Match) -> str:
    return f"{match.name} ({match.fitted})" if match.fitted else match.name


def _several(found: Identified) -> str:
    spread = found.spread
    (answer, count), *others = spread.counts.items()
    text = f"{count} of {len(found.names)} seeds of {found.model} "
    if spread.best is None:
        text += "predict as none of the learners tried"
    else:
        text += f"{'predicts' if count == 1 else 'predict'} as {answer} would"
    text += "".join(f"; {number}: {name}" for name, number in others) + "."
    if "distance" in spread.ranges:
        low, middle, high = spread.ranges["distance"]
        span = f"{percent(low)} to {percent(high)} (median {percent(middle)})" if count > 1 else percent(low)
        text += f" With that answer, the predictions differ by {span}."
    return text


def _body(found: Identified) -> str:
    spread, several = found.spread, len(found.names) > 1
    reading = READING.format(share=f"{100 * spread.each[0].share:.3g}")
    first, *others = _figures(spread, several)
    parts = ["<section>", f'<div class="panels first">{first}\n<div><h2>How to read it</h2>\n{reading}</div></div>']
    if several:
        answers = f"<h2>Answers</h2>\n{_counts_table(spread)}"
        parts.append(f'<div class="panels">{others[0]}\n<div>{answers}</div></div>' if others else answers)
        parts += ["<h2>Seed by seed</h2>", _seeds_table(found), "<h2>Families, over all seeds</h2>", _spread_table(spread)]
    else:
        parts += ["<h2>The nearest learner of each family</h2>", _families_table(spread.each[0])]
    if found.depths is not None:
        parts.append(_layers(found.depths, several))
    parts += ["<h2>What was identified</h2>", pairs_table(found.settings, "What was identified")]
    parts += ["<h2>Environment</h2>", pairs_table(found.environment, "Environment"), "</section>"]
    return "\n".join(parts)


def _figures(spread: Spread, several: bool) -> list[str]:
    """The figure of distances, and of several predictors that of their numbers."""
    try:
        from . import identification_figures as figures
        from .figures import to_svg
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ReportError("the page needs matplotlib: pip install 'gdssm[report]'") from None
    made = [(figures.distance_figure(spread), figures.describe_distances(spread), f"{DISTANCES} {RANGE if several else INTERVAL}")]
    if several and figures.spread_numbers(spread):
        caption = f"The seeds with the answer {next(iter(spread.counts))}: {STRIPS}"
        made.append((figures.spread_figure(spread), figures.describe_spread(spread), caption))
    return [
        f'<figure>\n<div class="card">{to_svg(figure, f"f{i}", label)}</div>\n<figcaption>{escape(caption)}</figcaption>\n</figure>'
        for i, (figure, label, caption) in enumerate(made)
    ]


def _families_table(one: Identification) -> str:
    heads = ("learner", "is", "distance", "95 % interval", "numbers", "distance of weights")
    rows = [
        [
            escape(match.name),
            _relation(one, match),
            f"{match.distance:.3g}",
            f"{match.interval[0]:.3g} to {match.interval[1]:.3g}",
            escape(match.fitted),
            "" if match.weights_distance is None else f"{match.weights_distance:.3g}",
        ]
        for match in one.by_family
    ]
    return table("The nearest learner of each family", heads, rows, numeric=(2, 3, 5)) + _beside(one)


def _relation(one: Identification, match: Match) -> str:
    word = one.relation(match)
    return f'<span class="mark">{SIGNS[word]} {f"<strong>{word}</strong>" if word else "other"}</span>'


def _beside(one: Identification) -> str:
    """Every learner that is the same or a tie; the table has only the nearest of each family."""
    lines = [
        f"<p>{SIGNS[word]} {start}: {escape(listed(matches))}.</p>"
        for word, start, matches in (("the same", "The same predictions", one.same), ("tie", "Ties", one.ties))
        if matches
    ]
    return "".join(f"\n{line}" for line in lines)


def _counts_table(spread: Spread) -> str:
    rows = [[escape(name), str(count)] for name, count in spread.counts.items()]
    return table("Answers", ("answer", "seeds"), rows, numeric=(1,))


def _seeds_table(found: Identified) -> str:
    heads = ("seed", "answer", "distance", "95 % interval", "numbers", "ties")
    rows = []
    for name, one in zip(found.names, found.spread.each, strict=True):
        match = one.best or one.table[0]
        answer = escape(match.name) if one.best else f"none of these; nearest: {escape(match.name)}"
        low, high = match.interval
        ties = str(len(one.ties))
        rows.append([escape(name), answer, f"{match.distance:.3g}", f"{low:.3g} to {high:.3g}", escape(match.fitted), ties])
    return f'<div class="short">{table("Seed by seed", heads, rows, numeric=(2, 3, 5))}</div>'


def _spread_table(spread: Spread) -> str:
    from .identification_figures import families, row_name, row_relation

    rows = []
    for row in families(spread):
        word, words = row_relation(spread, row[0].family)
        distances = [match.distance for match in row]
        ends = [f"{value:.3g}" for value in (median(distances), min(distances), max(distances))]
        rows.append([escape(row_name(row)), f'<span class="mark">{SIGNS[word]}</span> {words or "other"}', *ends])
    heads = ("nearest learner of the family", "is", "median distance", "lowest seed", "highest seed")
    return table("Families, over all seeds", heads, rows, numeric=(2, 3, 4))


def _layers(depths: Depths, several: bool) -> str:
    whose = f" ({depths.of}, the one in the middle)" if several else ""
    title = f"<h2>After each {escape(depths.unit)}{escape(whose)}</h2>"
    if depths.refused:
        return f"{title}\n<p>Not identified: {escape(depths.refused)}.</p>"
    rows = []
    for count, one in enumerate(depths.each, start=1):
        match = one.best or one.table[0]
        answer = escape(match.name) if one.best else f"none of these; nearest: {escape(match.name)}"
        rows.append([f"{escape(depths.unit)} {count}", answer, f"{match.distance:.3g}", escape(match.fitted)])
    heads = ("after", "predicts as", "distance", "numbers")
    return (
        f'{title}\n<p class="note">{DEPTHS}</p>\n'
        f'<div class="short">{table("After each " + depths.unit, heads, rows, numeric=(2,))}</div>'
    )


DISTANCES = "The relative distance of its predictions from those of the nearest learner of each family; left is closer."
DEPTHS = (
    "What the model would predict if it stopped there; all else stays. Only the prediction at the end was asked of it: what a "
    "trained model holds on the way need not be a learner's."
)
INTERVAL = "Lines are 95 % intervals over tasks."
RANGE = "Lines run from the lowest to the highest of the seeds, small strokes are seeds, marks stand at their medians."
STRIPS = "a point for each, a bar at the median. Points are set apart in height only to be seen."
READING = """<ul>
<li><strong>Distance</strong>: 0 is agreement, 1 is as far as predicting 0 always, 0.01 means predictions that differ by
1 %. It is measured on tasks that no number was fitted on.</li>
<li><strong>● Answer</strong>: the learner with the fewest fitted numbers that no other clearly beats. Clearly means nearer
by 1 % for each number that it has in addition, or twice as near, and beyond chance.</li>
<li><strong>■ The same</strong>: with its fitted numbers this learner makes the answer's predictions, to 0.001. It is another
name for it, or a richer family that contains it: gradient descent is gradient descent with momentum 0.</li>
<li><strong>▲ Tie</strong>: other predictions than the answer's, but these tasks do not tell which of the two the model is
nearer to. More tasks, longer contexts or more noise may. A tie with more fitted numbers often is a family that contains the
answer and follows the model's small deviations.</li>
<li><strong>◇ Other</strong>: clearly farther away than the answer.</li>
<li><strong>None of these</strong>: no learner explains {share} % of the predictions' mean square, which is a distance beyond
the dashed line. The nearest ones are shown in any case.</li>
<li>The distance of weights compares the implicit weights dŷ/dx_query. It takes no part in the decision.</li>
</ul>"""
