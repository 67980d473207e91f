"""The command line from outside: exit codes, one line for every error, nothing written, torch not imported for it."""

import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from gdssm import cli, experiments
from gdssm.experiments import EXPERIMENTS, one_step
from gdssm.experiments.claims import Claim, all_required_hold, write_json
from gdssm.settings import LARGEST_SEED
from gdssm.tasks import LinearRegression
from gdssm.train import TrainConfig


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["reproduce", "on-step"], "NAME is 'on-step' (did you mean 'one-step'?); allowed: one-step"),
        (["reproduce", "--preset", "fast"], "'fast'"),
        (["reproduce", "--workers", "0"], "--workers must be an integer >= 1, got 0"),
        (["reproduce", "--resume", "--fresh"], "--resume and --fresh exclude each other"),
        (["reproduce", "--seeds", "0"], "--seeds must be an integer >= 1, got 0"),
        (["reproduce", "--seeds", "many"], "'many'"),
        (["reproduce", "--seed", "-1"], "--seed must be an integer >= 0, got -1"),
        (["reproduce", "--sedes", "3"], "--sedes"),
        (["reproduce", "--out", "FILE"], "--out is 'FILE', which is a file; a directory is needed"),
        (["reproduce", "--out", "FILE/x"], "--out is 'FILE/x', where nothing can be written: Not a directory"),
        (["reproduce", "lm", "--text", "nowhere"], "--text is 'nowhere', which cannot be read"),
        (["reproduce", "listops", "--lra", "nowhere"], "--lra is 'nowhere', which is no folder"),
        (["predict", "nowhere.csv", "--target", "y"], "nowhere.csv"),
        (["predict", "nowhere.csv"], "--target"),
        (["predict", "nowhere.csv", "--target", "y", "--steps", "0"], "--steps must be an integer >= 1"),
        (["invent"], "invent"),
        ([], "reproduce"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    code, out, err = run(*arguments, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert fragment in err
    assert [p.name for p in tmp_path.iterdir()] == ["FILE"]


def test_errors_and_lists_do_not_import_torch() -> None:
    program = (
        "import sys, contextlib\nfrom gdssm import cli\n"
        "for a in (['reproduce', 'x'], ['reproduce', '--list'], ['--help'], ['predict', 'x.csv', '--target', 'y'],\n"
        "          ['identify', 'x'], ['identify', 'one-step', '--tasks', '1']):\n"
        "    with contextlib.suppress(SystemExit): cli.main(a)\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    rows = [f"{i},{i * i % 7},{3 * i}" for i in range(6_000)]  # answers of 100 kB: more than a pipe holds
    (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    command = [sys.executable, "-c", "from gdssm import cli; cli.main()", "predict", "t.csv", "--target", "y", "--query", "t.csv"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 0


def test_version_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--version", capsys=capsys)
    assert code == 0
    assert out.startswith("gdssm ")
    code, out, _ = run("reproduce", "--list", capsys=capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(EXPERIMENTS)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "gdssm", "reproduce", "--list"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(EXPERIMENTS)


TINY = one_step.Preset(
    seeds=(0, 1),
    eval_tasks=200,
    curve_tasks=50,
    curve_points=3,
    training=TrainConfig(task=LinearRegression(3, 3, 6), steps=20, batch=8, warmup=2),
)


@pytest.mark.usefixtures("without_figures")
def test_reproduce_writes_claims_record_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(one_step.PRESETS, "quick", TINY)
    (tmp_path / "mine.txt").write_text("left alone")
    code, out, _ = run("reproduce", "one-step", "--seed", "4", "--out", str(tmp_path), capsys=capsys)
    assert code == 1  # 20 updates do not make it gradient descent, and a replication that fails must show
    assert str(tmp_path / "report.html") in out.replace("\n", "")
    assert (tmp_path / "mine.txt").read_text() == "left alone"
    results = json.loads((tmp_path / "one-step" / "results.json").read_text())
    claims = {claim["name"]: claim for claim in results["claims"]}
    assert results["seeds"] == [4, 5]
    assert {"loss_ratio", "sensitivity_cosine", "off_construction", "success_rate"} <= set(claims)
    assert claims["construction_is_gradient_descent"]["holds"]
    assert claims["success_rate"]["value"] == 0
    assert not claims["loss_ratio"]["holds"]
    record = json.loads((tmp_path / "one-step" / "record.json").read_text())
    (variant,) = record["variants"]
    assert variant["steps"][0] == 0
    assert variant["steps"][-1] == 20
    assert len(variant["loss"]) == 2
    assert all(len(curve) == len(variant["steps"]) for curve in variant["loss"])
    assert variant["trained"]["w_q"][0][0][1] == 1


def test_the_same_seeds_give_the_same_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(one_step.PRESETS, "quick", TINY)
    first, second = (experiments.run("one-step", "quick", 1, 9) for _ in range(2))
    assert first.record == second.record
    assert first.claims == second.claims
    assert first.record != experiments.run("one-step", "quick", 1, 10).record


def test_no_seed_of_training_draws_the_evaluation_tasks() -> None:
    assert one_step.EVALUATION_SEED > LARGEST_SEED


def test_an_interrupt_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(one_step, "trained_variant", interrupted)
    code, _, err = run("reproduce", "--out", str(tmp_path / "new"), capsys=capsys)
    assert code == 130
    assert "interrupted" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("relation", "target", "value", "holds"),
    [
        ("<=", 1.0, 1.0, True),
        ("<=", 1.0, 1.1, False),
        (">=", 1.0, 1.0, True),
        (">=", 1.0, 0.9, False),
        ("==", 1.0, 1.0, True),
        ("==", 1.0, 1.1, False),
        ("between", (0.0, 1.0), 0.5, True),
        ("between", (0.0, 1.0), 1.5, False),
        ("<=", 1.0, float("nan"), False),
        (">=", 1.0, float("inf"), False),
    ],
)
def test_claims(relation: str, target: float | tuple[float, float], value: float, holds: bool) -> None:
    claim = Claim("a", "identity", 1.0, value, relation, target)
    assert claim.holds is holds
    assert all_required_hold([claim]) is holds
    assert all_required_hold([Claim("a", "hypothesis", 1.0, value, relation, target)])
    assert json.loads(json.dumps(claim.as_record(), allow_nan=False))["holds"] is holds


def test_a_file_that_cannot_be_written_whole_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


SMALL = """
from gdssm import LinearRegression, TrainConfig
config = TrainConfig(task=LinearRegression(2, 2, 3), seeds=(0, 1), steps={steps}, batch=4, lr={lr}, eval_tasks=20, eval_points=3)
"""


def config_file(folder: Path, steps: int = 12, lr: float = 0.01) -> str:
    (folder / "c.py").write_text(SMALL.format(steps=steps, lr=lr))
    return str(folder / "c.py")


@pytest.mark.usefixtures("without_figures")
def test_train_leaves_a_run_and_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code, said, err = run("train", config_file(tmp_path), "--out", str(out), "--checkpoint-every", "5", capsys=capsys)
    assert code == 0
    assert "step 12 of 12: loss " in said
    assert "12 steps in" in err
    assert {p.name for p in out.iterdir()} == {
        *(".lock", "checkpoints", "metrics.jsonl", "models", "record.json", "report.html", "results.json", "run.json")
    }
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000010.safetensors", "step-00000012.safetensors"]
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    code, said, _ = run("report", str(out), capsys=capsys)
    assert code == 0
    assert (out / "report.html").read_text() == page
    code, said, _ = run("report", str(out / "checkpoints" / "step-00000010.safetensors"), capsys=capsys)
    assert code == 0
    assert "step 10" in (out / "checkpoints" / "step-00000010" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["missing.py", "--out", "run"], "CONFIG is 'missing.py', which cannot be read: No such file or directory"),
        (["wrong.py", "--out", "run"], "wrong.py, line 2: steps must be an integer >= 1, got 0"),
        (["c.py", "--out", "run", "--checkpoint-every", "0"], "--checkpoint-every must be an integer >= 1, got 0"),
        (["c.py", "--out", "c.py"], "--out is 'c.py', which is a file; a directory is needed"),
        (["c.py", "--out", "/proc/run"], "--out is '/proc/run', where nothing can be written"),
    ],
)
def test_wrong_uses_of_train_write_nothing(
    arguments: list[str], fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config_file(tmp_path)
    (tmp_path / "wrong.py").write_text("from gdssm import TrainConfig\nconfig = TrainConfig(steps=0)\n")
    code, out, err = run("train", *arguments, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fragment in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.py", "wrong.py"]


def test_a_diverging_training_exits_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("train", config_file(tmp_path, lr=1e38), "--out", str(tmp_path / "run"), capsys=capsys)
    assert code == 3
    assert err.splitlines()[-1].startswith("gdssm: training stopped: step ")
    assert "no checkpoint was written before" in err


def test_interrupted_after_training_it_says_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gdssm.runs.write_record", interrupted)
    code, _, err = run("train", config_file(tmp_path, steps=2), "--out", str(tmp_path / "my run"), capsys=capsys)
    assert code == 130
    wanted = f"gdssm: interrupted; the models are trained and saved, the report is not: gdssm report '{tmp_path / 'my run'}'"
    assert err.splitlines()[-1] == wanted
    assert (tmp_path / "my run" / "models" / "seed-0.safetensors").exists()


def test_sizes_that_no_machine_has_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.py").write_text(
        "from gdssm import LinearRegression, TrainConfig\nconfig = TrainConfig(task=LinearRegression(10**7, 10**7, 10**5))\n"
    )
    code, out, err = run("train", str(tmp_path / "c.py"), "--out", str(tmp_path / "run"), capsys=capsys)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("gdssm: the memory of this machine does not suffice: ")


def test_a_killed_worker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def killed(*_: object, **__: object) -> None:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr("gdssm.reproduced.run_jobs", killed)
    code, out, err = run("reproduce", "minibatch", "--out", str(tmp_path / "out"), capsys=capsys)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("gdssm: a worker process was killed")


def test_ctrl_c_ends_cleanly_and_the_run_goes_on(tmp_path: Path) -> None:
    """In a process of its own, interrupted as a terminal would; then the command it names is run."""
    command = [sys.executable, "-c", "from gdssm import cli; cli.main()", "train", config_file(tmp_path, steps=300)]
    command += ["--out", str(tmp_path / "run"), "--checkpoint-every", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("run/checkpoints/step-*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    (line,) = err.splitlines()
    found = re.fullmatch(r"gdssm: interrupted at step (\d+) of 300, which is saved; go on with: gdssm (.*)", line)
    assert found
    done = subprocess.run([*command[:3], *found[2].split()], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"going on at step {found[1]} of 300" in done.stderr
    assert "step 300 of 300: loss" in done.stdout
