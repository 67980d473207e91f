"""Tables of numbers in CSV files: checked whole before anything else runs, then read row by row in constant memory.

A file is comma-separated UTF-8 text; its first line names the columns, every other cell is a finite number. Lines are
counted as an editor counts them, the header being line 1. No torch and no numpy here: a file that cannot be used is
reported before anything heavy is imported.
"""

import csv
import math
import os
import random
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .config import UserError, near_miss, shown

Watch = Callable[[float], None]  # called now and then with the fraction of the file that has been read

_LONGEST_LINE = 1 << 24  # bytes: a file without line breaks must not be read into memory whole
_FARTHEST_QUERY = 1e100  # standard deviations: its square, times any number of columns, is still a float
_MISSING = frozenset({"", "?", "-", ".", "#n/a", "n/a", "na", "nan", "none", "null"})


class TableError(UserError):
    """A file that cannot be used as a table; the message is one line that names the file and the line, column or value."""


class Moments:
    """Count, mean, summed squared deviation, least and greatest value of each column, updated row by row (Welford, 1962)."""

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.mean = [0.0] * columns
        self.squares = [0.0] * columns
        self.low = [math.inf] * columns
        self.high = [-math.inf] * columns

    def add(self, row: Sequence[float]) -> None:
        """Take in one row."""
        self.count += 1
        mean, squares, low, high = self.mean, self.squares, self.low, self.high
        for j, value in enumerate(row):
            delta = value - mean[j]
            mean[j] += delta / self.count
            squares[j] += delta * (value - mean[j])
            if value < low[j]:
                low[j] = value
            if value > high[j]:
                high[j] = value

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together (Chan, Golub and LeVeque, 1979)."""
        columns = len(self.mean)
        both = Moments(columns)
        both.count = self.count + other.count
        share = other.count / both.count if both.count else 0.0
        for j in range(columns):
            delta = other.mean[j] - self.mean[j]
            both.mean[j] = self.mean[j] + delta * share
            both.squares[j] = self.squares[j] + other.squares[j] + self.count * share * delta * delta
            both.low[j] = min(self.low[j], other.low[j])
            both.high[j] = max(self.high[j], other.high[j])
        return both

    def deviation(self, column: int) -> float:
        """Standard deviation (of the rows themselves: divided by their count); exactly 0 for a constant column."""
        return 0.0 if self.low[column] == self.high[column] else math.sqrt(self.squares[column] / self.count)


@dataclass(frozen=True, eq=False)
class Table:
    """A checked file: what was learned in the first pass, and the way to read its rows again.

    features   column names in the order of the context's file
    target     the column to predict; None for queries without it
    places     where the features, and then the target if there is one, stand in the file
    rows       number of rows
    parts      moments of each fold's own rows, columns as in `places`; one part where there are no folds
    """

    path: Path
    features: tuple[str, ...]
    target: str | None
    places: tuple[int, ...]
    rows: int
    parts: tuple[Moments, ...]

    @property
    def name(self) -> str:
        """The path as given, for messages of one line."""
        return _name(self.path)

    def moments(self, without: int | None = None) -> Moments:
        """Moments of all rows, or of all but those of one fold."""
        total = Moments(len(self.places))
        for fold, part in enumerate(self.parts):
            if fold != without:
                total = total.merge(part)
        return total

    def read(self, watch: Watch | None = None) -> Iterator[list[float]]:
        """Every row as its features and then the target. TableError where the file is no longer what was checked."""
        names, records = _open(self.path, watch)
        if max(self.places) >= len(names):
            raise TableError(f"{_name(self.path)} changed while it was read: its header is another one now")
        count = 0
        for line, cells in records:
            values = _numbers(self.path, line, names, cells)
            count += 1
            yield [values[place] for place in self.places]
        if count != self.rows:
            raise TableError(f"{_name(self.path)} changed while it was read: it had {self.rows} rows and now has {count}")


def fold_of_rows(folds: int, seed: int = 0) -> Iterator[int]:
    """The fold of row 0, 1, 2, ..: each run of `folds` rows is dealt out in a random order, one row to each fold.

    Nothing is stored, every pass over a file gets the same folds, and their sizes differ by one row at most.
    """
    generator = random.Random(seed)
    while True:
        yield from sorted(range(folds), key=lambda _: generator.random())


def read_table(path: Path, target: str, *, folds: int = 1, seed: int = 0, watch: Watch | None = None) -> Table:
    """First pass over a context file: every cell checked, moments of every fold's rows accumulated.

    folds   1: no cross-validation; otherwise at most this many, as every fold needs two rows to have an R^2
    TableError for a file, header, cell, target or column that cannot be used (the module's head says what can).
    """
    names, records = _open(path, watch)
    features, places = _columns(path, names, target)
    parts = tuple(Moments(len(names)) for _ in range(folds))
    rows = 0
    for (line, cells), fold in zip(records, fold_of_rows(folds, seed), strict=False):
        values = _numbers(path, line, names, cells)
        parts[fold].add([values[place] for place in places])
        rows += 1
    if rows < 2:
        raise TableError(f"{_name(path)} has {'1 row, at least 2 are needed' if rows else 'column names and no rows'}")
    table = Table(path, features, target, places, rows, parts)
    _check_spread(table)
    if folds > 1 and rows < 2 * folds:
        if rows < 4:
            raise TableError(f"{_name(path)} has {rows} rows, cross-validation needs at least 4: two folds of two")
        return read_table(path, target, folds=rows // 2, seed=seed)
    _check_folds(table)
    return table


def read_queries(path: Path, context: Table, watch: Watch | None = None) -> Table:
    """First pass over a query file: the context's features under the same names in any order, perhaps the target too.

    TableError as for read_table, for a column that is missing or unknown, and for a value too far from the context's
    mean (1e100 standard deviations) to compute with. A column may be constant here.
    """
    names, records = _open(path, watch)
    known = [*context.features, str(context.target)]
    for name in names:
        if name not in known:
            raise TableError(f"{_name(path)}: column {_shown(name)} is not in {_name(context.path)}{near_miss(name, known)}")
    for name in context.features:
        if name not in names:
            raise TableError(f"{_name(path)} lacks column {_shown(name)}{near_miss(name, names)}")
    target = context.target if context.target in names else None
    places = tuple(names.index(name) for name in known if name in names)
    own, of_context = Moments(len(places)), context.moments()
    deviations = [of_context.deviation(j) for j in range(len(context.features))]
    for line, cells in records:
        values = _numbers(path, line, names, cells)
        row = [values[place] for place in places]
        for j, deviation in enumerate(deviations):
            if not abs(row[j] - of_context.mean[j]) <= _FARTHEST_QUERY * deviation:
                where = f"{_name(path)}, line {line}, column {_shown(context.features[j])}"
                raise TableError(f"{where}: {row[j]!r} is too far from the values in {_name(context.path)} to compute with")
        own.add(row)
    if own.count == 0:
        raise TableError(f"{_name(path)} has column names and no rows")
    return Table(path, context.features, target, places, own.count, (own,))


def _open(path: Path, watch: Watch | None) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The column names, and the records after them."""
    records = _records(path, watch)
    first = next(records, None)
    if first is None:
        raise TableError(f"{_name(path)} is empty; its first line must name the columns")
    return _header(path, first[1]), records


def _records(path: Path, watch: Watch | None) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every record, the header first. Blank lines are allowed at the end only."""
    with _opened(path) as handle:
        size = max(1, os.fstat(handle.fileno()).st_size)
        reader = csv.reader(_lines(path, handle), strict=True, skipinitialspace=True)
        blank = 0
        try:
            for cells in reader:
                if not cells:
                    blank = blank or reader.line_num
                    continue
                if blank:
                    raise TableError(f"{_name(path)}, line {blank} is blank")
                if watch is not None and reader.line_num % 1024 == 0:
                    watch(handle.tell() / size)
                yield reader.line_num, cells
        except csv.Error as error:
            raise TableError(f"{_name(path)}, line {reader.line_num}: {_csv_fault(str(error))}") from None


def _opened(path: Path) -> BinaryIO:
    """The open file. What is not a regular file is refused unopened: a pipe can be read once, and here it takes several passes."""
    try:
        mode = os.stat(path).st_mode
        handle = open(path, "rb") if stat.S_ISREG(mode) else None  # noqa: SIM115 - the caller closes it
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise TableError(f"{_name(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if handle is None:
        what = "a directory, not a CSV file" if stat.S_ISDIR(mode) else "not a regular file: a table is read more than once"
        raise TableError(f"{_name(path)} is {what}")
    return handle


def _lines(path: Path, handle: BinaryIO) -> Iterator[str]:
    """The file's lines as text. Decoded line by line, so that a wrong byte is reported with its line."""
    number = 0
    while line := handle.readline(_LONGEST_LINE + 1):
        number += 1
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            fault = f"holds the byte 0x{line[error.start]:02x}, which is not UTF-8 text"
            raise TableError(f"{_name(path)}, line {number} {fault}") from None
        if b"\0" in line:
            raise TableError(f"{_name(path)}, line {number} holds a NUL byte: this is no UTF-8 text")
        if len(line) > _LONGEST_LINE:
            raise TableError(f"{_name(path)}, line {number} is longer than {_LONGEST_LINE >> 20} MiB: this is no CSV file")
        yield text


def _csv_fault(message: str) -> str:
    if "field larger" in message or "unexpected end" in message:
        return "inside a quotation mark that is not closed"
    if "new-line character" in message:
        return "lines must end in LF or CRLF, not in CR alone"
    return f"this is not CSV ({message})"


def _header(path: Path, cells: list[str]) -> list[str]:
    """Column names without blanks around them; TableError where they are no names, or name two columns alike."""
    names = [cell.strip() for cell in cells]
    if len(names) == 1:
        for separator, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if separator in names[0]:
                raise TableError(f"{_name(path)} has one column {_shown(names[0])}: it is separated by {word}, not by commas")
    if all(_is_number(name) for name in names):
        raise TableError(f"{_name(path)}: the first line holds numbers, it must name the columns")
    seen: set[str] = set()
    for place, name in enumerate(names):
        if not name:
            raise TableError(f"{_name(path)}: column {place + 1} has no name (an index that was written with the table?)")
        if name in seen:
            raise TableError(f"{_name(path)} has two columns named {_shown(name)}")
        seen.add(name)
    return names


def _columns(path: Path, names: list[str], target: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The features' names, and where they and then the target stand."""
    if target not in names:
        listed = ", ".join(_shown(name) for name in names[:10]) + ", .." * (len(names) > 10)
        raise TableError(f"{_name(path)} has no column {_shown(target)}{near_miss(target, names)}; its columns are {listed}")
    features = tuple(name for name in names if name != target)
    if not features:
        raise TableError(f"{_name(path)} has no column besides the target {_shown(target)}: there is nothing to predict it from")
    return features, tuple(names.index(name) for name in (*features, target))


def _numbers(path: Path, line: int, names: list[str], cells: list[str]) -> list[float]:
    """A record's cells as finite floats."""
    if len(cells) != len(names):
        raise TableError(f"{_name(path)}, line {line} has {len(cells)} cells, the header names {len(names)} columns")
    try:
        values = list(map(float, cells))
    except ValueError:
        values = [math.nan]
    # Python reads 1_000 as a number, other programs as text
    if not all(map(math.isfinite, values)) or "_" in "".join(cells):
        raise TableError(_cell_fault(path, line, names, cells))
    return values


def _cell_fault(path: Path, line: int, names: list[str], cells: list[str]) -> str:
    """What is wrong with the first cell that is no finite number."""
    for name, cell in zip(names, cells, strict=True):
        where = f"{_name(path)}, line {line}, column {_shown(name)}"
        if cell.strip().lower() in _MISSING:
            return f"{where}: missing value" + (f" ({_shown(cell)})" if cell.strip() else "")
        if not _is_number(cell):
            return f"{where}: {_shown(cell)} is not a number"
        if not math.isfinite(float(cell)):
            return f"{where}: {_shown(cell)} is not a finite number"
    raise AssertionError("every cell is a finite number")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _check_spread(table: Table) -> None:
    """TableError for a column that is constant, or whose variance is no normal float."""
    name, whole = _name(table.path), table.moments()
    for j, column in enumerate((*table.features, table.target)):
        what = f"{name}: {'the target' if column == table.target else 'column'} {_shown(str(column))}"
        if whole.low[j] == whole.high[j]:
            raise TableError(f"{what} is constant: every value is {whole.low[j]!r}")
        variance = whole.squares[j] / whole.count
        if not math.isfinite(variance):
            raise TableError(f"{what}: its values are so large that their variance overflows")
        if variance < sys.float_info.min:
            raise TableError(f"{what}: its values are so close together that their variance underflows")


def _check_folds(table: Table) -> None:
    """TableError for a fold whose target is constant: its R^2 divides by zero."""
    for fold, part in enumerate(table.parts):
        if part.low[-1] == part.high[-1]:
            what = f"all {part.count} rows of fold {fold + 1} of {len(table.parts)} have the target {part.low[-1]!r}"
            raise TableError(f"{table.name}: {what}, so R^2 has no meaning there; take fewer folds")


def _name(path: Path) -> str:
    """The path as given, on one line whatever it holds."""
    text = str(path)
    return text if text.isprintable() and len(text) <= 200 else shown(text)


def _shown(text: str) -> str:
    """A name or a cell in quotation marks, on one line and not long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
