"""Records of runs, read and checked: results.json and record.json. docs/records.md defines them. No torch here.

Read `read_experiments` first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .config import ConfigError, UserError, check_choice, from_mapping

KINDS = {
    "identity": "holds exactly in theory; checked here in floating point",
    "replication": "reported by others; measured again here",
    "hypothesis": "a prediction put to the test; one that fails is a result too",
}
RELATIONS = {"<=": "≤", ">=": "≥", "==": "=", "between": "between"}
FILES = ("results.json", "record.json")


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
    """One results.json without its environment. A training run has no preset, and its claims may be none."""

    experiment: str
    seeds: tuple[int, ...]
    claims: tuple[Claim, ...]
    preset: str = ""


@dataclass(frozen=True)
class Experiment:
    """The two files of one experiment or training run."""

    results: Results
    environment: Mapping[str, Any]
    record: Mapping[str, Any]
    record_path: Path


def read_experiments(directory: Path) -> list[Experiment]:
    """What a directory itself holds, then what its subdirectories hold, by name.

    ReportError where the directory is missing or holds no results, or as in read_experiment.
    """
    try:
        if not directory.is_dir():
            raise ReportError(f"{directory}: {'is a file, not a directory' if directory.exists() else 'no such directory'}")
    except OSError as error:  # e.g. a name too long
        raise ReportError(f"{directory}: cannot be read: {error.strerror}") from None
    paths = _experiments(directory)
    if not paths:
        raise ReportError(f"{directory}: holds no experiment, that is no results.json or NAME/results.json")
    return [read_experiment(path) for path in paths]


def _experiments(directory: Path) -> list[Path]:
    inside = sorted({path.parent for name in FILES for path in directory.glob(f"*/{name}")})
    return [directory] * any((directory / name).exists() for name in FILES) + inside


def holds_experiments(directory: Path) -> bool:
    """Whether read_experiments has something to read there."""
    return bool(_experiments(directory))


def read_experiment(path: Path) -> Experiment:
    """The two files of path. ReportError where one is missing, is not JSON or lacks something."""
    results_path, record_path = (path / name for name in FILES)
    content = read_json(results_path)
    results = parse_results(content, str(results_path))
    if not isinstance(content.get("environment"), dict):
        raise ReportError(f"{results_path}: environment must be an object")
    record: dict[str, Any] = {"variants": [], "blocks": []} | read_json(record_path)
    shape = {"title": str, "question": str, "settings": dict, "variants": list, "blocks": list}
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
    except RecursionError:
        raise ReportError(f"{path}: is nested too deeply") from None
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


def rounded(values: Any, digits: int = 6) -> Any:
    """Nested lists of numbers with this many significant digits."""
    if isinstance(values, list):
        return [rounded(value, digits) for value in values]
    return float(f"{values:.{digits}g}")


def middle_seed(final_losses: Sequence[float]) -> int:
    """Position of the seed with the median final loss, the lower of two: the layer that figures and views show."""
    order = sorted(range(len(final_losses)), key=lambda i: final_losses[i])
    return order[(len(order) - 1) // 2]
