"""The report: what it says comes from the records, the page stands alone, and the figures show the recorded values."""

import importlib
import json
import re
import sys
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from gdssm import report
from gdssm.report import ReportError, parse_results, plain_name, summary_table, verdict, write_report

figures = importlib.import_module("gdssm.figures")
HOSTILE = "<script>alert('x')</script> & \"quoted\" </table>"
VOID = {"meta", "br", "link", "img", "hr", "input"}


def claim(name, value, target, relation="<=", holds=True, kind="replication"):
    return {"name": name, "kind": kind, "predicted": 1.0, "value": value, "target": target, "relation": relation, "holds": holds}


def make_results(n_seeds=5, **changed):
    claims = [
        claim("loss_ratio", 1.00371, 1.02),
        claim("sensitivity_cosine", 0.99962, 0.99, ">="),
        claim("success_rate", 1.0, 0.9, ">="),
        claim("learned_rate", 0.611, [0.55, 0.66], "between", kind="hypothesis"),
        claim("constructed & exact", 0.0, 0.0, "==", kind="identity"),
    ]
    environment = {"gdssm": "0.1.0", "python": "3.12.1", "torch": "2.6.0", "threads": 2, "machine": "x86_64", "seconds": 12.345}
    made = {
        "experiment": "one-step",
        "preset": "quick",
        "seeds": list(range(n_seeds)),
        "claims": claims,
        "environment": environment,
    }
    return made | changed


def make_variant(name="head decay", n_seeds=5, n_steps=9, d=4, seed=0):
    """Curves that fall to gradient descent's, weights near the construction."""
    rng = np.random.default_rng(seed)
    steps = np.linspace(0, 4000, n_steps).astype(int)
    fall = np.exp(-steps / rng.uniform(350, 700, (n_seeds, 1)))
    near = {"w_q": np.zeros((3, 3)), "d": np.zeros(3), "c": 0.6 * np.eye(d), "decay": np.ones((d, d))}
    near["w_q"][0, 1] = near["d"][2] = 1
    trained = {key: value + 0.01 * rng.standard_normal((n_seeds, *value.shape)) for key, value in near.items()}
    trained["decay"] = np.minimum(trained["decay"], 1)
    return {
        "name": name,
        "seeds": list(range(n_seeds)),
        "steps": steps.tolist(),
        "loss": (0.2062 + 0.4 * fall).tolist(),
        "sensitivity_cosine": (0.9997 - 0.95 * fall).tolist(),
        "sensitivity_difference": (0.05 + 1.5 * fall).tolist(),
        "prediction_difference": (0.04 + 1.3 * fall).tolist(),
        "gd_loss": 0.2049,
        "zero_loss": 0.4151,
        "closed_form_loss": 0.20623,
        "rate": (0.6 + 0.01 * rng.standard_normal(n_seeds)).tolist(),
        "trained": {key: value.tolist() for key, value in trained.items()},
        "constructed": {key: value.tolist() for key, value in near.items()},
    }


def make_record(**changed):
    made = {
        "experiment": "one-step",
        "title": "One step of gradient descent",
        "question": "Does a trained layer become one step of gradient descent?",
        "settings": {"batch": 64, "lr": 0.02, "clipped": True, "note": HOSTILE},
        "variants": [make_variant()],
    }
    return made | changed


