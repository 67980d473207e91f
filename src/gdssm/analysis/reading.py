"""Identifications from their records, as identify.json holds them. ReportError names the part that is missing or wrong."""

import math
from collections.abc import Mapping
from typing import Any

from ..config import near_miss, shown
from ..records import ReportError
from .results import NAMES, Identification, Match


def read_identification(values: Any, where: str) -> Identification:
    """The Identification whose `as_record` this is, with the record's six digits. ReportError that opens with where."""
    record = _object(values, where)
    table = tuple(_match(entry, f"{where}.table[{i}]") for i, entry in enumerate(_list(record, "table", where)))
    if not table:
        raise ReportError(f"{where}.table is empty; at least one learner is needed")
    known = {(match.family, match.steps): match for match in table}

    def of_table(entry: Any, name: str) -> Match:
        match = _match(entry, f"{where}.{name}")
        if (match.family, match.steps) not in known:
            raise ReportError(f"{where}.{name} is {match.name}, which is not in the table")
        return known[match.family, match.steps]

    best = _part(record, "best", where)
    same, ties = (
        tuple(of_table(entry, f"{name}[{i}]") for i, entry in enumerate(_list(record, name, where))) for name in ("same", "ties")
    )
    counts = _object(_part(record, "tasks", where), f"{where}.tasks")
    fitted, scored = (_count(counts, name, f"{where}.tasks") for name in ("fitted", "scored"))
    share = _number(_part(record, "share", where), f"{where}.share")
    return Identification(None if best is None else of_table(best, "best"), same, ties, table, share, (fitted, scored))


def _match(values: Any, where: str) -> Match:
    record = _object(values, where)
    family = _part(record, "family", where)
    if not isinstance(family, str) or family not in NAMES:
        raise ReportError(f"{where}.family is {shown(family)}{near_miss(family, list(NAMES))}; allowed: {', '.join(NAMES)}")
    interval = _list(record, "interval", where)
    if len(interval) != 2:
        raise ReportError(f"{where}.interval holds {len(interval)} numbers; two are needed")
    low, high = (_number(bound, f"{where}.interval") for bound in interval)
    off = _part(record, "weights_distance", where)
    numbers = _object(_part(record, "numbers", where), f"{where}.numbers")
    return Match(
        family,
        None if _part(record, "steps", where) is None else _count(record, "steps", where),
        {name: _numbers(value, f"{where}.numbers.{name}") for name, value in numbers.items()},
        _count(record, "free", where, 0),
        _number(_part(record, "distance", where), f"{where}.distance"),
        (low, high),
        None if off is None else _number(off, f"{where}.weights_distance"),
    )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ReportError(f"{where} must be an object, got {shown(value)}")
    return value


def _part(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise ReportError(f"{where} lacks {name!r}")
    return record[name]


def _list(record: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = _part(record, name, where)
    if not isinstance(value, list):
        raise ReportError(f"{where}.{name} must be a list, got {shown(value)}")
    return value


def _count(record: Mapping[str, Any], name: str, where: str, least: int = 1) -> int:
    value = _part(record, name, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ReportError(f"{where}.{name} must be an integer >= {least}, got {shown(value)}")
    return value


def _number(value: Any, where: str) -> float:
    """A finite number >= 0: distances, their bounds and shares."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ReportError(f"{where} must be a finite number >= 0, got {shown(value)}")
    return float(value)


def _numbers(value: Any, where: str) -> Any:
    """What was fitted: a finite number, a list of them, or rows of them for a matrix."""
    levels = _levels(value, where)
    if where.endswith(".matrix") and levels != {2}:
        raise ReportError(f"{where} must be a list of lists of numbers, got {shown(value)}")
    if not where.endswith(".matrix") and levels not in ({0}, {1}):
        raise ReportError(f"{where} must be a number or a list of numbers, got {shown(value)}")
    return value


def _levels(value: Any, where: str) -> set[int]:
    """How many lists each number stands in."""
    if isinstance(value, list):
        return {level + 1 for entry in value for level in _levels(entry, where)}
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ReportError(f"{where} must hold finite numbers, got {shown(value)}")
    return {0}
