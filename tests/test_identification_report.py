"""The page of an identification: it says what identify.json holds, stands alone, and refuses a damaged file in one line."""

import copy
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gdssm import Context, LinearRegression, Predictor, cli, construct, learners, save
from gdssm.analysis import identify, layer_readouts
from gdssm.analysis.reading import read_identification
from gdssm.identification_report import read, render, verdict, write_page
from gdssm.records import ReportError
from recorded import HOSTILE, Page

TASK = LinearRegression(3, 2, 6)
OPTIONS: dict[str, Any] = {"tasks": 60, "max_steps": 3}


def with_noise(predictor: Predictor, size: float) -> Predictor:
    def predict(c: Context) -> Tensor:
        return predictor(c) + size * (1e4 * (c.x_query.sum(2, keepdim=True) + c.y.sum((1, 2))[:, None, None])).sin()

    return predict


def record_of(predictors: dict[str, Predictor], task: LinearRegression = TASK, **further: Any) -> dict[str, Any]:
    """identify.json's content for these."""
    spread = identify(list(predictors.values()), task, **OPTIONS)
    record = {
        "model": "own model",
        "kind": "run",
        "task": dataclasses.asdict(task),
        "seed": 0,
        "max_steps": 3,
        "answers": {name: one.as_record() for name, one in zip(predictors, spread.each, strict=True)},
        "counts": spread.counts,
        "layers": None,
        "environment": {"gdssm": "0.1.0"},
    }
    return json.loads(json.dumps(record | further))


def polynomial(*rates: float) -> Predictor:
    return with_noise(learners.predictor(learners.polynomial, rates=rates), 0.0005)


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    """A model of two steps, with what it predicts after each."""
    model = construct.polynomial(3, 2, rates=(0.4, 1.5), dtype=torch.float64)
    each = identify(layer_readouts(model), TASK, **OPTIONS).each
    layers = {"of": "own model", "unit": "iteration", "each": [found.as_record() for found in each], "refused": ""}
    return record_of({"own model": polynomial(0.4, 1.5)}, layers=layers)


@pytest.fixture(scope="module")
def many() -> dict[str, Any]:
    """Four seeds: three of two steps with other rates, and one that is none of the learners."""
    predictors = {f"seed {i}": polynomial(0.4 + 0.01 * i, 1.5 - 0.02 * i) for i in range(3)}
    return record_of(predictors | {"seed 3": with_noise(learners.predictor(learners.ridge, alpha=0.3), 2.0)})


@pytest.fixture(scope="module")
def tied() -> dict[str, Any]:
    """Ridge so weak that noise hides its difference from least squares."""
    weak = with_noise(learners.predictor(learners.ridge, alpha=0.008), 0.05)
    return record_of({"own model": weak}, LinearRegression(4, 3, 30))


@pytest.fixture(scope="module")
def exact() -> dict[str, Any]:
    """Gradient descent to rounding, which richer families are too."""
    return record_of({"own model": learners.predictor(learners.gradient_descent, lr=4.0, steps=2)})


def rows(text: str) -> list[str]:
    return [row.replace("\xa0", " ") for row in Page(text).rows]


def test_the_answer_comes_first(one: dict[str, Any]) -> None:
    text = render(one)
    best = one["answers"]["own model"]["best"]
    said = unescape(re.search(r'class="verdict">(.*?)</p>', text, re.DOTALL)[1])  # type: ignore[index]
    rates = " ".join(f"{rate:.4g}" for rate in best["numbers"]["rates"])
    assert f"own model predicts as gradient descent with a rate for each step, 2 steps (rates {rates}) would" in said
    low, high = best["interval"]
    assert f"differ by {100 * best['distance']:.2g} % (95 % interval {100 * low:.2g} to {100 * high:.2g} %), on 30 tasks" in said
    assert text.index("verdict") < text.index("<svg") < text.index("<table")


def test_every_family_has_its_row_with_shape_and_word(one: dict[str, Any], tied: dict[str, Any], exact: dict[str, Any]) -> None:
    for record in (one, tied, exact):
        found = read(record).spread.each[0]
        shown = rows(render(record))
        for match in found.by_family:
            word = found.relation(match)
            sign = {"answer": "●", "the same": "■", "tie": "▲", "": "◇"}[word]
            low, high = match.interval
            wanted = f"{match.name}{sign} {word or 'other'}{match.distance:.3g}{low:.3g} to {high:.3g}{match.fitted}"
            assert any(row.startswith(wanted) for row in shown), wanted
    assert "differ by less than 0.001 %, on" in verdict(read(exact))
    assert any("■ the same" in row for row in rows(render(exact)))
    assert "gradient descent with a rate for each step (k = 2, 3)" in render(exact)
    assert any("▲ tie" in row for row in rows(render(tied)))
    assert "do not tell it from 1 other learner, marked ▲." in verdict(read(tied))


