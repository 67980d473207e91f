"""What `gdssm identify` does: the predictors of a name, their tasks, the answer as a table and as identify.json."""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .analysis import Identification, Spread, identify
from .config import shown
from .experiments.claims import environment, write_json
from .sources import Source, SourceError, predictors
from .tasks import LinearRegression
from .train import limited_threads

WIDTH = 150  # of the table


def run(source: Source, sizes: Mapping[str, Any], out: Path | None, *, tasks: int, seed: int, max_steps: int) -> str:
    """The text to print; writes out/identify.json where a directory is given.

    sizes   fields of LinearRegression that replace those of the model's own tasks; None leaves one as it is
    """
    found, own = predictors(source)
    given = {name: value for name, value in sizes.items() if value is not None}
    task = dataclasses.replace(own or LinearRegression(), **given)
    with limited_threads(1):  # the tensors are small
        spread = identify(list(found.values()), task, tasks=tasks, seed=seed, max_steps=max_steps)
    if out is not None:
        answers = {name: one.as_record() for name, one in zip(found, spread.each, strict=True)}
        record = {"model": source.name, "task": dataclasses.asdict(task), "seed": seed, "max_steps": max_steps}
        try:
            write_json(out / "identify.json", record | {"answers": answers, "counts": spread.counts, "environment": environment()})
        except OSError as error:
            raise SourceError(f"--out is {shown(str(out))}, where identify.json cannot be written: {error.strerror}") from None
    return _text(list(found), spread)


def _text(names: list[str], spread: Spread) -> str:
    """One answer with its table; of several, a line for each and what they have in common."""
    if len(names) == 1:
        return f"{_table(spread.each[0])}\n{spread.each[0]}"
    lines = [f"{name}: {'none of these' if one.best is None else one.best}" for name, one in zip(names, spread.each, strict=True)]
    return "\n".join([*lines, str(spread)])


def _table(found: Identification) -> str:
    """The nearest learner of every family, and what each is to the answer."""
    table = Table(box=None, pad_edge=False)
    table.add_column("learner", no_wrap=True)
    table.add_column("numbers")
    for name in ("distance", "95 % interval", "weights"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    marks = {id(found.best): "answer"} | {id(m): "the same" for m in found.same} | {id(m): "tie" for m in found.ties}
    for match in found.by_family:
        weights = "" if match.weights_distance is None else f"{match.weights_distance:.3g}"
        low, high = match.interval
        table.add_row(
            match.name, match.fitted, f"{match.distance:.3g}", f"{low:.3g} to {high:.3g}", weights, marks.get(id(match), "")
        )
    output = io.StringIO()
    Console(file=output, width=WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())