@pytest.fixture
def directory(tmp_path):
    save(tmp_path, make_results(), make_record())
    return tmp_path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The page of an experiment with two variants."""
    directory = tmp_path_factory.mktemp("page")
    save(directory, make_results(), make_record(variants=[make_variant(), make_variant("full decay", seed=1)]))
    return write_report(directory).read_text()


def save(directory, results, record, name="one-step"):
    (directory / name).mkdir(exist_ok=True)
    for file, value in (("results.json", results), ("record.json", record)):
        (directory / name / file).write_text(value if isinstance(value, str) else json.dumps(value))


class Page(HTMLParser):
    """Tags that balance, the text of table rows, ids and the attributes that load something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.ids, self.loads, self.tags = [], [], [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute"
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href", "style", "clip-path", "fill", "srcset", "data", "action"):
                self.loads.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "tr" in self.open:
            self.rows[-1] += data


def test_the_same_records_give_the_same_bytes(directory):
    first = write_report(directory)
    assert first == directory / "report.html"
    content = first.read_bytes()
    assert write_report(directory).read_bytes() == content
    assert sorted(path.name for path in directory.iterdir()) == ["one-step", "report.html"]
    assert len(content) < 1_000_000


def test_each_claim_has_its_row(text):
    page = Page(text)
    wanted = ["≤ 1.02", "≥ 0.99", "≥ 0.9", "0.55 to 0.66", "= 0"]
    for one, target in zip(make_results()["claims"], wanted, strict=True):
        (row,) = [row for row in page.rows if row.split("✓ yes")[0].endswith(one["name"])]
        assert row.split("✓ yes")[1] == f"{one['value']:.6g}{target}{one['predicted']:.6g}{one['kind']}"


def test_the_page_is_well_formed_and_stands_alone(text):
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) > 100
    assert not page.tags & {"script", "link", "iframe", "img", "image", "metadata"}
    assert not [value for value in page.loads if "//" in value]
    assert {value[1:] for value in page.loads if value.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert not re.findall(r"@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\"' ]*", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert text.count('role="img" aria-label="') == text.count("<figcaption>") == 6
    assert '<meta name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_text_from_records_is_escaped(tmp_path):
    variant = make_variant(HOSTILE)
    environment = make_results()["environment"] | {HOSTILE: HOSTILE}
    claims = [claim(HOSTILE, 1.0, 1.0)]
    record = make_record(title=HOSTILE, question=HOSTILE, variants=[variant], settings={HOSTILE: HOSTILE})
    save(tmp_path, make_results(experiment=HOSTILE, preset=HOSTILE, claims=claims, environment=environment), record)
    text = write_report(tmp_path).read_text()
    assert "<script" not in text
    page = Page(text)  # balanced in spite of it
    assert sum(HOSTILE in row for row in page.rows) == 3  # a claim, a setting, a part of the environment
    assert unescape(text).count(HOSTILE) >= 9


def test_final_values_are_the_record_s(text):
    page = Page(text)
    final = np.array(make_variant()["loss"])[:, -1]
    rows = [row for row in page.rows if row.startswith("loss per output")]
    assert rows[0] == "loss per output" + "".join(f"{value:.6g}" for value in (np.median(final), final.min(), final.max()))
    ratio = [row for row in page.rows if row.startswith("loss / loss of one step")]
    assert f"{np.median(final) / 0.2049:.6g}" in ratio[0]


def test_verdict_counts_the_layers(text):
    wanted = "Yes: 5 of 5 random layers became one step of gradient descent (95 % interval of the rate: 57 to 100 %)."
    assert verdict(parse_results(make_results(), "r")) == wanted
    assert wanted in text


def test_a_rate_over_something_else_than_seeds_is_a_share():
    claims = [claim("success_rate", 0.9, 0.5, ">=")]  # e.g. of ten layers, two for each seed
    assert verdict(parse_results(make_results(claims=claims), "r")) == (
        "Yes: 90 % of the random layers became one step of gradient descent."
    )


@pytest.mark.parametrize(
    ("claims", "wanted"),
    [
        (
            [claim("success_rate", 0.6, 0.9, ">=", holds=False), claim("loss_ratio", 1.4, 1.02, holds=False)],
            "Not entirely: 3 of 5 random layers .*; 2 claims do not hold: success_rate, loss_ratio\\.$",
        ),
        (
            [claim("success_rate", 0.0, 0.9, ">=", holds=False)],
            "No: 0 of 5 random layers .*; 1 claim does not hold: success_rate\\.$",
        ),
        (
            [claim("success_rate", 1.0, 0.9, ">="), claim("a", 2.0, 1.0, holds=False, kind="hypothesis")],
            "Yes: 5 of 5 random layers .*; 1 hypothesis does not hold: a\\.$",
        ),
        (
            [claim("a", 0.0, 1.0), claim("b", 2.0, 1.0, holds=False)],
            "No: 1 of 2 claims hold; 1 claim does not hold: b\\.$",
        ),
    ],
)
def test_verdict_names_what_does_not_hold(tmp_path, claims, wanted):
    results = make_results(claims=claims)
    assert re.match(wanted, verdict(parse_results(results, "r")))
    save(tmp_path, results, make_record(variants=[]))
    text = write_report(tmp_path).read_text()
    assert verdict(parse_results(results, "r")) in text
    assert text.count("✗ no") == sum(not one["holds"] for one in claims)
    assert text.count("✓ yes") == sum(one["holds"] for one in claims)


def test_several_experiments_are_counted_and_linked(tmp_path):
    save(tmp_path, make_results(), make_record(variants=[]))
    failing = make_results(experiment="two-step", claims=[claim("loss_ratio", 1.4, 1.02, holds=False)])
    save(tmp_path, failing, make_record(variants=[], title="Two steps"), "two-step")
    (tmp_path / "notes").mkdir()  # not an experiment
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert "Not entirely: 1 of 2 experiments came out as the theory says." in text
    assert {"#e0", "#e1"} <= set(page.loads)
    assert {"e0", "e1"} <= set(page.ids)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "is missing"),
        ("{", "is no JSON of finite numbers"),
        ("[]", "holds no JSON object"),
        ('{"x": NaN}', "NaN is not finite"),
        ({}, "claims must be a list"),
        (make_results(claims=[{"name": "a"}]), "claims.kind is missing"),
        (make_results(claims=[claim("a", 1.0, 1.0, "<")]), "relation of 'a' is '<'.*allowed"),
        (make_results(claims=[claim("a", 1.0, 1.0, kind="guess")]), "kind of 'a' is 'guess'"),
        (make_results(claims=[claim("a", 1.0, [0.0], "between")]), "does not fit the relation"),
        (make_results(claims=[claim("a", 1.0, 1.0, "between")]), "does not fit the relation"),
        (make_results(claims=[claim("a", "high", 1.0)]), "value must be of type float, got 'high'"),
        (make_results(environment=[]), "environment must be an object"),
    ],
)
def test_a_broken_results_file_is_one_line(directory, content, wanted):
    path = directory / "one-step" / "results.json"
    path.unlink()
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    error_line(directory, path, wanted)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"title": None}, "title must be of type str"),
        ({"variants": [3]}, "every variant must be an object with a name"),
        ({"variants": [{k: v for k, v in make_variant().items() if k != "gd_loss"}]}, "lacks 'gd_loss'"),
        ({"variants": [make_variant() | {"steps": [0, 1]}]}, r"loss has shape \(5, 9\), seeds and steps ask for \(5, 2\)"),
        ({"variants": [make_variant() | {"loss": [[0.1], [0.1, 0.2]]}]}, "cannot be drawn"),
        ({"variants": [make_variant() | {"loss": 3}]}, "cannot be drawn"),
    ],
)
def test_a_broken_record_is_one_line(directory, change, wanted):
    path = directory / "one-step" / "record.json"
    path.write_text(json.dumps(make_record() | change))
    error_line(directory, path, wanted)


