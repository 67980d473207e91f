"""CSV tables: moments and folds against direct computation, every kind of file that cannot be used, what may be read."""

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from gdssm.table import Moments, TableError, fold_of_rows, read_queries, read_table

GOOD = "a,b,y\n1,2,3\n2,5,1\n4,4,9\n0,1,2\n"


def written(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_parts_are_those_of_the_whole(offset: float) -> None:
    rows = np.random.default_rng(0).normal(size=(57, 3)) * [1, 0, 1e-3] + offset
    parts = [Moments(3) for _ in range(3)]
    for row, part in zip(rows.tolist(), itertools.cycle(parts), strict=False):
        part.add(row)
    whole = parts[0].merge(parts[1]).merge(Moments(3)).merge(parts[2])
    assert whole.count == 57
    np.testing.assert_allclose(whole.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose([whole.deviation(j) for j in range(3)], rows.std(0), rtol=1e-6 if offset else 1e-12)
    assert whole.deviation(1) == 0
    assert (whole.low, whole.high) == (rows.min(0).tolist(), rows.max(0).tolist())


def test_folds_are_balanced_repeatable_and_not_periodic() -> None:
    folds = list(itertools.islice(fold_of_rows(5, seed=3), 203))
    assert folds == list(itertools.islice(fold_of_rows(5, seed=3), 203))
    assert folds != list(itertools.islice(fold_of_rows(5, seed=4), 203))
    runs = [tuple(folds[i : i + 5]) for i in range(0, 200, 5)]
    assert all(sorted(run) == [0, 1, 2, 3, 4] for run in runs)
    assert len(set(runs)) > 20
    assert sorted(folds.count(fold) for fold in range(5)) in ([40, 40, 41, 41, 41],)


def test_rows_and_moments_of_a_table(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, GOOD), "b", folds=2)
    assert (table.features, table.target, table.rows) == (("a", "y"), "b", 4)
    assert list(table.read()) == [[1, 3, 2], [2, 1, 5], [4, 9, 4], [0, 2, 1]]
    rows, folds = np.array(list(table.read())), np.array(list(itertools.islice(fold_of_rows(2), 4)))
    for fold in range(2):
        np.testing.assert_allclose(table.moments(without=fold).mean, rows[folds != fold].mean(0))
    np.testing.assert_allclose(table.moments().mean, rows.mean(0))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n"),
        GOOD + "\n\n",
        GOOD.rstrip("\n"),
        'a, "b", y\n1, 2 ,"3"\n2,5,1\n4,4,9\n0,1e0,2.\n',
    ],
    ids=["byte order mark", "CRLF", "blank lines at the end", "no last line break", "quotes and blanks"],
)
def test_harmless_variants_read_alike(tmp_path: Path, content: str | bytes) -> None:
    plain = read_table(written(tmp_path, GOOD, "plain.csv"), "y")
    table = read_table(written(tmp_path, content), "y")
    assert table.features == plain.features
    assert list(table.read()) == list(plain.read())


def test_a_small_table_has_fewer_folds(tmp_path: Path) -> None:
    assert len(read_table(written(tmp_path, GOOD + "7,7,7\n"), "y", folds=5).parts) == 2


