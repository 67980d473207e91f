"""The figures show the recorded values, and the pictures of the readme are those of the committed record."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gdssm import figures
from recorded import make_variant

ROOT = Path(__file__).parent.parent


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


def test_filling_figure_shows_the_state_beside_gradient_descent():
    variant = make_variant()
    drawn = [axes for axes in figures.filling_figure(variant).axes if axes.get_title() or axes.collections]
    matrices = [axes.collections[0].get_array() for axes in drawn[:7]]
    for row, name in enumerate(("trained", "gradient_descent")):
        for column, n in enumerate((1, 3, 6)):
            np.testing.assert_array_equal(matrices[3 * row + column], variant["filling"][name][n])
    np.testing.assert_array_equal(matrices[6], variant["filling"]["true"])
    assert [axes.get_title() for axes in drawn[:3]] == ["after 1 example", "after 3 examples", "after 6 examples"]
    assert len({axes.collections[0].get_clim() for axes in drawn[:7]}) == 1  # one colour scale
    assert all(axes.yaxis_inverted() for axes in drawn[:7])


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    """What `make figures` draws now."""
    specification = importlib.util.spec_from_file_location("figures_of_the_readme", ROOT / "scripts" / "figures.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return {path.name: path for path in script.draw(tmp_path_factory.mktemp("pictures"))}


@pytest.mark.parametrize("name", ["one-step.png", "filling.png"])
def test_the_readme_s_pictures_are_up_to_date(redrawn, name):
    """Else run `make figures`. The record is compared by its hash; pixels, where the same matplotlib drew them."""
    committed, now = (Image.open(path) for path in (ROOT / "docs" / name, redrawn[name]))
    assert committed.text["Description"] == now.text["Description"]
    assert f"docs/{name}" in (ROOT / "README.md").read_text()
    if committed.text["Software"] != now.text["Software"]:
        pytest.skip(f"drawn with {committed.text['Software']}, here is {now.text['Software']}")
    difference = np.abs(np.subtract(*(np.asarray(one.convert("RGB"), dtype=int) for one in (committed, now))))
    assert difference.max() <= 8  # of 255: machines may round an edge's grey differently, no more
