"""The interactive view: its data are the record's, what stands on the page is its last position, and a browser moves it."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from gdssm import heatmaps, interactive
from gdssm.heatmaps import Heatmap
from gdssm.records import rounded
from gdssm.report import write_report
from recorded import make_variant

RECORDS = Path(__file__).parent.parent / "docs" / "records"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-quic", "--enable-logging=stderr", "--dump-dom"),
)


def data_blocks(page):
    """The embedded data by panel."""
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {block["key"]: block for block in map(json.loads, blocks)}


def frames(block, name):
    found = block["maps"][name]
    return np.array(found["frames"], dtype=float).reshape(-1, found["rows"], found["columns"])


def test_the_data_of_one_context_are_the_record_s():
    variant = make_variant()
    filling = variant["filling"]
    block = data_blocks(interactive.view(variant))["example"]
    for name in ("trained", "gradient_descent"):
        np.testing.assert_allclose(frames(block, name), filling[name], rtol=1e-5)
        assert block["maps"][name]["high"] == -block["maps"][name]["low"] == block["maps"]["true"]["high"]
    np.testing.assert_allclose(frames(block, "true"), [filling["true"]], rtol=1e-5)
    np.testing.assert_allclose(frames(block, "x")[1:, 0], filling["x"], rtol=1e-5)
    np.testing.assert_allclose(frames(block, "y")[1:, :, 0], filling["y"], rtol=1e-5)
    assert np.isnan(frames(block, "x")[0]).all()  # before the first example
    assert block["at"] == list(range(7))
    texts = block["texts"]
    assert texts["position"][3] == "after 3 of 6 examples"
    assert [texts[name][0] for name in texts][1:] == ["-", "-", "-", "1.000"]
    for n in range(1, 7):
        layer, step, true = (np.ravel(filling[name][n] if name != "true" else filling[name]) for name in
                             ("trained", "gradient_descent", "true"))  # fmt: skip
        for a, b, name in ((layer, step, "layer"), (step, true, "step")):
            cosine = sum(p * q for p, q in zip(a, b, strict=True)) / (sum(p * p for p in a) * sum(q * q for q in b)) ** 0.5
            distance = (sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / sum(q * q for q in b)) ** 0.5
            assert float(texts[f"{name}_cosine"][n]) == pytest.approx(cosine, abs=6e-6)
            assert float(texts[f"{name}_distance"][n]) == pytest.approx(distance, abs=6e-4)


def test_the_data_of_the_weights_are_the_record_s():
    variant = make_variant()
    snapshots = variant["snapshots"]
    block = data_blocks(interactive.view(variant, "2"))["step2"]
    for name in ("w_q", "d", "c", "decay"):
        np.testing.assert_allclose(frames(block, name).squeeze(), np.squeeze(snapshots[name]), rtol=1e-5)
        built = frames(block, f"{name}_constructed")
        np.testing.assert_allclose(built.squeeze(), variant["constructed"][name])
        if name != "decay":  # the scale is that of the end of training, however large the weights were before it
            assert block["maps"][name]["high"] == pytest.approx(max(np.abs(snapshots[name][-1]).max(), np.abs(built).max()))
        assert {block["maps"][key]["low"] for key in (name, f"{name}_constructed")} == {block["maps"][name]["low"]}
    assert block["at"] == variant["steps"]
    for i, step in enumerate(variant["steps"]):
        texts = {name: values[i] for name, values in block["texts"].items()}
        assert texts["position"] == f"step {step} of 4000"
        assert float(texts["loss"]) == pytest.approx(variant["loss"][2][i], rel=1e-3)  # of seed 2
        assert float(texts["ratio"]) == pytest.approx(variant["loss"][2][i] / variant["gd_loss"], rel=1e-4)
        assert float(texts["cosine"]) == pytest.approx(variant["sensitivity_cosine"][2][i], abs=1e-5)
    x, y = np.array(block["marker"]).T
    assert (x[0], x[-1]) == (0, interactive.CURVE[0])
    losses = np.log([*variant["loss"][2], variant["gd_loss"]])
    np.testing.assert_allclose(y, interactive.CURVE[1] * (losses.max() - losses[:-1]) / np.ptp(losses), atol=0.06)


def test_only_the_median_seed_is_called_that():
    variant = make_variant()
    order = np.argsort([row[-1] for row in variant["loss"]])
    for position in range(5):
        seed = variant["seeds"][order[position]]
        variant["snapshots"]["seed"] = seed
        opening = f"Weights of the layer of seed {seed}, the median final loss." if position == 2 else f"layer of seed {seed}. "
        assert opening in interactive.weights_html(variant, "")


def test_the_page_shows_the_last_position_without_a_script():
    variant = make_variant()
    html = interactive.view(variant)
    block = data_blocks(html)["example"]
    assert html.count('class="controls" hidden') == 2
    for name in block["texts"]:
        assert f'data-text="{name}"' in html
    assert ">after 6 of 6 examples</output>" in html
    assert ">step 4000 of 4000</output>" in html
    (cells,) = re.findall(r'<g data-map="trained"[^>]*>(.*?)</g>', html)
    shown = re.findall(r'fill="([^"]*)"', cells)
    heatmap = block["maps"]["trained"]
    colours = block["palettes"]["signed"]
    span = heatmap["high"] - heatmap["low"]
    assert shown == [colours[int((v - heatmap["low"]) / span * 100 + 0.5)] for v in heatmap["frames"][-1]]
    assert re.findall(r'<input type="range" min="0" max="(\d+)" value="(\d+)" aria-label="([^"]+)">', html) == [
        ("6", "6", "Examples read"),
        ("8", "8", "Training step"),
    ]


def test_no_text_ends_the_data_block():
    panel = interactive.Panel("example", [0], {"position": ["</script><script>alert(1)</script>"]}, {}, [], [])
    assert panel.as_script().count("<") == 2
    (block,) = data_blocks(panel.as_script()).values()
    assert block["texts"] == panel.texts


def test_palettes_keep_their_order_without_colour():
    signed, share = heatmaps.shades("signed"), heatmaps.shades("share")
    assert len(signed) == len(share) == heatmaps.SHADES
    assert (signed[0], signed[50], signed[-1]) == ("#053061", "#f7f7f7", "#67001f")

    def light(colour):
        return np.dot([0.299, 0.587, 0.114], [int(colour[i : i + 2], 16) for i in (1, 3, 5)])

    assert (np.diff([light(colour) for colour in share]) > 0).all()
    assert (np.diff([light(colour) for colour in signed[:51]]) > 0).all()
    assert (np.diff([light(colour) for colour in signed[50:]]) < 0).all()
    assert [heatmaps.is_dark(colour) for colour in (signed[0], signed[50], share[0], share[-1])] == [True, False, True, False]


def test_marks_tell_negative_cells_and_those_beyond_the_scale():
    heatmap = Heatmap("a", np.array([[[-0.95, -0.5, -0.001, 0.5, 7.0, np.nan]]]), -1.0, 1.0)
    found = heatmaps.marks(heatmap, heatmap.frame(-1))
    assert found == {"light": "M0.3 0.5h.4", "dark": "M1.3 0.5h.4", "beyond": "M4.2 0.2l.6 .6m0 -.6l-.6 .6"}
    assert heatmap.as_data()["frames"] == [[-0.95, -0.5, -0.001, 0.5, 7.0, None]]
    assert heatmaps.grid("a", heatmap).count('fill="none"') == 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(-0.0001, "0.00"), (1.0, "1.00"), (-9.994, "-9.99"), (12.34, "12.3"), (-456.7, "-457"), (999.6, "1e3"), (-7.2e4, "-7e4")],
)
def test_values_fit_their_cells(value, wanted):
    assert heatmaps.short(value) == wanted
    assert len(wanted) <= 5


def test_large_layers_are_thinned():
    assert interactive.thinned(11, 100) == list(range(11))
    kept = interactive.thinned(1001, 2500)
    assert (kept[0], kept[-1], len(kept)) == (0, 1000, 12)
    assert interactive.thinned(11, 10**9) == [0, 10]


def test_the_record_of_the_documentation_shows_gradient_descent(tmp_path):
    """The committed run: at every example the layer's state is close to the step, and the page is small."""
    page = write_report(RECORDS / "one-step", tmp_path / "x.html").read_text()
    texts = data_blocks(page)["example"]["texts"]
    assert all(float(cosine) > 0.999 for cosine in texts["layer_cosine"][1:])
    assert all(float(distance) < 0.05 for distance in texts["layer_distance"][1:])
    assert float(texts["step_distance"][-1]) > 0.3  # one step is not the solution, and the page does not say so
    assert len(page) < 600_000