def test_a_missing_record_is_one_line(directory):
    path = directory / "one-step" / "record.json"
    path.unlink()
    error_line(directory, path, "is missing")


def test_a_directory_without_experiments(tmp_path):
    error_line(tmp_path, tmp_path, "holds no experiment")


def error_line(directory, path, wanted):
    with pytest.raises(ReportError, match=wanted) as caught:
        write_report(directory)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert [found.name for found in directory.glob("*report*")] == []


def test_an_error_leaves_the_old_page(tmp_path):
    save(tmp_path, make_results(), make_record(variants=[]))
    before = write_report(tmp_path).read_bytes()
    (tmp_path / "one-step" / "record.json").write_text("{")
    with pytest.raises(ReportError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def test_without_matplotlib_the_error_says_what_to_install(directory, monkeypatch):
    monkeypatch.delitem(sys.modules, "gdssm.figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=re.escape("figures need matplotlib: pip install 'gdssm[report]'")):
        write_report(directory)


def test_a_hundred_seeds_stay_small(tmp_path):
    variant = make_variant(n_seeds=100, n_steps=60, d=20)
    save(tmp_path, make_results(100), make_record(variants=[variant]))
    assert write_report(tmp_path).stat().st_size < 1_000_000


def test_plain_names():
    assert plain_name("success_rate") == "share of random layers that became gradient descent"
    assert plain_name("full_decay_loss_ratio") == f"{plain_name('loss_ratio')} (full decay)"
    assert plain_name("loss_ratio_full_decay") == f"{plain_name('loss_ratio')} (full decay)"
    assert len({plain_name(name) for name in report.PLAIN}) == len(report.PLAIN)
    assert plain_name("rates_of") == "rates of"  # not "rate"
    assert plain_name("learned & fast") == "learned & fast"


def test_summary_table_shows_every_claim():
    from rich.console import Console

    results = make_results(claims=[claim("loss_ratio", 1.4, 1.02, holds=False), claim("[bold]x", 0.5, [0, 1], "between")])
    console = Console(width=140)
    with console.capture() as shown:
        console.print(summary_table(results))
    text = shown.get()
    for part in ("loss_ratio", "1.4", "≤ 1.02", "✗ no", "[bold]x", "0 to 1", "✓ yes", "one-step", "No: 1 of 2 claims"):
        assert part in text


def lines(axes):
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.get_lines()}


def band(axes, label):
    """Lower and upper edge of a filled band, at the first and last step."""
    (found,) = [item for item in axes.collections if item.get_label() == label]
    vertices = found.get_paths()[0].vertices
    ends = sorted({vertices[:, 0].min(), vertices[:, 0].max()})
    return [(vertices[vertices[:, 0] == end, 1].min(), vertices[vertices[:, 0] == end, 1].max()) for end in ends]


def test_loss_figure_shows_the_recorded_values():
    variant = make_variant()
    (axes,) = figures.loss_figure(variant).axes
    drawn, loss = lines(axes), np.array(variant["loss"])
    np.testing.assert_array_equal(drawn["median of 5 seeds"], np.median(loss, axis=0))
    for name, key in (("predicting zero", "zero_loss"), ("same tasks", "gd_loss"), ("closed form", "closed_form_loss")):
        (heights,) = [height for label, height in drawn.items() if name in label]
        assert set(heights) == {variant[key]}
    low, high = np.quantile(loss, [0.1, 0.9], axis=0)
    np.testing.assert_allclose(band(axes, "10 to 90 % of seeds"), [(low[0], high[0]), (low[-1], high[-1])])
    np.testing.assert_allclose(band(axes, "lowest to highest seed")[-1], (loss[:, -1].min(), loss[:, -1].max()))
    assert axes.get_xlabel() == "training step"
    assert "loss" in axes.get_ylabel()
    assert axes.get_yscale() == "linear"


def test_loss_axis_is_logarithmic_where_values_span_a_decade():
    variant = make_variant()
    variant["loss"][0][0] = 7.0
    assert figures.loss_figure(variant).axes[0].get_yscale() == "log"


def test_alignment_figure_shows_the_recorded_values():
    variant = make_variant()
    variant["sensitivity_cosine"][0][-1] = 1.0 + 1e-8  # rounding: stays on the logarithmic axis
    panels = figures.alignment_figure(variant).axes
    cosine = np.array(variant["sensitivity_cosine"])
    wanted = (1 - cosine, np.array(variant["sensitivity_difference"]), np.array(variant["prediction_difference"]))
    for axes, values in zip(panels, wanted, strict=True):
        assert axes.get_yscale() == "log"
        assert axes.get_ylabel()
        expected = np.median(np.maximum(values, figures.FLOOR), axis=0)
        np.testing.assert_array_equal(lines(axes)["median of 5 seeds"], expected)
    assert panels[0].get_ylabel() == "1 - sensitivity cosine"
    assert panels[0].texts[0].get_text() == f"cosine\n{np.median(cosine[:, -1]):.5f}"
    assert panels[2].get_xlabel() == "training step"


def test_weights_figure_shows_the_median_seed_beside_the_construction():
    variant = make_variant()
    position = figures.middle_seed(variant)
    final = np.array(variant["loss"])[:, -1]
    assert final[position] == np.median(final)
    axes = figures.weights_figure(variant).axes
    for row, name in enumerate(("w_q", "d", "c", "decay")):
        left, right = axes[2 * row], axes[2 * row + 1]
        shown = [item.collections[0] for item in (left, right)]
        np.testing.assert_array_equal(shown[0].get_array(), np.atleast_2d(variant["trained"][name][position]))
        np.testing.assert_array_equal(shown[1].get_array(), np.atleast_2d(variant["constructed"][name]))
        assert shown[0].get_clim() == shown[1].get_clim()
        assert left.get_title().endswith("trained")
        assert right.get_title().endswith("constructed")
        assert left.get_xlabel()
        assert left.yaxis_inverted()  # row 1 on top, as a matrix is written
    assert [text.get_text() for text in axes[1].texts] == ["0.000", "1.000", *["0.000"] * 7]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["$x_k$", "$y_k$", "$x_{k+1}$"]
    assert f"seed {variant['seeds'][position]} " in figures.caption_weights(variant)


def test_one_seed_has_no_bands():
    (axes,) = figures.loss_figure(make_variant(n_seeds=1)).axes
    assert len(axes.collections) == 0
    assert "one seed" in lines(axes)
    assert "band" not in figures.PLOTS[0].caption(make_variant(n_seeds=1))


def test_a_large_heatmap_is_a_picture():
    svg = figures.to_svg(figures.weights_figure(make_variant(d=50, n_seeds=2)), "f", "label")
    assert svg.count("data:image/png;base64,") == 4  # C and Lambda, trained and constructed
    assert len(svg) < 300_000


def test_figures_do_not_depend_on_the_reader_s_settings():
    import matplotlib

    variant = make_variant()
    before = figures.to_svg(figures.loss_figure(variant), "f", "label")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "none"}):
        assert figures.to_svg(figures.loss_figure(variant), "f", "label") == before
