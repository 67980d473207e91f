"""The examples run as their files say, without warnings, and their numbers are what they claim."""

import ast
import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import gdssm
from gdssm import cli, runs
from gdssm.config_files import read_config_file

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
CONFIGURATIONS = ("one_step", "text")
SCRIPTS = ("classify", "deep_stream", "hugging_face", "stream", "table", "train_and_look_inside")


def environment() -> dict[str, str]:
    """This process's, with the gdssm under test first on the path."""
    paths = [str(Path(gdssm.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def printed(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The lines `NAME: VALUE` that an example prints, run as a program in this process, where warnings are errors."""
    monkeypatch.chdir(folder)
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert err == ""
    assert list(folder.iterdir()) == []  # an example leaves nothing behind
    return dict(line.split(": ") for line in out.splitlines())


def test_every_example_is_tested_and_short() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        NOTEBOOK.name,
        *(f"{name}.py" for name in (*CONFIGURATIONS, *SCRIPTS)),
    }
    for script in (*CONFIGURATIONS, *SCRIPTS):
        assert len((EXAMPLES / f"{script}.py").read_text().splitlines()) < 50


def test_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("stream", tmp_path, monkeypatch, capsys)
    assert lines.pop("numbers in the state") == "64 after 10 examples, 64 after 20000"
    assert list(lines) == [f"{what}, relative error" for what in ("in pieces", "merged", "without the first example")]
    assert all(float(value) < 1e-12 for value in lines.values())


def test_deep_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("deep_stream", tmp_path, monkeypatch, capsys)
    before, after = (float(number) for number in re.findall(r"[\d.]+(?= before| after)", lines.pop("bits per character")))
    assert 7.5 < before < 8.5  # 256 equally likely bytes
    assert after < 5
    assert lines.pop("numbers in the state") == "512 after 10 bytes, 512 after all"
    assert list(lines) == [f"{what}, relative error" for what in ("in pieces", "merged", "without the first")]
    assert all(float(value) < 1e-10 for value in lines.values())


def test_classify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("classify", tmp_path, monkeypatch, capsys)
    assert re.fullmatch(r"\[M.*\] = \d", lines.pop("an expression"))
    chance = float(lines.pop("always the most frequent value"))
    assert chance < 0.2 < chance + 0.1 < float(lines.pop("accuracy"))
    assert float(lines.pop("padded, largest change")) < 1e-5
    assert lines == {}


def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    lines = printed("hugging_face", tmp_path, monkeypatch, capsys)
    if bars:
        logging.enable_progress_bar()
    before, after = (float(number) for number in re.findall(r"[\d.]+(?= before| after)", lines.pop("bits per byte")))
    assert 7.5 < before < 8.5  # 256 equally likely bytes
    assert after < 5.5
    assert lines.pop("loaded, same logits") == "True"
    assert lines.pop("numbers in a block's state") == "512 after 10 bytes, 512 after all"
    first, second = ast.literal_eval(lines.pop("written"))
    assert (first[:2], second[:4]) == ("to", "from")
    assert lines == {}


@pytest.mark.slow  # the notebook trains on the same task, with the same bounds
def test_train_and_look_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {name: float(value) for name, value in printed("train_and_look_inside", tmp_path, monkeypatch, capsys).items()}
    assert lines.pop("loss ratio") == pytest.approx(1, abs=0.02)
    assert 0.998 < lines.pop("cosine") <= 1
    assert 0 < lines.pop("largest weight off the construction") < 0.05
    assert lines.pop("learning rate over the best") == pytest.approx(1, abs=0.1)
    assert lines == {}


def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("table", tmp_path, monkeypatch, capsys)
    assert float(lines.pop("difference from ridge")) < 1e-9
    assert lines == {"gradient descent": "R^2 0.5463", "conjugate gradient": "R^2 0.5439"}


def test_the_configuration_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example itself but for fewer steps; the loss comes near that of one step of gradient descent."""
    config = read_config_file(EXAMPLES / "one_step.py")
    assert isinstance(config, gdssm.TrainConfig)
    short = dataclasses.replace(config, steps=500, eval_points=2, eval_tasks=200)
    training = runs.run(short, tmp_path / "run", source="examples/one_step.py")
    assert training.step == 500
    *_, last = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert last["step"] == 500
    assert f"training {tmp_path / 'run'}: 500 steps" in capsys.readouterr().err
    _, verdict = runs.write_record(tmp_path / "run")
    ratio = re.search(r"loss ([\d.]+) times that of one step", verdict)
    assert ratio is not None
    assert 0.9 < float(ratio[1]) < 1.2  # answering 0 is at 5


def test_the_text_configuration_trains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example itself but for fewer steps: better than chance, and text of the vocabulary."""
    config = read_config_file(EXAMPLES / "text.py")
    assert isinstance(config, gdssm.TextConfig)
    short = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, steps=40))
    runs.run(short, tmp_path / "run", source="examples/text.py")
    _, verdict = runs.write_record(tmp_path / "run")
    bits = re.search(r"([\d.]+) bits per character", verdict)
    assert bits is not None
    assert float(bits[1]) < 5  # about 95 characters: 6.6 where they are equally likely
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        cli.main(["generate", str(tmp_path / "run"), "--prompt", "def ", "--length", "30"])
    assert done.value.code == 0
    written = capsys.readouterr().out
    assert written.startswith("def ")
    assert len(written) == 35


def test_the_notebook_is_stored_without_traces_of_a_run() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def test_the_notebook_links_lead_somewhere() -> None:
    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert targets
    assert [target for target in targets if not (EXAMPLES / target).exists()] == []


def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook after a run in an empty folder, by a process of its own, with this interpreter as the kernel."""
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    (folder / "work").mkdir()
    copy = folder / "work" / NOTEBOOK.name
    copy.write_bytes(NOTEBOOK.read_bytes())
    names = {"JUPYTER_PATH": "jupyter", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_CONFIG_DIR": "config", "IPYTHONDIR": "ipython"}
    env = {**environment(), **{name: str(folder / place) for name, place in names.items()}, "JUPYTER_PLATFORM_DIRS": "1"}
    env.pop("MPLBACKEND", None)  # the kernel chooses to draw inline
    warm = "import matplotlib.font_manager"  # on its first use on a machine matplotlib says that it builds a cache
    subprocess.run([sys.executable, "-c", warm], capture_output=True, timeout=60, env=env, check=True)
    code = (
        "import sys, nbformat; from nbclient import NotebookClient\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "NotebookClient(notebook, timeout=60).execute()\n"
        "nbformat.write(notebook, sys.argv[2])"
    )
    command = [sys.executable, "-c", code, NOTEBOOK.name, str(folder / "executed.ipynb")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder / "work", env=env)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (folder / "work").iterdir()] == [NOTEBOOK.name]
    return nbformat.read(folder / "executed.ipynb", as_version=4)


def test_the_notebook_runs(tmp_path: Path) -> None:
    """Every assert in it holds, nothing is written to standard error, and what the text announces is shown."""
    before = NOTEBOOK.read_bytes()
    cells = {cell.id: cell for cell in executed(tmp_path).cells if cell.cell_type == "code"}
    assert NOTEBOOK.read_bytes() == before
    outputs = {name: cell.outputs for name, cell in cells.items()}
    assert [name for name, shown in outputs.items() for output in shown if output.get("name") == "stderr"] == []
    for name in ("loss-figure", "inside-figure", "state"):
        assert [output for output in outputs[name] if "image/png" in output.get("data", {})], name
    assert [sorted(output.data) for output in outputs["layer"]] == [["text/html", "text/plain"]]
    assert "State(z=float64[2, 1, 4, 4]" in outputs["layer"][0].data["text/plain"]
    assert "treescope" in outputs["layer"][0].data["text/html"]
    text = "".join(output.text for shown in outputs.values() for output in shown if output.get("name") == "stdout")
    assert "not installed" not in text
    assert float(re.search(r"R\^2 in 5 folds: layer ([\d.]+)", text)[1]) > 0.9