@pytest.fixture(scope="module")
def page(two_variants):
    return two_variants


def browse(page, fragment, tmp_path, *flags):
    """The page's DOM after its script has run, and what the browser logged about it."""
    command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={tmp_path}", f"{page.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def shown(dom, panel, name):
    """The text of a panel's element, after the script."""
    (section,) = re.findall(rf'<section class="panel" id="{panel}".*?</section>', dom, re.DOTALL)
    (text,) = re.findall(rf'data-text="{name}"[^>]*>([^<]*)<', section)
    return unescape(text)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome")
@pytest.mark.parametrize(
    ("fragment", "example", "step", "second"),
    [("", 6, 8, 6), ("#example=3&step=1100", 3, 2, 6), ("#step=0&example2=2&example=x", 6, 0, 2), ("#e0", 6, 8, 6)],
)
def test_a_browser_moves_to_the_position_of_the_address(page, tmp_path, fragment, example, step, second):
    dom, logged = browse(page, fragment, tmp_path)
    assert logged == []
    blocks = data_blocks(page.read_text())
    for panel, position in (("example", example), ("step", step), ("example2", second)):
        block = blocks[panel]
        for name, values in block["texts"].items():
            assert shown(dom, panel, name) == values[position]
        (section,) = re.findall(rf'<section class="panel" id="{panel}".*?</section>', dom, re.DOTALL)
        assert f'aria-valuetext="{block["texts"]["position"][position]}"' in section
        assert 'class="controls" hidden' not in section
        for name, found in block["maps"].items():  # what the script draws is what Python draws
            at = position if len(found["frames"]) > 1 else 0
            values = np.array(found["frames"][at], dtype=float).reshape(1, found["rows"], found["columns"])
            heatmap = Heatmap("", values, found["low"], found["high"], found["palette"], "written" in found)
            drawn = re.findall(rf'<g data-map="{name}" transform="[^"]*">(.*?)</g>', section)
            wanted = re.findall(r'(?:fill|class|d)="([^"]*)"|>([^<]+)<', heatmaps.grid(name, heatmap))
            assert drawn
            assert all(re.findall(r'(?:fill|class|d)="([^"]*)"|>([^<]+)<', one) == wanted for one in drawn)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome")
def test_a_changed_script_does_not_run(page, tmp_path):
    """The policy names this script alone: the same page with another one stays as it was."""
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace("const SHADES = 101;", "const SHADES = 101; "))
    dom, logged = browse(changed, "#example=3", tmp_path / "profile")
    assert any("Content Security Policy" in line for line in logged)
    assert shown(dom, "example", "position") == "after 6 of 6 examples"


