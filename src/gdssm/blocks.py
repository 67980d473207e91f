"""What an experiment shows besides its claims: texts, tables, curves and dots, as data. No torch, no matplotlib.

An experiment puts `as_records(blocks)` into record["blocks"]; the report makes HTML and drawings of them, in their order.
Every block checks itself: a wrong length, a number that is not finite or has no place on a logarithmic axis is a ConfigError
of one line. Lists are taken for tuples, and numbers of any type (also NumPy's) for Python's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from .config import ConfigError, check_choice, check_fields, from_mapping, shown
from .records import ReportError

Cell = str | bool | int | float | None
MOST_SERIES = 8  # lines or groups of dots that colours, dashes and markers tell apart
MOST_REFERENCES = 3
MOST_ROWS = 120  # of dots in one figure


@dataclass(frozen=True)
class Text:
    """Paragraphs under a title."""

    title: str
    paragraphs: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        _check_some("paragraphs", self.paragraphs)


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads. Floats are shown with four significant digits, None as a dash, truth values as yes and no.

    A column whose cells are all numbers or None is right-aligned. note stands below the table.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_some("heads", self.heads)
        _check_some("rows", self.rows)
        for i, row in enumerate(self.rows):
            if len(row) != len(self.heads):
                raise ConfigError(f"rows[{i}] has {len(row)} cells, there are {len(self.heads)} heads")
            _check_numbers(f"rows[{i}]", row)


@dataclass(frozen=True)
class Series:
    """One curve: y over x, both (P,); low and high, both (P,) or both None, are the ends of its spread.

    Where there is a spread, x ascends. A reference is a dashed black line without markers; of a single point, a level across
    the picture.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        _check_some("x", self.x)
        for name in ("x", "y", "low", "high"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != len(self.x):
                raise ConfigError(f"{name} of series {shown(self.label)} has {len(values)} values, x has {len(self.x)}")
            _check_numbers(f"{name} of series {shown(self.label)}", values)
        if (self.low is None) != (self.high is None):
            raise ConfigError(f"low and high of series {shown(self.label)} must both be given or both be None")
        if self.low is not None and self.high is not None:
            if any(low > high for low, high in zip(self.low, self.high, strict=True)):
                raise ConfigError(f"low of series {shown(self.label)} lies above high somewhere")
            if any(left >= right for left, right in pairwise(self.x)):
                raise ConfigError(f"x of series {shown(self.label)} must ascend where it has a spread")


@dataclass(frozen=True)
class Lines:
    """Curves in one pair of axes: at most MOST_SERIES and MOST_REFERENCES references. The caption says what a spread is."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    caption: str
    x_log: bool = False
    y_log: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        _check_some("series", self.series)
        _check_distinct("series", [series.label for series in self.series])
        references = sum(series.reference for series in self.series)
        for count, most, what in (
            (len(self.series) - references, MOST_SERIES, "curves"),
            (references, MOST_REFERENCES, "references"),
        ):
            if count > most:
                raise ConfigError(f"series holds {count} {what}; at most {most} can be told apart, so make several figures of them")
        for series in self.series:
            if self.x_log:
                _check_positive(f"x of series {shown(series.label)}", series.x)
            if self.y_log:
                for name in ("y", "low", "high"):
                    _check_positive(f"{name} of series {shown(series.label)}", getattr(series, name) or ())


@dataclass(frozen=True)
class Row:
    """One value per seed; None where a seed diverged or has none. Rows of the same group have one colour and marker."""

    label: str
    values: tuple[float | None, ...]
    group: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_some("values", self.values)
        _check_numbers(f"values of row {shown(self.label)}", self.values)

    @property
    def known(self) -> tuple[float, ...]:
        """The values that are not None."""
        return tuple(value for value in self.values if value is not None)

    @property
    def median(self) -> float | None:
        """The median of the known values, None without any."""
        return median(self.known) if self.known else None


@dataclass(frozen=True)
class Dots:
    """One line per row with a dot for every seed and a mark at the median; at most MOST_ROWS rows in MOST_SERIES groups.

    reference is a vertical line, named by reference_label. scale holds the ends of the axis; where it is None they are those of
    the values, but a few values far from all others do not stretch it. Values beyond the ends stand at the margin, as a mark.
    """

    title: str
    x_label: str
    rows: tuple[Row, ...]
    caption: str
    x_log: bool = False
    reference: float | None = None
    reference_label: str = ""
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _check_some("rows", self.rows)
        _check_distinct("rows", [f"{row.group}, {row.label}" if row.group else row.label for row in self.rows])
        if len(self.rows) > MOST_ROWS:
            raise ConfigError(f"rows holds {len(self.rows)} rows; at most {MOST_ROWS} fit one figure, so make several of them")
        if len(self.groups) > MOST_SERIES:
            raise ConfigError(f"rows are in {len(self.groups)} groups; at most {MOST_SERIES} can be told apart")
        _check_numbers("reference", [self.reference])
        _check_numbers("scale", self.scale or ())
        if self.scale is not None and self.scale[0] >= self.scale[1]:
            raise ConfigError(f"scale must ascend, got {shown(self.scale)}")
        if self.x_log:
            for row in self.rows:
                _check_positive(f"values of row {shown(row.label)}", row.known)
            _check_positive("reference", [] if self.reference is None else [self.reference])
            _check_positive("scale", self.scale or ())

    @property
    def groups(self) -> dict[str, tuple[Row, ...]]:
        """The rows of every group, in the order in which groups and rows come first."""
        names = dict.fromkeys(row.group for row in self.rows)
        return {name: tuple(row for row in self.rows if row.group == name) for name in names}


Block = Text | Table | Lines | Dots
KINDS: dict[str, type[Text] | type[Table] | type[Lines] | type[Dots]] = {"text": Text, "table": Table, "lines": Lines, "dots": Dots}


def as_records(blocks: Iterable[Block]) -> list[dict[str, Any]]:
    """The blocks as JSON data: their fields, and which kind of block each is."""
    names = {cls: name for name, cls in KINDS.items()}
    return [{"kind": names[type(block)], **asdict(block)} for block in blocks]


def from_records(values: Sequence[Any], where: str) -> tuple[Block, ...]:
    """The blocks that as_records wrote, read from JSON. ReportError of one line that opens with where, e.g. a file."""
    found: list[Block] = []
    try:
        for i, value in enumerate(values):
            if not isinstance(value, Mapping):
                raise ConfigError(f"blocks[{i}] must be an object, got {shown(value)}")
            check_choice(f"kind of blocks[{i}]", value.get("kind"), tuple(KINDS))
            rest = {key: one for key, one in value.items() if key != "kind"}
            found.append(from_mapping(KINDS[value["kind"]], rest, f"blocks[{i}]."))
    except ConfigError as error:
        raise ReportError(f"{where}: {error}") from None
    return tuple(found)


def _check_some(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ConfigError(f"{name} is empty; at least one is needed")


def _check_distinct(name: str, labels: Sequence[str]) -> None:
    seen = set()
    for label in labels:
        if label in seen:
            raise ConfigError(f"{name} holds two with the label {shown(label)}")
        seen.add(label)


def _check_numbers(name: str, values: Iterable[Cell]) -> None:
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} holds {value}, which is not finite; None says that there is no value")


def _check_positive(name: str, values: Iterable[float]) -> None:
    for value in values:
        if value <= 0:
            raise ConfigError(f"{name} holds {value}, which has no place on a logarithmic axis")