def test_what_was_identified_stands_there(one: dict[str, Any]) -> None:
    shown = rows(render(one))
    for wanted in (
        "modelown model",
        "kindtraining run",
        "input features3",
        "examples in a context6",
        "tasks that the distances were measured on30",
        "seed of the tasks0",
    ):
        assert wanted in shown


def test_layers_have_their_lines(one: dict[str, Any]) -> None:
    text = render(one)
    assert "After each iteration" in text
    shown = rows(text)
    assert any(row.startswith("iteration 1gradient descent, 1 step") and "lr 2.4" in row for row in shown)
    assert any(row.startswith("iteration 2gradient descent with a rate for each step, 2 steps") for row in shown)
    refused = one | {"layers": {"of": "own model", "unit": "layer", "each": [], "refused": "predictor gave <nothing>"}}
    assert "Not identified: predictor gave &lt;nothing&gt;." in render(refused)


def test_several_seeds_are_counted_and_spread(many: dict[str, Any]) -> None:
    text = render(many)
    shown = rows(text)
    name = "gradient descent with a rate for each step, 2 steps"
    assert f"{name}3" in shown
    assert "none of these1" in shown
    assert [row.startswith(f"seed {i}{name}") for i in range(3) for row in shown if row.startswith(f"seed {i}")] == [True] * 3
    assert any(row.startswith("seed 3none of these; nearest: ") for row in shown)
    assert verdict(read(many)).startswith(f"3 of 4 seeds of own model predict as {name} would; 1: none of these.")
    labels = [unescape(label) for label in re.findall(r'role="img" aria-label="([^"]*)"', text)]
    assert len(labels) == 2
    rates = [record["best"]["numbers"]["rates"] for record in list(many["answers"].values())[:3]]
    firsts = sorted(pair[0] for pair in rates)
    assert f"rates 1 {firsts[0]:.4g} to {firsts[2]:.4g}, median {firsts[1]:.4g}" in labels[1]
    assert "(answer in 3)" in labels[0]


def test_none_of_these_is_said(many: dict[str, Any]) -> None:
    record = many | {"answers": {"own model": many["answers"]["seed 3"]}}
    said = verdict(read(record))
    assert said.startswith("None of the learners tried: ")
    assert "90 % are asked for" in said
    assert "● answer" not in "".join(rows(render(record)))


def test_a_record_becomes_what_it_was_made_of(one: dict[str, Any], tied: dict[str, Any], many: dict[str, Any]) -> None:
    for record in (one, tied, many):
        for name, values in record["answers"].items():
            assert json.loads(json.dumps(read_identification(values, name).as_record())) | {"explained": 0} == values | {
                "explained": 0
            }


def test_the_page_stands_alone_and_is_the_same_each_time(one: dict[str, Any], many: dict[str, Any]) -> None:
    for record in (one, many):
        text = render(record)
        assert text == render(json.loads(json.dumps(record)))
        assert len(text.encode()) < 1_000_000
        page = Page(text)
        assert len(page.ids) == len(set(page.ids))
        assert not page.tags & {"script", "link", "iframe", "img", "image", "metadata"}
        assert {value[1:] for value in page.loads if value.startswith("#")} <= set(page.ids)
        assert not [value for value in page.loads if "//" in value]
        assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in text


def test_text_of_the_record_is_escaped(one: dict[str, Any]) -> None:
    text = render(one | {"model": HOSTILE, "kind": HOSTILE, "environment": {HOSTILE: HOSTILE}})
    assert "<script" not in text
    assert unescape(text).count(HOSTILE) >= 5
    assert Page(text).open == []


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def apply(record: dict[str, Any]) -> dict[str, Any]:
        record = copy.deepcopy(record)
        change(record)
        return record

    return apply