HANDS = """<body><iframe src="{name}"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, panel = page.querySelector("#example");
  const slider = panel.querySelector("input"), button = panel.querySelector("button"), matrix = panel.querySelector("svg.map");
  const said = [], say = () => said.push([panel.querySelector("[data-text=position]").textContent,
    panel.querySelector(".cell").textContent, button.textContent, page.location.hash, panel.querySelectorAll(".cursor").length]);
  const key = (name) => matrix.dispatchEvent(new KeyboardEvent("keydown", {{ key: name, bubbles: true }}));
  slider.value = 2;
  slider.dispatchEvent(new Event("input"));
  slider.dispatchEvent(new Event("change"));
  say();
  ["ArrowRight", "ArrowDown", "ArrowRight", "Tab"].forEach(key);
  say();
  ["ArrowUp", "ArrowUp"].forEach(key);
  say();
  panel.querySelectorAll("g[data-map=y] rect")[1].dispatchEvent(new PointerEvent("pointermove", {{ bubbles: true }}));
  say();
  button.click();
  say();
  setTimeout(() => {{
    say();
    document.body.textContent = "said" + JSON.stringify(said) + "done";
  }}, 30000);
}};
</script></body>"""


def by_hand(page, tmp_path, *flags):
    """Position, cell read out, the button's name, address and marked cells after each of six acts."""
    wrapper = page.with_name("hands.html")
    wrapper.write_text(HANDS.format(name=page.name))
    flags = ("--allow-file-access-from-files", "--virtual-time-budget=60000", *flags)
    dom, logged = browse(wrapper, "", tmp_path, *flags)
    assert logged == []
    (said,) = re.findall("said(.*)done", dom)
    return json.loads(unescape(said))


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome")
def test_slider_keys_pointer_and_play(page, tmp_path):
    moved, keyed, up, pointed, playing, played = by_hand(page, tmp_path)
    assert (moved[0], moved[3], moved[4]) == ("after 2 of 6 examples", "#example=2", 0)
    filling = make_variant()["filling"]
    values = [filling["trained"][2][1][1], filling["gradient_descent"][2][1][1], filling["true"][1][1]]
    read = re.fullmatch(r"target 2, input 2: trained layer (\S+); gradient descent (\S+); true W (\S+)", keyed[1])
    np.testing.assert_allclose([float(value) for value in read.groups()], values, rtol=1e-5)
    assert keyed[4] == 3  # the same cell is marked in all three
    assert up[1].startswith("target 1, input 2: ")  # and stops at the edge
    assert pointed[1] == f"target 2: y of the latest example {rounded(filling['y'][1][1])}"
    assert (playing[0], playing[2]) == ("after 3 of 6 examples", "Pause")
    assert (played[0], played[2], played[3]) == ("after 6 of 6 examples", "Play", "#example=6")


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome")
def test_nothing_moves_by_itself_where_less_motion_is_asked_for(page, tmp_path):
    *_, pressed, later = by_hand(page, tmp_path, "--force-prefers-reduced-motion")
    assert pressed[:4:2] == later[:4:2] == ["after 3 of 6 examples", "Next"]
