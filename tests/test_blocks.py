"""Blocks check themselves, come back from their records as they were, and are drawn as they are."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from gdssm import charts
from gdssm.blocks import MOST_REFERENCES, MOST_ROWS, MOST_SERIES, Dots, Lines, Row, Series, Table, Text, as_records, from_records
from gdssm.config import ConfigError
from gdssm.records import ReportError
from gdssm.report_blocks import block_html, data_table, shown
from recorded import HOSTILE, Page

TEXT = Text("How to read it", ("One paragraph.", "Another."))
TABLE = Table("Costs", ("name", "count", "loss", "exact"), (("a", 3, 0.123456, True), ("b", None, 2.0, False)), "Means.")
BAND = Series("learner", (1, 2, 4), (0.5, 0.25, 0.125), (0.4, 0.2, 0.1), (0.6, 0.3, 0.2))
PLAIN = Series("$other$", (1, 3, 4), (0.7, 0.6, 0.5))
REFERENCE = Series("closed form", (1, 4), (0.4, 0.09), reference=True)
LINES = Lines("Loss over N", "examples", "loss", (BAND, REFERENCE, PLAIN), "Band: all seeds.", x_log=True, y_log=True)
ROWS = (
    Row("N = 5", (1.0, 1.1, 3.0), "ours"),
    Row("N = 5", (2.0, None, None), "theirs"),
    Row("N = 10", (0.95, 1.05), "ours"),
    Row("N = 20", (None,), "theirs"),
)
DOTS = Dots("Ratios", "loss ratio", ROWS, "A dot is a seed.", x_log=True, reference=1, reference_label="one step")
ALL = (TEXT, TABLE, LINES, DOTS)


def test_records_give_the_blocks_back():
    records = as_records(ALL)
    assert from_records(json.loads(json.dumps(records, allow_nan=False)), "file") == ALL
    assert [record["kind"] for record in records] == ["text", "table", "lines", "dots"]
    assert records[3]["rows"][1] == {"label": "N = 5", "values": (2.0, None, None), "group": "theirs"}
    assert from_records([], "file") == ()


def test_lists_and_numbers_of_other_types_are_taken():
    made = Series("s", [1, np.float32(2)], [np.int64(3), 4], reference=False)
    assert made == Series("s", (1.0, 2.0), (3.0, 4.0))
    json.dumps(as_records([Table("t", ["a", "b"], [[np.int64(3), np.float64(1.5)]])]))


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: Text("t", ()), "paragraphs is empty; at least one is needed"),
        (lambda: Text("t", "words"), "paragraphs must be of type tuple"),
        (lambda: Table("t", ("a", "b"), ((1, 2), (3,))), "rows[1] has 1 cells, there are 2 heads"),
        (lambda: Table("t", ("a",), ()), "rows is empty; at least one is needed"),
        (lambda: Table("t", ("a",), ((math.nan,),)), "rows[0] holds nan, which is not finite; None says that there is no value"),
        (lambda: Series("s", (), ()), "x is empty; at least one is needed"),
        (lambda: Series("s", (1, 2), (1,)), "y of series 's' has 1 values, x has 2"),
        (
            lambda: Series("s", (1,), (math.inf,)),
            "y of series 's' holds inf, which is not finite; None says that",
        ),
        (lambda: Series("s", (1,), (1,), (1,)), "low and high of series 's' must both be given or both be None"),
        (lambda: Series("s", (1,), (1,), (1, 2), (1,)), "low of series 's' has 2 values, x has 1"),
        (lambda: Series("s", (1,), (1,), (2,), (1,)), "low of series 's' lies above high somewhere"),
        (lambda: Series("s", (2, 1), (1, 1), (1, 1), (1, 1)), "x of series 's' must ascend where it has a spread"),
        (lambda: replace(LINES, series=()), "series is empty; at least one is needed"),
        (lambda: replace(LINES, series=(BAND, BAND)), "series holds two with the label 'learner'"),
        (lambda: Lines("t", "x", "y", many(MOST_SERIES + 1), "c"), "series holds 9 curves; at most 8 can be told apart, so make"),
        (lambda: Lines("t", "x", "y", many(4, reference=True), "c"), "series holds 4 references; at most 3 can be told apart"),
        (
            lambda: replace(LINES, series=(Series("s", (0, 1), (1, 1)),)),
            "x of series 's' holds 0.0, which has no place on a logarithmic axis",
        ),
        (lambda: replace(LINES, series=(Series("s", (1,), (1,), (0,), (1,)),)), "low of series 's' holds 0.0, which has no place"),
        (lambda: Row("r", ()), "values is empty; at least one is needed"),
        (lambda: Row("r", (math.nan,)), "values of row 'r' holds nan, which is not finite; None says that there is no value"),
        (lambda: replace(DOTS, rows=(ROWS[0], ROWS[0])), "rows holds two with the label 'ours, N = 5'"),
        (
            lambda: replace(DOTS, rows=(Row("r", (-1.0,)),)),
            "values of row 'r' holds -1.0, which has no place on a",
        ),
        (lambda: replace(DOTS, reference=0), "reference holds 0.0, which has no place on a logarithmic axis"),
        (lambda: replace(DOTS, reference=math.inf), "reference holds inf, which is not finite"),
        (lambda: replace(DOTS, scale=(2, 1)), "scale must ascend, got (2.0, 1.0)"),
        (
            lambda: replace(DOTS, rows=tuple(Row("r", (1,), f"g{i}") for i in range(MOST_SERIES + 1))),
            "rows are in 9 groups; at most 8 can be told apart",
        ),
        (
            lambda: replace(DOTS, rows=tuple(Row(f"r{i}", (1,)) for i in range(MOST_ROWS + 1))),
            "rows holds 121 rows; at most 120 fit one figure",
        ),
    ],
)
def test_what_cannot_be_shown_is_one_line(make, wanted):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(wanted)
    assert "\n" not in str(caught.value)


def many(count, reference=False):
    return tuple(Series(f"s{i}", (1, 2), (i + 1, i + 2), reference=reference) for i in range(count))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (3, "blocks[1] must be an object, got 3"),
        ({"kind": "line"}, "kind of blocks[1] is 'line' (did you mean 'lines'?); allowed: text, table, lines, dots"),
        ({"title": "t"}, "kind of blocks[1] is None; allowed: text, table, lines, dots"),
        ({"kind": "text", "title": "t"}, "blocks[1].paragraphs is missing from Text"),
        (
            {"kind": "text", "title": "t", "paragraphs": ["p"], "x": 1},
            "blocks[1].x is no field of Text; allowed: title, para",
        ),
        ({**as_records([TABLE])[0], "rows": [[1]]}, "blocks[1]: rows[0] has 1 cells, there are 4 heads"),
        (
            {**as_records([TABLE])[0], "rows": [[[], 1, 2, 3]]},
            "blocks[1].rows[0][0] must be of type str | bool | int | float",
        ),
        (
            {**as_records([LINES])[0], "series": [{"label": "s", "x": [1], "y": [1, 2]}]},
            "blocks[1].series[0].y of series 's' has",
        ),
        ({**as_records([DOTS])[0], "rows": [{"label": "r", "values": ["1"]}]}, "blocks[1].rows[0].values[0] must be of type float"),
    ],
)
def test_malformed_records_are_one_line(change, wanted):
    with pytest.raises(ReportError) as caught:
        from_records([*as_records([TEXT]), change], "record.json")
    assert str(caught.value).startswith(f"record.json: {wanted}")
    assert "\n" not in str(caught.value)


def lines_of(axes):
    return {str(line.get_label()): line for line in axes.get_lines()}


def test_curves_are_drawn_as_they_are():
    figure = charts.lines_figure(LINES)
    (axes,) = figure.axes
    drawn = lines_of(axes)
    for label, series in (("curve 0", BAND), ("curve 1", PLAIN), ("reference 0", REFERENCE)):
        np.testing.assert_array_equal(drawn[label].get_xdata(), series.x)
        np.testing.assert_array_equal(drawn[label].get_ydata(), series.y)
    (band,) = axes.collections  # PLAIN has none
    edge = band.get_paths()[0].vertices
    for x, low, high in zip(BAND.x, BAND.low, BAND.high, strict=True):
        np.testing.assert_array_equal(sorted(set(edge[edge[:, 0] == x, 1])), [low, high])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("examples", "loss")
    assert drawn["reference 0"].get_color() == charts.BLACK
    assert drawn["reference 0"].get_marker() in ("", "None", None)
    assert drawn["reference 0"].is_dashed()
    (legend,) = figure.legends
    pairs = dict(zip([text.get_text() for text in legend.get_texts()], legend.legend_handles, strict=True))
    assert list(pairs) == ["learner", r"\$other\$", "closed form"]  # the dollar is no formula
    assert [handle.get_color() for handle in pairs.values()] == [*charts.COLOURS[:2], charts.BLACK]


def test_curves_differ_without_their_colours():
    block = Lines("t", "x", "y", (*many(MOST_SERIES), *replaced_labels(many(MOST_REFERENCES, reference=True))), "c")
    (axes,) = charts.lines_figure(block).axes
    looks = {(str(line._dash_pattern), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == MOST_SERIES + MOST_REFERENCES
    assert len({dashes for dashes, _ in looks}) >= MOST_SERIES
    assert len({marker for _, marker in looks}) == MOST_SERIES + 1  # references have none
    assert len({line.get_color() for line in axes.get_lines()}) == MOST_SERIES + 1
    assert axes.get_xscale() == axes.get_yscale() == "linear"


def replaced_labels(series):
    return tuple(replace(one, label=f"reference {one.label}") for one in series)


def test_the_few_values_of_a_logarithmic_x_axis_are_its_labels():
    block = Lines("t", "x", "y", (Series("s", (5, 10, 40), (1, 2, 3)),), "c", x_log=True)
    (axes,) = charts.lines_figure(block).axes
    assert axes.get_xticks().tolist() == [5, 10, 40]


def test_one_point_is_drawn_as_a_bar_and_a_level():
    point, level = Series("p", (2,), (1,), (0.5,), (3,)), Series("r", (2,), (1.5,), reference=True)
    (axes,) = charts.lines_figure(Lines("t", "x", "y", (point, level), "c")).axes
    (bar,) = [item for item in axes.collections if len(item.get_paths()[0].vertices) == 2]
    assert bar.get_segments()[0].tolist() == [[2, 0.5], [2, 3]]
    assert lines_of(axes)["reference 0"].get_ydata() == [1.5, 1.5]


def test_dots_are_drawn_as_they_are():
    figure = charts.dots_figure(DOTS)
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = dict(zip(axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()], strict=True))
    assert list(ticks.values()) == ["N = 5", "N = 10", "N = 5", "N = 20"]  # the rows of a group together
    assert axes.yaxis_inverted()
    assert sorted(ticks) == list(ticks)  # so they stand from top to bottom
    dots = [line for line in axes.get_lines() if line.get_label() in ("N = 5", "N = 10", "N = 20")]
    for line, row, height in zip(dots, (ROWS[0], ROWS[2], ROWS[1], ROWS[3]), ticks, strict=True):
        assert list(line.get_xdata()) == list(row.known)
        assert set(line.get_ydata()) <= {height}
        assert line.get_color() == charts.COLOURS[row.group == "theirs"]
        assert line.get_marker() == charts.MARKERS[row.group == "theirs"]
        assert all(low < value < high for value in row.known)
    medians = [line.get_xdata()[0] for line in axes.get_lines() if str(line.get_label()).startswith("median of")]
    assert medians == [1.1, 1.0, 2.0]  # N = 20 has none
    assert margin_marks(axes) == [("x", charts.MISSING)] * 2
    names = [text.get_text() for text in axes.texts]
    assert names == ["ours", "theirs", "2"]  # two seeds without a value
    (reference,) = [line for line in axes.get_lines() if list(line.get_xdata()) == [1, 1]]
    assert reference.is_dashed()
    assert axes.get_xscale() == "log"
    assert legend_of(figure) == [
        "ours, one seed",
        "theirs, one seed",
        "median of the seeds that have a value",
        "one step: 1",
        "a seed without a value; a number counts several",
    ]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def margin_marks(axes):
    """The marks at the margins: (marker, x in widths of the axes)."""
    return [(line.get_marker(), line.get_xdata()[0]) for line in axes.get_lines() if line.get_marker() in (">", "<", "x")]


def test_values_far_from_all_others_stand_at_the_margin():
    rows = [Row(f"r{i}", (1.0 + 0.01 * i, 1.1, 1.2)) for i in range(10)]
    rows[0] = Row("r0", (1.0, 1e9, 1e8))
    rows[1] = Row("r1", (1e-9, 1.1))
    block = Dots("t", "x", tuple(rows), "c", x_log=True)
    figure = charts.dots_figure(block)
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert 0.9 < low < 1.0
    assert 1.2 < high < 1.3
    assert margin_marks(axes) == [(">", charts.BEYOND), ("<", 0.015)]
    assert [text.get_text() for text in axes.texts] == ["2"]
    drawn = [value for line in axes.get_lines() if line.get_label() == "r0" for value in line.get_xdata()]
    assert drawn == [1.0]
    assert legend_of(figure)[2:] == [f"beyond {high:.4g}, the end of the scale", f"below {low:.4g}, the end of the scale"]
    fixed = charts.dots_figure(replace(block, scale=(1.05, 2e9)))
    assert fixed.axes[0].get_xlim() == (1.05, 2e9)
    assert not [text for text in legend_of(fixed) if text.startswith("beyond")]


def test_a_second_cluster_is_no_outlier():
    rows = tuple(Row(f"r{i}", (1.0, 1.01) if i < 7 else (50.0, 51.0)) for i in range(10))
    assert charts.ends(Dots("t", "x", rows, "c"))[1] > 51


@pytest.mark.parametrize(("values", "log"), [((2.0, 2.0), True), ((0.0,), False), ((None,), False), ((None,), True)])
def test_the_scale_has_a_width_where_all_values_are_equal(values, log):
    low, high = charts.ends(Dots("t", "x", (Row("r", values),), "c", x_log=log))
    assert low < (values[0] if values[0] is not None else 0.5 * (low + high)) < high


def test_the_height_grows_with_the_rows():
    heights = [
        charts.dots_figure(Dots("t", "x", tuple(Row(f"r{i}", (1.0, 2.0)) for i in range(count)), "c")).get_figheight()
        for count in (1, 21)
    ]
    assert heights[1] - heights[0] == pytest.approx(20 * charts.LINE)


@pytest.mark.parametrize("block", ALL, ids=lambda block: type(block).__name__)
def test_the_same_block_gives_the_same_page_of_its_own(block):
    first = block_html(block, "e0b0")
    assert block_html(block, "e0b0") == first
    page = Page(first)
    assert page.ids[0] == "e0b0"
    assert len(set(page.ids)) == len(page.ids)
    assert all(name.startswith("e0b0") for name in page.ids)


def test_a_table_s_cells():
    html = block_html(TABLE, "a")
    assert Page(html).rows == ["namecountlossexact", "a30.1235yes", "b–2no"]  # noqa: RUF001
    assert html.count('class="number"') == 2 * 3  # count and loss, with their heads
    assert "Means. –: no value.</p>" in html  # noqa: RUF001
    assert [shown(value) for value in (1e-9, 123456.0, 123456, -0.5, "x")] == ["1e-09", "1.235e+05", "123456", "-0.5", "x"]


def test_a_chart_s_data_stand_below_it():
    rows = Page(block_html(DOTS, "a")).rows
    assert rows[1] == "N = 5ours1.1131, 1.1, 3"
    assert rows[4] == "N = 20theirs––––"  # noqa: RUF001
    table = data_table(LINES)
    assert table.heads == ("series", "examples", "loss", "low", "high")
    assert table.rows[1] == ("learner", 2, 0.25, 0.2, 0.3)
    assert table.rows[3] == ("closed form", 1, 0.4, None, None)
    assert len(table.rows) == 3 + 2 + 3
    assert data_table(replace(LINES, series=(PLAIN,))).heads == ("series", "examples", "loss")


def test_descriptions_say_what_is_drawn():
    assert charts.describe_lines(LINES).startswith("loss over examples: learner from 0.5 at 1 to 0.125 at 4; closed form from 0.4")
    assert charts.describe_dots(DOTS) == (
        "loss ratio. ours: 2 rows, medians 1 to 1.1; theirs: 2 rows, medians 2 to 2. one step: 1."
    )


def test_text_of_blocks_is_escaped():
    series = (replace(BAND, label=HOSTILE), replace(REFERENCE, label="_" + HOSTILE))
    hostile = (
        Text(HOSTILE, (HOSTILE,)),
        Table(HOSTILE, (HOSTILE, "b"), ((HOSTILE, HOSTILE),), HOSTILE),
        Lines(HOSTILE, HOSTILE, HOSTILE, series, HOSTILE),
        Dots(HOSTILE, HOSTILE, (Row(HOSTILE, (1.0,), HOSTILE),), HOSTILE, reference=1.0, reference_label=HOSTILE),
    )
    for block in hostile:
        html = block_html(block, "a")
        Page(html)
        assert "<script" not in html
