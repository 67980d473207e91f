"""Training in a directory: killed anywhere it ends with the same bytes, and what is damaged is refused or passed over."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gdssm import checkpoint, files, runs, saving, storage
from gdssm.cli import report
from gdssm.config import ConfigError
from gdssm.metrics import Metrics, MetricsError, read_evaluations
from gdssm.monitor import Monitor
from gdssm.runs import Interrupted, RunError, load_training, run, write_record
from gdssm.settings import ModelConfig, TrainConfig, evaluation_steps
from gdssm.storage import StorageError
from gdssm.tasks import LinearRegression
from gdssm.train import NonFiniteError, Training, train

CONFIG = TrainConfig(
    task=LinearRegression(2, 2, 3), seeds=(4, 9), steps=240, batch=4, warmup=3, log_every=2, eval_tasks=20, eval_points=6
)
EVERY = 4


def contents(directory: Path) -> dict[str, bytes]:
    """Every file that a run leaves behind."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    run(CONFIG, directory, checkpoint_every=EVERY)
    return directory


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(count: int, before: bool, function: Callable[..., object]) -> Callable[..., object]:
    """The function, but the process dies at its count-th call, before or after the work."""
    calls = iter(range(count))

    def wrapped(*args: object, **kwargs: object) -> object:
        last = next(calls, None) == count - 1
        if last and before:
            die()
        result = function(*args, **kwargs)
        if last:
            die()
        return result

    return wrapped


class HalfWritten:
    """A file that takes half of what it is given, and then the process dies."""

    def __init__(self, file: object) -> None:
        self.file = file

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *_: object) -> None:
        raise AssertionError("not reached")

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        die()


def victim(directory: Path, where: str, count: int, started: Any) -> None:
    """A process that sets an event, goes on with the run, and dies at the count-th time it comes to a place."""
    if where == "step":
        Training.advance = at_call(count, True, Training.advance)
    elif where == "log":
        Metrics.write = at_call(count, False, Metrics.write)
    elif where in ("before sync", "after sync"):
        os.fsync = at_call(count, where == "before sync", os.fsync)
    elif where in ("before rename", "after rename"):
        os.replace = at_call(count, where == "before rename", os.replace)
    elif where == "half written":
        calls = iter(range(count))

        def open_or_die(*arguments: object) -> object:
            file = open(*arguments)  # noqa: SIM115 (the caller closes it)
            return HalfWritten(file) if next(calls, None) == count - 1 else file

        files.open = open_or_die
    started.set()
    run(CONFIG, directory, resume=True, checkpoint_every=EVERY)


SAVES = ("before sync", "after sync", "before rename", "after rename", "half written")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "pytest", "gdssm.cli", "gdssm.runs", "gdssm.train"])  # all that this file imports


def killed(directory: Path, where: str, count: int, delay: float = 0.0) -> bool:
    """Run a victim to its end; whether it was killed. delay: seconds after its start, for "any time"."""
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=victim, args=(directory, where, count, started))
    process.start()
    if where == "any time":
        assert started.wait(120)
        time.sleep(delay)
        process.kill()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), f"{where} {count}: exit code {process.exitcode}"
    return process.exitcode == -signal.SIGKILL


def test_killed_twenty_times_the_run_ends_with_the_same_bytes(tmp_path: Path, undisturbed: Path) -> None:
    """Places inside a save, between saves, and moments in time; the draws are fixed, their order is random.

    Moments are parts of the time that a run takes here: a fast machine would be at the end before most of the deaths.
    """
    start = time.monotonic()
    run(CONFIG, tmp_path / "timed", checkpoint_every=EVERY)
    most, draw = (time.monotonic() - start) / 12, random.Random(0)
    plan = [(where, draw.randint(1, 6)) for where in SAVES * 2] + [("step", draw.randint(1, 9)) for _ in range(6)]
    plan += [("log", draw.randint(1, 6)) for _ in range(4)] + [("any time", 0)] * 6
    draw.shuffle(plan)
    directory, deaths = tmp_path / "run", []
    for where, count in plan:
        if killed(directory, where, count, delay=draw.uniform(0.0, most)):
            deaths.append(where)
    run(CONFIG, directory, resume=True, checkpoint_every=EVERY)
    assert len(deaths) >= 20
    assert sum(where in SAVES for where in deaths) >= 5
    assert contents(directory) == contents(undisturbed)


