"""What `gdssm identify` does: the models of a name, their tasks, the answer as text, as identify.json and as a page."""

import dataclasses
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from .analysis import Identification, IdentificationError, Spread, identify, layer_readouts
from .analysis.layers import depth
from .config import shown
from .experiments.claims import environment, write_json
from .identification_report import JSON, Depths, write_page
from .sources import Source, SourceError, models
from .tasks import LinearRegression, Predictor
from .tokens import as_predictor
from .train import limited_threads

WIDTH = 150  # of the table


def run(
    source: Source, sizes: Mapping[str, Any], out: Path | None, *, tasks: int, seed: int, max_steps: int, layers: bool = True
) -> str:
    """The text to print; where a directory is given, writes identify.json, and the page beside it if matplotlib is installed.

    sizes   fields of LinearRegression that replace those of the model's own tasks; None leaves one as it is
    layers  identify also what is predicted after each layer or iteration; of several seeds, for the one in the middle
    """
    found, own = models(source)
    given = {name: value for name, value in sizes.items() if value is not None}
    task = dataclasses.replace(own or LinearRegression(), **given)
    names, options = list(found), {"tasks": tasks, "seed": seed, "max_steps": max_steps}
    with limited_threads(1):  # the tensors are small
        predictors = [as_predictor(model) if isinstance(model, nn.Module) else model for model in found.values()]
        spread = identify(predictors, task, **options)
        depths = _depths(found, spread, task, options) if layers else None
    text = _text(names, spread, depths)
    if out is None:
        return text
    record = {
        "model": source.name,
        "kind": source.kind,
        "task": dataclasses.asdict(task),
        "seed": seed,
        "max_steps": max_steps,
        "answers": {name: one.as_record() for name, one in zip(names, spread.each, strict=True)},
        "counts": spread.counts,
        "layers": None if depths is None else dataclasses.asdict(depths) | {"each": [one.as_record() for one in depths.each]},
        "environment": environment(),
    }
    try:
        write_json(out / JSON, record)
    except OSError as error:
        raise SourceError(f"--out is {shown(str(out))}, where {JSON} cannot be written: {error.strerror}") from None
    if importlib.util.find_spec("matplotlib") is None:
        return f"{text}\nno page: it needs matplotlib, pip install 'gdssm[report]'"
    return f"{text}\npage: {write_page(out)}"


def _depths(
    found: "Mapping[str, nn.Module | Predictor]", spread: Spread, task: LinearRegression, options: Mapping[str, Any]
) -> Depths | None:
    """What the model in the middle predicts after each layer or iteration; None for one without, or with one only."""
    name = list(found)[spread.middle]
    model = found[name]
    inside = depth(model) if isinstance(model, nn.Module) else None
    if inside is None or inside.count == 1 or not isinstance(model, nn.Module):
        return None
    try:
        shallower = identify(layer_readouts(model)[:-1], task, **options)
    except IdentificationError as error:
        return Depths(name, inside.unit, (), str(error))
    return Depths(name, inside.unit, (*shallower.each, spread.each[spread.middle]), "")


def _text(names: list[str], spread: Spread, depths: Depths | None) -> str:
    """One answer with its table; of several, a line for each and what they have in common. Before the end, the layers."""
    if len(names) == 1:
        lines, last = [_table(spread.each[0])], str(spread.each[0])
    else:
        lines, last = [f"{name}: {one.summary}" for name, one in zip(names, spread.each, strict=True)], str(spread)
    if depths is not None:
        whose = f"{depths.of}, " if len(names) > 1 else ""
        if depths.refused:
            lines.append(f"{whose}after each {depths.unit}: not identified: {depths.refused}")
        lines += [f"{whose}after {depths.unit} {count}: {one.summary}" for count, one in enumerate(depths.each, start=1)]
    return "\n".join([*lines, last])


def _table(found: Identification) -> str:
    """The nearest learner of every family, and what each is to the answer."""
    table = Table(box=None, pad_edge=False)
    table.add_column("learner", no_wrap=True)
    table.add_column("numbers")
    for name in ("distance", "95 % interval", "weights"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for match in found.by_family:
        weights = "" if match.weights_distance is None else f"{match.weights_distance:.3g}"
        low, high = match.interval
        table.add_row(match.name, match.fitted, f"{match.distance:.3g}", f"{low:.3g} to {high:.3g}", weights, found.relation(match))
    output = io.StringIO()
    Console(file=output, width=WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())