def answer(record: dict[str, Any]) -> dict[str, Any]:
    return record["answers"]["own model"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("task"), "lacks 'task'"),
        (lambda r: r.update(model=3), "model must be of type str, got 3"),
        (lambda r: r.update(answers={}), "answers is empty"),
        (lambda r: r.update(answers={"a": 7}), "answers.a must be an object, got 7"),
        (lambda r: answer(r).pop("ties"), "answers.own model lacks 'ties'"),
        (lambda r: answer(r).update(table=[]), "table is empty"),
        (lambda r: answer(r)["table"][0].update(family="polynomal"), "'polynomal' (did you mean 'polynomial'?); allowed: zero"),
        (lambda r: answer(r)["table"][2].update(distance="far"), "table[2].distance must be a finite number >= 0, got 'far'"),
        (lambda r: answer(r)["table"][0].update(interval=[0.1]), "interval holds 1 numbers; two are needed"),
        (
            lambda r: answer(r)["best"].update(steps=40),
            "best is gradient descent with a rate for each step, 40 steps, which is not",
        ),
        (lambda r: answer(r)["table"][0].update(numbers={"lr": "fast"}), "numbers.lr must hold finite numbers, got 'fast'"),
        (lambda r: answer(r)["table"][0].update(numbers={"lr": [[1.0]]}), "numbers.lr must be a number or a list of numbers"),
        (lambda r: answer(r)["table"][0].update(numbers={"matrix": 3.0}), "numbers.matrix must be a list of lists of numbers"),
        (lambda r: answer(r)["tasks"].update(scored=0), "tasks.scored must be an integer >= 1, got 0"),
        (lambda r: r.update(layers=[]), "layers must be an object with a list 'each'"),
    ],
)
def test_damaged_records_are_one_line(
    one: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = damaged(change)(one)
    with pytest.raises(ReportError, match=re.escape(message)):
        render(record)
    (tmp_path / "identify.json").write_text(json.dumps(record))
    code, out, err = command("report", str(tmp_path), capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(tmp_path / "identify.json") in err
    assert [path.name for path in tmp_path.iterdir()] == ["identify.json"]


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save(construct.gradient_descent(3, 2, lr=4.0, n_context=6, steps=2), tmp_path / "model.safetensors"))


FAST = ("--tasks", "40", "--max-steps", "2", "--inputs", "3", "--targets", "2", "--examples", "6")


def test_the_command_writes_the_page_and_report_makes_it_again(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, text, err = command("identify", model, *FAST, "--out", str(out), capsys=capsys)
    assert (code, err) == (0, "")
    assert "after iteration 1: gradient descent, 1 step with lr 4 (distance " in text
    assert "after iteration 2: gradient descent, 2 steps with lr 4 (distance " in text
    assert text.splitlines()[-1] == f"page: {out / 'identify.html'}"
    content = (out / "identify.html").read_bytes()
    code, text, _ = command("report", str(out), capsys=capsys)
    assert (code, text) == (0, f"report: {out / 'identify.html'}\n")
    assert (out / "identify.html").read_bytes() == content
    code, _, _ = command("report", str(out), "--out", str(tmp_path / "page.html"), capsys=capsys)
    assert (tmp_path / "page.html").read_bytes() == content
    code, _, err = command("report", str(out), "--out", str(tmp_path / "page.json"), capsys=capsys)
    assert code == 2
    assert "another name" in err


def test_layers_can_be_left_out(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = command("identify", model, *FAST, "--no-layers", "--out", str(tmp_path / "out"), capsys=capsys)
    assert code == 0
    assert "after iteration" not in text
    assert json.loads((tmp_path / "out" / "identify.json").read_text())["layers"] is None
    assert "After each" not in (tmp_path / "out" / "identify.html").read_text()


def test_without_matplotlib_the_answer_and_the_file_are_there(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("gdssm.figures", "gdssm.identification_figures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    code, text, err = command("identify", model, *FAST, "--no-layers", "--out", str(tmp_path / "out"), capsys=capsys)
    assert (code, err) == (0, "")
    assert text.splitlines()[-1] == "no page: it needs matplotlib, pip install 'gdssm[report]'"
    assert "Gradient descent, 2 steps with lr 4" in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["identify.json"]
    with pytest.raises(ReportError, match=r"the page needs matplotlib: pip install 'gdssm\[report\]'"):
        write_page(tmp_path / "out")


def test_experiments_come_before_an_identification(one: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "identify.json").write_text(json.dumps(one))
    (tmp_path / "results.json").write_text("{}")
    code, _, err = command("report", str(tmp_path), capsys=capsys)
    assert code == 2
    assert "results.json" in err