@pytest.mark.parametrize("where", [*SAVES, "step", "log"])
def test_killed_in_the_first_moments_the_run_starts_again(tmp_path: Path, undisturbed: Path, where: str) -> None:
    assert killed(tmp_path / "run", where, 1)
    run(CONFIG, tmp_path / "run", resume=True, checkpoint_every=EVERY)
    assert contents(tmp_path / "run") == contents(undisturbed)


@pytest.mark.parametrize("lost", ["weights", "adam.mean", "adam.square", "step"])
def test_the_comparison_notices_what_a_checkpoint_could_forget(
    tmp_path: Path, undisturbed: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same comparison, with one part of the state not restored."""
    assert killed(tmp_path / "run", "step", 30)
    restore = Training.restore

    def forgetful(self: Training, step: int, arrays: dict[str, torch.Tensor]) -> None:
        fresh = Training(self.config).arrays()
        restore(self, step + (lost == "step"), {name: fresh[name] if name == lost else value for name, value in arrays.items()})

    monkeypatch.setattr(Training, "restore", forgetful)
    run(CONFIG, tmp_path / "run", resume=True, checkpoint_every=EVERY)
    ours, theirs = contents(tmp_path / "run"), contents(undisturbed)
    last = f"checkpoints/step-{CONFIG.steps:08d}.safetensors"
    assert ours[last] != theirs[last]
    assert ours["metrics.jsonl"] != theirs["metrics.jsonl"]


def test_a_run_is_the_training_loop_with_files(undisturbed: Path) -> None:
    ensemble = train(CONFIG)
    assert torch.equal(load_training(undisturbed).ensemble.flat, ensemble.flat)
    for copy, seed in enumerate(CONFIG.seeds):
        model = saving.load(undisturbed / "models" / f"seed-{seed}.safetensors")
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, ensemble.parameters[name][copy])


def test_metrics_are_what_an_observer_sees(undisturbed: Path) -> None:
    """Losses and norms of a loop of its own, and evaluations at the planned steps."""
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    training, seen = Training(CONFIG), {}
    while training.step < CONFIG.steps:
        step = training.step
        context = CONFIG.task.sample(CONFIG.batch, seed=CONFIG.data_seed, step=step)
        predictions = [training.model(i)(runs_tokens(context)).detach().double() for i in range(len(CONFIG.seeds))]
        seen[step] = [float(0.5 * (p - context.y_query[:, 0]).square().mean()) for p in predictions]
        training.advance()
    logged = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(logged) == list(range(0, CONFIG.steps, CONFIG.log_every))
    for step, losses in logged.items():
        assert losses == pytest.approx(seen[step], rel=1e-5)
    found = read_evaluations(undisturbed, Monitor.series, Monitor.numbers)
    assert [step for step, _ in found] == list(evaluation_steps(CONFIG.steps, CONFIG.eval_points))


def runs_tokens(context):
    from gdssm.tokens import interleave

    return interleave(context.x, context.y, context.x_query)


def test_a_run_is_not_overwritten(undisturbed: Path) -> None:
    before = contents(undisturbed)
    with pytest.raises(RunError, match="which holds a run; go on with --resume, or name another directory"):
        run(CONFIG, undisturbed, checkpoint_every=EVERY)
    run(CONFIG, undisturbed, resume=True, checkpoint_every=EVERY)  # a finished run has nothing left to do
    assert contents(undisturbed) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "lr is 0.5, the run that --resume goes on with has 0.02"),
        ({"task": LinearRegression(2, 2, 4)}, "task.n_examples is 4, .* has 3"),
        ({"model": ModelConfig(decay="full")}, "model.decay is 'full', .* has 'head'"),
    ],
)
def test_another_configuration_does_not_go_on(undisturbed: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(replace(CONFIG, **change), undisturbed, resume=True)


def unfinished(tmp_path: Path) -> Path:
    """A run that was killed after some checkpoints."""
    assert killed(tmp_path / "run", "step", 30)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    return tmp_path / "run"


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "pickle", "version", "model", "shapes"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, undisturbed: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = unfinished(tmp_path)
    last = max((directory / "checkpoints").iterdir())
    spoil(last, damage)
    run(CONFIG, directory, resume=True, checkpoint_every=EVERY)
    said = [line for line in capsys.readouterr().err.splitlines() if str(last) in line]
    assert len(said) == 1
    assert "; going on from step-00000024.safetensors" in said[0]
    assert contents(directory) == contents(undisturbed)


def spoil(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "version":
        text = data.replace(b'\\"version\\": 1', b'\\"version\\": 9')
        assert text != data
        path.write_bytes(text)
    elif damage == "model":
        storage.write(path, "model", {}, {})
    elif damage == "shapes":
        tensors, content = storage.read(path, "checkpoint")
        storage.write(path, "checkpoint", tensors | {"weights": torch.zeros(2, 3)}, content)
    else:
        middle = len(data) // 2
        path.write_bytes(
            {
                "truncated": data[:middle],
                "empty": b"",
                "flipped": data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
                "pickle": b"cos\nsystem\n(S'exit 1'\ntR.",
            }[damage]
        )


def test_where_all_checkpoints_are_damaged_nothing_is_touched(tmp_path: Path) -> None:
    directory = unfinished(tmp_path)
    for path in (directory / "checkpoints").iterdir():
        spoil(path, "truncated")
    before = contents(directory)
    with pytest.raises(StorageError, match=r"step-00000028.safetensors: is damaged.*; no other checkpoint can be used"):
        run(CONFIG, directory, resume=True)
    assert contents(directory) == before


def test_metrics_that_lack_lines_are_refused(tmp_path: Path) -> None:
    directory = unfinished(tmp_path)
    path = directory / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MetricsError, match=r"metrics.jsonl: has 100 bytes, the checkpoint was made with \d+; lines are missing"):
        run(CONFIG, directory, resume=True)


def test_metrics_that_were_edited_are_refused(tmp_path: Path) -> None:
    directory = unfinished(tmp_path)
    path = directory / "metrics.jsonl"
    path.write_bytes(b" " + path.read_bytes())
    before = contents(directory)
    with pytest.raises(MetricsError, match=r"metrics.jsonl: was changed after the checkpoint was made"):
        run(CONFIG, directory, resume=True)
    assert contents(directory) == before


def test_messages_name_a_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    folder = unfinished(tmp_path) / "checkpoints"
    assert checkpoint.last_good(folder).endswith("step-00000028.safetensors")
    spoil(folder / "step-00000028.safetensors", "flipped")
    assert checkpoint.last_good(folder) == f"the last good checkpoint is {folder / 'step-00000024.safetensors'}"
    spoil(folder / "step-00000024.safetensors", "empty")
    assert checkpoint.last_good(folder) == "no checkpoint was written before"


def test_a_run_on_a_gpu_can_be_reported_without_one(tmp_path: Path, undisturbed: Path) -> None:
    """Its files, as they would be: the same numbers, and another device in the configuration."""
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    directory, same = tmp_path / "run", tmp_path / "same"
    for copy in (directory, same):
        shutil.copytree(undisturbed, copy)
    text = (directory / "run.json").read_text()
    (directory / "run.json").write_text(text.replace('"device": "cpu"', '"device": "cuda"'))
    for path in (directory / "checkpoints").iterdir():
        tensors, content = storage.read(path, "checkpoint")
        content["config"]["device"] = "cuda"
        storage.write(path, "checkpoint", tensors, content)
    assert write_record(directory)[1] == write_record(same)[1]
    with pytest.raises(ConfigError, match="device is 'cuda', which torch does not find"):
        run(replace(CONFIG, device="cuda"), directory, resume=True)


@pytest.mark.parametrize(
    "model", [ModelConfig(normalize=True), ModelConfig(n_heads=2), ModelConfig(key_map=True), ModelConfig(steps=2)]
)
def test_only_what_the_construction_can_be_compared_with_is(tmp_path: Path, model: ModelConfig) -> None:
    """Records of other layers have curves and no weights: C of a normalised one holds eta, not eta / N."""
    run(replace(CONFIG, model=model, steps=4), tmp_path / "run")
    write_record(tmp_path / "run")
    (variant,) = json.loads((tmp_path / "run" / "record.json").read_text())["variants"]
    assert len(variant["loss"]) == len(CONFIG.seeds)
    assert not {"trained", "constructed", "snapshots", "filling", "rate"} & set(variant)


def test_a_full_disk_names_the_last_good_checkpoint(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real limit of the system on the size of files, met while metrics grow; then space is found and the run goes on."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = len((undisturbed / "metrics.jsonl").read_bytes()) * 3 // 4
    resource.setrlimit(resource.RLIMIT_FSIZE, (small, limits[1]))
    try:
        with pytest.raises(
            RunError, match=r"metrics.jsonl: cannot be written: File too large; the last good checkpoint is .*step-"
        ):
            run(CONFIG, tmp_path / "run", checkpoint_every=EVERY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run(CONFIG, tmp_path / "run", resume=True, checkpoint_every=EVERY)
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_directories_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"--out is '.*file', where nothing can be written: File exists"):
        run(CONFIG, tmp_path / "file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"run.json: holds no configuration of a run"):
        run(CONFIG, tmp_path / "run", resume=True)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with runs._held(tmp_path), pytest.raises(RunError, match="where another process is training"):
        run(CONFIG, tmp_path)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_steps_and_says_how_to_go_on(
    tmp_path: Path, undisturbed: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Training.advance

    def interrupted(self: Training) -> object:
        if self.step == 42:
            os.kill(os.getpid(), number)
        return advance(self)

    directory, before = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(Training, "advance", interrupted)
        with pytest.raises(Interrupted) as stop:
            run(CONFIG, directory, checkpoint_every=EVERY, source="c.py")
    assert str(stop.value) == (
        f"interrupted at step 43 of {CONFIG.steps}, which is saved; go on with: gdssm train c.py --out {directory} --resume"
    )
    assert signal.getsignal(number) == before
    assert load_training(directory).step == 43
    run(CONFIG, directory, resume=True, checkpoint_every=EVERY)
    assert contents(directory)["metrics.jsonl"] == contents(undisturbed)["metrics.jsonl"]
    last = f"checkpoints/step-{CONFIG.steps:08d}.safetensors"
    assert contents(directory)[last] == contents(undisturbed)[last]


def test_runs_outside_the_main_thread(tmp_path: Path, undisturbed: Path) -> None:
    thread = threading.Thread(target=run, args=(CONFIG, tmp_path / "run"), kwargs={"checkpoint_every": EVERY})
    thread.start()
    thread.join()
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_values_that_are_not_finite_keep_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Training.advance

    def poisoned(self: Training) -> object:
        if self.step == 41:
            with torch.no_grad():
                self.ensemble.parameters["layer.d"][1, 0, 2] = float("nan")
        return advance(self)

    monkeypatch.setattr(Training, "advance", poisoned)
    wanted = r"^step 41: parameter layer\.d is not finite \(seed 9\); the last good checkpoint is .*step-00000040\.safetensors$"
    with pytest.raises(NonFiniteError, match=wanted):
        run(CONFIG, tmp_path / "run", checkpoint_every=EVERY)
    training = load_training(tmp_path / "run")
    assert training.step == 40
    assert bool(torch.isfinite(training.ensemble.flat).all())


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Training.advance

    def poisoned(self: Training) -> object:
        found = advance(self)
        if self.step == 8:  # after the step's own checks, before the checkpoint
            with torch.no_grad():
                self.ensemble.parameters["layer.c"][0, 0, 1, 1] = float("inf")
        return found

    monkeypatch.setattr(Training, "advance", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 7: parameter layer\.c is not finite \(seed 4\); .*step-00000004"):
        run(CONFIG, tmp_path / "run", checkpoint_every=EVERY)


@pytest.mark.parametrize(("steps", "dtype"), [(1, "float64"), (3, "float32")])
def test_other_models_and_precisions_resume(tmp_path: Path, steps: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, model=ModelConfig(steps=steps, normalize=True), steps=20, dtype=dtype)
    run(config, tmp_path / "whole", checkpoint_every=EVERY)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "checkpoints" / "step-00000020.safetensors").unlink()
    run(config, tmp_path / "part", resume=True, checkpoint_every=EVERY)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_records_of_runs_and_checkpoints(tmp_path: Path, undisturbed: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    folder, line = write_record(directory)
    assert folder == directory
    record = json.loads((directory / "record.json").read_text())
    (variant,) = record["variants"]
    assert variant["steps"] == list(evaluation_steps(CONFIG.steps, 6))
    assert variant["seeds"] == [4, 9]
    assert f"loss {max(c[-1] for c in variant['loss']) / variant['gd_loss']:.5g} times" in line
    assert json.loads((directory / "results.json").read_text())["claims"] == []
    checkpoint = directory / "checkpoints" / f"step-{CONFIG.steps - EVERY:08d}.safetensors"
    write_record(checkpoint)
    (at,) = json.loads((checkpoint.with_suffix("") / "record.json").read_text())["variants"]
    assert at["steps"] == [CONFIG.steps - EVERY]
    assert at["gd_loss"] == variant["gd_loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"task": LinearRegression(2, 2, 3, weight_scale=0.0)}, "task has no best step of gradient descent"),
        ({"task": LinearRegression(2, 2, 3, spectrum=(0.0, 0.0))}, "task has no best step of gradient descent"),
        ({"task": LinearRegression(2, 2, 3, input_range=1e-30)}, "task has no best step of gradient descent"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(
    tmp_path: Path, change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        run(replace(CONFIG, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_checkpoints_of_a_run_that_lost_its_configuration_are_left_alone(tmp_path: Path, resume: bool) -> None:
    directory = unfinished(tmp_path)
    (directory / "run.json").unlink()
    before = contents(directory)
    with pytest.raises(RunError, match=r"has step-00000028\.safetensors but no run.json; name another directory"):
        run(CONFIG, directory, resume=resume)
    assert contents(directory) == before


@pytest.mark.usefixtures("without_figures")
def test_a_record_is_not_replaced_by_one_of_step_0(tmp_path: Path, undisturbed: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    write_record(directory)
    shutil.rmtree(directory / "checkpoints")
    before = contents(directory)
    with pytest.raises(RunError, match="has no checkpoint, so its record cannot be made again"):
        write_record(directory)
    assert contents(directory) == before
    assert report(directory) == 0  # from the record that is left
    assert {name: data for name, data in contents(directory).items() if name != "report.html"} == before


def test_the_learned_rate_is_that_of_the_targets(tmp_path: Path) -> None:
    training = run(replace(CONFIG, task=LinearRegression(3, 1, 3), steps=2), tmp_path / "run")
    write_record(tmp_path / "run")
    (variant,) = json.loads((tmp_path / "run" / "record.json").read_text())["variants"]
    assert variant["rate"] == pytest.approx([c[0][0] for c in variant["trained"]["c"]])
    assert training.model(0).layer.d_model == 3  # entries of c that no target uses are there, and left out


def test_a_run_killed_before_its_first_metrics_has_a_record(tmp_path: Path) -> None:
    run(replace(CONFIG, steps=2), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert write_record(tmp_path / "run")[1].startswith("step 0 of 2: ")


@pytest.mark.parametrize(("old", "new"), [(b'"sensitivity_cosine"', b'"cosine"'), (b'"loss": [', b'"loss": [null, ')])
def test_metrics_edited_by_hand_are_one_line(tmp_path: Path, undisturbed: Path, old: bytes, new: bytes) -> None:
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    path = directory / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(MetricsError, match=r"metrics.jsonl: line 1 is no line of metrics"):
        write_record(directory)


def test_the_last_checkpoint_is_the_one_of_the_largest_step(tmp_path: Path) -> None:
    names = ["step-100000000.safetensors", "step-99999999.safetensors", "step-00000200.safetensors"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in checkpoint.paths(tmp_path)] == names


def test_the_command_that_goes_on_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "check", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"go on with: gdssm train 'my c.py' --out '.*/my run' --resume$"):
        run(CONFIG, tmp_path / "my run", source="my c.py")


def test_tensorboard_has_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(replace(CONFIG, steps=8), tmp_path / "run", tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], pytest.approx(line["loss"][1])) for line in lines if "loss" in line]
    assert [(e.step, e.value) for e in events.Scalars("loss/seed 9")] == logged