BAD = {
    "empty file": (b"", "table.csv is empty"),
    "blank file": (b"\n\n", "table.csv is empty"),
    "blank line first": (b"\na,b,y\n1,2,3\n", "line 1 is blank"),
    "header only": (b"a,b,y\n", "has column names and no rows"),
    "one row": (b"a,b,y\n1,2,3\n", "has 1 row"),
    "missing value": (b"a,b,y\n1,2,3\n1,,3\n2,2,2\n", "line 3, column 'b': missing value$"),
    "named missing value": (b"a,b,y\n1,2,3\n1,NA,3\n2,2,2\n", "line 3, column 'b': missing value \\('NA'\\)"),
    "missing target": (b"a,b,y\n1,2,3\n1,3,\n2,2,2\n", "line 3, column 'y': missing value"),
    "text": (b"a,b,y\n1,red,3\n1,blue,2\n", "line 2, column 'b': 'red' is not a number"),
    "underscored": (b"a,b,y\n1,1_000,3\n1,2,2\n", "line 2, column 'b': '1_000' is not a number"),
    "decimal comma": (b'a,b,y\n1,"1,5",3\n1,2,2\n', "'1,5' is not a number"),
    "nan": (b"a,b,y\n1,nan,3\n1,2,2\n", "line 2, column 'b': missing value \\('nan'\\)"),
    "infinite": (b"a,b,y\n1,-inf,3\n1,2,2\n", "'-inf' is not a finite number"),
    "too large a number": (b"a,b,y\n1,2,3\n1,1e999,2\n", "line 3, column 'b': '1e999' is not a finite number"),
    "long text": (b"a,b,y\n1," + b"x" * 5000 + b",3\n1,2,2\n", "'x{57}\\.\\.\\.' is not a number"),
    "line break in a cell": (b'a,b,y\n1,"u\nv",3\n1,2,2\n', "line 3, column 'b': 'u\\\\nv' is not a number"),
    "too few cells": (b"a,b,y\n1,2,3\n1,2\n", "line 3 has 2 cells, the header names 3 columns"),
    "too many cells": (b"a,b,y\n1,2,3,4\n1,2,3\n", "line 2 has 4 cells"),
    "blank line": (b"a,b,y\n1,2,3\n\n1,3,2\n", "line 3 is blank"),
    "constant column": (b"a,b,y\n1,7,3\n2,7.0,4\n4,7,1\n", "column 'b' is constant: every value is 7.0"),
    "constant target": (b"a,b,y\n1,6,3\n2,7,3\n4,7,3\n", "the target 'y' is constant: every value is 3.0"),
    "overflowing variance": (b"a,b,y\n1,1e300,3\n2,-1e300,4\n4,7,1\n", "'b': its values are so large"),
    "overflowing differences": (b"a,b,y\n1,1.7e308,3\n2,-1.7e308,4\n4,7,1\n", "'b': its values are so large"),
    "underflowing variance": (b"a,b,y\n1,1e-200,3\n2,0,4\n4,0,1\n", "'b': its values are so close together"),
    "absent target": (b"a,b,yy\n1,2,3\n2,3,4\n", "has no column 'y' \\(did you mean 'yy'\\?\\); its columns are 'a', 'b', 'yy'"),
    "no features": (b"y\n1\n2\n", "has no column besides the target 'y'"),
    "two columns alike": (b"a,a,y\n1,2,3\n2,3,4\n", "has two columns named 'a'"),
    "nameless column": (b",a,y\n0,2,3\n1,3,4\n", "column 1 has no name"),
    "no header": (b"1,2,3\n2,3,4\n", "the first line holds numbers"),
    "semicolons": (b"a;b;y\n1;2;3\n2;3;4\n", "it is separated by semicolons"),
    "tabs": (b"a\tb\ty\n1\t2\t3\n", "it is separated by tabs"),
    "no text": (b"a,b,y\n1,2,3\n\xff\xfe,3,4\n", "line 3 holds the byte 0xff, which is not UTF-8 text"),
    "image": (b"\x89PNG\r\n\x1a\n\x00\x00", "line 1 holds the byte 0x89"),
    "UTF-16": ("a,b,y\n1,2,3\n".encode("utf-16-le"), "line 1 holds a NUL byte"),
    "open quotation mark": (b'a,b,y\n1,"2,3\n2,3,4\n', "inside a quotation mark that is not closed"),
    "open quotation mark in a long file": (b'a,b,y\n1,"2,3\n' + b"2,3,4\n" * 40000, "inside a quotation mark"),
    "text after a quotation mark": (b'a,b,y\n1,"2"x,3\n2,3,4\n', "this is not CSV"),
    "CR alone": (b"a,b,y\r1,2,3\r2,3,4\r", "lines must end in LF or CRLF"),
    "endless line": (b"a,b,y\n" + b"1" * ((1 << 24) + 1), "line 2 is longer than 16 MiB"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, case: str) -> None:
    content, fragment = BAD[case]
    with pytest.raises(TableError, match=fragment) as caught:
        read_table(written(tmp_path, content), "y")
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "table.csv"))
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(tmp_path)) + 200


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("a,y\n1,2\n2,1\n3,4\n", "has 3 rows, cross-validation needs at least 4: two folds of two"),
        ("a,y\n" + "1,5\n2,5\n" * 20 + "1,6\n", "rows of fold . of 5 have the target 5.0, so R\\^2 has no meaning there"),
    ],
)
def test_folds_without_a_score_are_refused(tmp_path: Path, content: str, fragment: str) -> None:
    with pytest.raises(TableError, match=fragment):
        read_table(written(tmp_path, content), "y", folds=5)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cases = {
        tmp_path: "is a directory",
        tmp_path / "none.csv": "cannot be read: No such file or directory",
        pipe: "is not a regular file",
        Path("a\0b"): "cannot be read",
        tmp_path / ("n" * 300): "cannot be read: File name too long",
    }
    for path, fragment in cases.items():
        with pytest.raises(TableError, match=re.escape(fragment)) as caught:
            read_table(path, "y")
        assert len(str(caught.value).splitlines()) == 1


def test_queries_name_their_columns_in_any_order(tmp_path: Path) -> None:
    context = read_table(written(tmp_path, GOOD), "y")
    queries = read_queries(written(tmp_path, "b,a\n10,20\n10,21\n", "q.csv"), context)
    assert queries.target is None
    assert list(queries.read()) == [[20, 10], [21, 10]]
    scored = read_queries(written(tmp_path, "y,b,a\n5,10,20\n", "q.csv"), context)
    assert scored.target == "y"
    assert list(scored.read()) == [[20, 10, 5]]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("a\n1\n", "q.csv lacks column 'b'"),
        ("a,B,y\n1,2,3\n", "column 'B' is not in .*table.csv"),
        ("a,b,c\n1,2,3\n", "column 'c' is not in"),
        ("a,b\n", "has column names and no rows"),
        ("a,b\n1,\n", "line 2, column 'b': missing value"),
        ("a,b,y\n1,2,\n", "line 2, column 'y': missing value"),
        ("a,b\n1,1e200\n", "line 2, column 'b': 1e\\+200 is too far from the values in"),
        ("a,b\n1,2\n\n1,2\n", "line 3 is blank"),
    ],
)
def test_queries_that_cannot_be_answered(tmp_path: Path, content: str, fragment: str) -> None:
    context = read_table(written(tmp_path, GOOD), "y")
    with pytest.raises(TableError, match=fragment):
        read_queries(written(tmp_path, content, "q.csv"), context)


@pytest.mark.parametrize("changed", [GOOD + "1,1,1\n", GOOD[:-6], "a,b\n1,2\n"])
def test_a_file_that_changes_between_passes_is_noticed(tmp_path: Path, changed: str) -> None:
    table = read_table(written(tmp_path, GOOD), "y")
    written(tmp_path, changed)
    with pytest.raises(TableError, match="changed while it was read"):
        list(table.read())


def test_the_fraction_read_is_told(tmp_path: Path) -> None:
    told: list[float] = []
    read_table(written(tmp_path, "a,y\n" + "1,2\n2,1\n" * 20000), "y", watch=told.append)
    assert len(told) > 10
    assert told == sorted(told)
    assert told[-1] <= 1
