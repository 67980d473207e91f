"""Training in a directory: metrics, checkpoints, and runs that go on to the same numbers after any interruption.

    DIR/run.json             configuration and environment
    DIR/metrics.jsonl        one JSON object per line: losses every log_every steps, evaluations
    DIR/checkpoints/step-00000200.safetensors   the two last ones
    DIR/models/seed-0.safetensors               the trained models, for gdssm.load
    DIR/results.json, record.json               what the report is made of

A checkpoint holds the weights, the optimiser, the step, torch's random state and how many bytes of metrics belong to it;
tasks and schedule are functions of the step. Read `run` first.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch

from . import storage
from .config import ConfigError, UserError, from_mapping
from .experiments.claims import environment
from .files import remove_unfinished, sync_folder, write_whole
from .monitor import SERIES, Monitor
from .progress import track
from .saving import save
from .settings import TrainConfig, evaluation_steps
from .storage import StorageError
from .train import NonFiniteError, Training, limited_threads

KEPT = 2  # checkpoints: should the last one be damaged, there is one before it


class RunError(UserError):
    """A directory that a run cannot be written to or gone on with; one line that names it."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop has written a checkpoint; the message says how to go on."""


def run(
    config: TrainConfig,
    directory: Path,
    *,
    resume: bool = False,
    checkpoint_every: int = 200,
    tensorboard: bool = False,
    source: str = "CONFIG.py",
) -> Training:
    """Train in a directory and return the finished training.

    resume            go on from the last good checkpoint; from the start where there is none
    checkpoint_every  steps from one checkpoint to the next; the numbers do not depend on it
    tensorboard       write metrics to DIR/tensorboard too
    source            the configuration's file, for messages and notes

    Whenever the process is killed, `resume` ends with the weights and metrics of an undisturbed run, bit by bit, for the
    same machine, versions and threads. SIGINT and SIGTERM stop between two steps, with a checkpoint. Raises RunError,
    StorageError and ConfigError for what cannot be used, NonFiniteError where training breaks down, Interrupted.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:
        stack.enter_context(limited_threads(config.threads))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(config.data_seed)
        training, monitor = Training(config), Monitor(config)  # what cannot be trained leaves nothing behind
        stack.enter_context(_held(directory))
        existing = (directory / "run.json").exists()
        if existing and not resume:
            raise RunError(f"--out is {str(directory)!r}, which holds a run; go on with --resume, or name another directory")
        if existing:
            _check_same(config, read_config(directory))
        elif found := _checkpoints(directory / "checkpoints"):
            raise RunError(f"--out is {str(directory)!r}, which has {found[0].name} but no run.json; name another directory")
        else:
            _write(directory / "run.json", {"config": dataclasses.asdict(config), "environment": environment()})
        offset = _restore(training, directory / "checkpoints") if existing else 0
        if resume:
            print(f"{directory}: going on at step {training.step} of {config.steps}", file=sys.stderr)
        with _metrics(directory, offset, tensorboard, training.step) as metrics:
            _Run(training, monitor, directory, metrics, checkpoint_every, source).finish()
        _write_models(training, directory, source)
    return training


class _Metrics:
    """metrics.jsonl, and TensorBoard's events where wanted."""

    def __init__(self, file: IO[bytes], seeds: Sequence[int], writer: Any) -> None:
        self.file, self.seeds, self.writer = file, seeds, writer

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        self.file.write(json.dumps({"step": step, **line}).encode() + b"\n")
        if self.writer is not None:
            for name, values in (line.get("evaluation") or line).items():
                if name != "weights":
                    for seed, value in zip(self.seeds, values, strict=True):
                        self.writer.add_scalar(f"{'evaluation/' * ('evaluation' in line)}{name}/seed {seed}", value, step)

    def sync(self) -> int:
        """Bytes on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()


class _Run:
    """The loop with everything that is written while it goes on."""

    def __init__(
        self, training: Training, monitor: Monitor, directory: Path, metrics: _Metrics, checkpoint_every: int, source: str
    ) -> None:
        self.training, self.monitor, self.directory, self.metrics = training, monitor, directory, metrics
        self.checkpoint_every, self.source = checkpoint_every, source
        self.folder = directory / "checkpoints"

    def finish(self) -> None:
        """All steps that are left."""
        training, config = self.training, self.training.config
        evaluate_at = frozenset(evaluation_steps(config.steps, config.eval_points))
        with _signals() as asked:
            for step in track(config.steps, f"training {self.directory}", first=training.step):
                if step in evaluate_at:
                    self.evaluate()
                self.advance()
                last = training.step == config.steps
                if last:
                    self.evaluate()
                if last or asked or training.step % self.checkpoint_every == 0:
                    self.checkpoint()
                if asked and not last:
                    again = shlex.join(["gdssm", "train", self.source, "--out", str(self.directory), "--resume"])
                    raise Interrupted(f"interrupted at step {training.step} of {config.steps}, which is saved; go on with: {again}")

    def evaluate(self) -> None:
        try:
            self.training.check()
            found = self.monitor.evaluate(self.training)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {_last_good(self.folder)}") from None
        except ValueError as error:  # finite weights that give predictions which are not
            raise NonFiniteError(f"step {self.training.step}, evaluation: {error}; {_last_good(self.folder)}") from None
        self.metrics.write(self.training.step, {"evaluation": found})

    def advance(self) -> None:
        try:
            seen = self.training.advance()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {_last_good(self.folder)}") from None
        step = self.training.step - 1
        if step % self.training.config.log_every == 0:
            self.metrics.write(step, {"loss": seen.losses().tolist(), "gradient_norm": seen.norms.tolist()})

    def checkpoint(self) -> None:
        """Metrics first, so that a checkpoint counts no bytes that are not on the disk; never weights that are not finite."""
        training = self.training
        try:
            training.check()
            content = {"step": training.step, "metrics_bytes": self.metrics.sync(), "config": dataclasses.asdict(training.config)}
            path = self.folder / f"step-{training.step:08d}.safetensors"
            storage.write(path, "checkpoint", training.arrays() | _random_state(training), content)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {_last_good(self.folder)}") from None
        except StorageError as error:
            raise RunError(f"{error}; {_last_good(self.folder)}") from None
        for old in _checkpoints(self.folder)[KEPT:]:
            old.unlink()


def write_record(path: Path) -> tuple[Path, str]:
    """Write results.json and record.json of a run or a checkpoint, without training: their folder, the result in one line.

    path   a run's directory, also of an unfinished run, or one checkpoint of it; the files of a checkpoint go into a
           folder beside it, of its name without the suffix

    RunError and StorageError as for `load_training`, and RunError where there is a record and no checkpoint any more: it is
    not replaced by one of step 0.
    """
    training = load_training(path)
    evaluations = [(step, line) for step, line in read_evaluations(path) if step <= training.step] if path.is_dir() else []
    if path.is_dir() and not _checkpoints(path / "checkpoints") and (path / "record.json").exists():
        raise RunError(f"{path}: has no checkpoint, so its record cannot be made again; record.json is left as it is")
    monitor = Monitor(training.config)
    with limited_threads(training.config.threads):
        if not evaluations or evaluations[-1][0] != training.step:
            evaluations.append((training.step, monitor.evaluate(training)))
        record = monitor.record(training, evaluations)
    folder = path if path.is_dir() else path.with_suffix("")
    results = {
        "experiment": "training",
        "preset": f"step {training.step}",
        "seeds": list(training.config.seeds),
        "claims": [],
        "environment": environment(),
    }
    _write(folder / "record.json", record)
    _write(folder / "results.json", results)
    last, gd = evaluations[-1][1], record["variants"][0]["gd_loss"]
    return folder, (
        f"step {training.step} of {training.config.steps}: loss {max(last['loss']) / gd:.5g} times that of one step of gradient "
        f"descent, cosine {min(last['sensitivity_cosine']):.6g} (the worst of {len(last['loss'])} seeds)"
    )


def read_config(directory: Path) -> TrainConfig:
    """The configuration of a run. RunError where run.json is missing or holds something else."""
    path = directory / "run.json"
    try:
        return from_mapping(TrainConfig, json.loads(path.read_text(encoding="utf-8"))["config"], "config.")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: holds no configuration of a run: {' '.join(str(error).split())}") from None


def read_evaluations(directory: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and content of every evaluation in metrics.jsonl; a last line that was not finished is left out.

    A run that was killed in its first moments has no such file, and no evaluations. RunError for what no run writes.
    """
    path, found = directory / "metrics.jsonl", []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            if "evaluation" in line:
                evaluation = dict(line["evaluation"])
                for name in SERIES:
                    evaluation[name] = [float(value) for value in evaluation[name]]
                found.append((int(line["step"]), evaluation))
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path}: line {number} is no line of metrics") from None
    return found


def load_training(path: Path) -> Training:
    """A training as it stood at a checkpoint: the file's, or the last good one of a run's directory.

    A run without checkpoints stands at step 0. StorageError where the files cannot be used.
    """
    if path.is_dir():
        training = Training(read_config(path))
        _restore(training, path / "checkpoints")
        return training
    tensors, content = storage.read(path, "checkpoint")
    try:
        training = Training(from_mapping(TrainConfig, content["config"], "config."))
        training.restore(int(content["step"]), tensors)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path}: does not hold a training of this gdssm: {' '.join(str(error).split())}") from None
    return training


def _random_state(training: Training) -> dict[str, torch.Tensor]:
    state = {"random.cpu": torch.get_rng_state()}
    if training.config.device == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state()
    return state


def _restore(training: Training, folder: Path) -> int:
    """Stand at the last good checkpoint of a folder, if there is one, and return how many bytes of metrics belong to it.

    A damaged one is passed over, and said so; StorageError where all of them are.
    """
    problems = []
    for path in _checkpoints(folder):
        try:
            tensors, content = storage.read(path, "checkpoint")
            if content["config"] != json.loads(json.dumps(dataclasses.asdict(training.config))):
                raise StorageError(f"{path}: belongs to another configuration")
            training.restore(int(content["step"]), tensors)
            offset = int(content["metrics_bytes"])
            torch.set_rng_state(tensors["random.cpu"])
            if training.config.device == "cuda":
                torch.cuda.set_rng_state(tensors["random.cuda"])
        except StorageError as error:
            problems.append(str(error))
            continue
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path}: does not hold this training: {' '.join(str(error).split())}")
            continue
        for problem in problems:
            print(f"{problem}; going on from {path.name}", file=sys.stderr)
        return offset
    if problems:
        raise StorageError(f"{problems[0]}; no other checkpoint can be used")
    return 0


def _checkpoints(folder: Path) -> list[Path]:
    """The last one first."""
    return sorted(folder.glob("step-*.safetensors"), key=lambda path: (len(path.name), path.name), reverse=True)


def _last_good(folder: Path) -> str:
    found = _checkpoints(folder)
    return f"the last good checkpoint is {found[0]}" if found else "no checkpoint was written before"


def _check_same(config: TrainConfig, before: TrainConfig) -> None:
    now, then = (_flat(dataclasses.asdict(c)) for c in (config, before))
    for name, value in now.items():
        if then[name] != value:
            raise ConfigError(f"{name} is {value!r}, the run that --resume goes on with has {then[name]!r}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _write(path: Path, data: Mapping[str, Any]) -> None:
    try:
        write_whole(path, json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None


def _write_models(training: Training, directory: Path, source: str) -> None:
    for copy, seed in enumerate(training.config.seeds):
        notes = {"command": f"gdssm train {source}", "seed": seed, "step": training.step}
        path = directory / "models" / f"seed-{seed}.safetensors"
        save(training.model(copy), path, notes | {"config": dataclasses.asdict(training.config)})


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """The directory, made if absent, for this process alone; what a killed process left half written is removed."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "wb")  # noqa: SIM115 (closed below; the system frees it with the process)
    except OSError as error:
        raise RunError(f"--out is {str(directory)!r}, where nothing can be written: {error.strerror}") from None
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ModuleNotFoundError:  # no such locks on this system
            pass
        except OSError:
            raise RunError(f"--out is {str(directory)!r}, where another process is training") from None
        for folder in (directory, directory / "checkpoints", directory / "models"):
            remove_unfinished(folder)
        yield


@contextlib.contextmanager
def _metrics(directory: Path, offset: int, tensorboard: bool, step: int) -> Iterator[_Metrics]:
    """metrics.jsonl, cut to the lines that belong to the checkpoint. RunError where lines are missing or it cannot be written."""
    path = directory / "metrics.jsonl"
    writer = None
    try:
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            raise RunError(f"{path}: has {size} bytes, the checkpoint was made with {offset}; lines are missing")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step)
        with open(path, "ab") as file:
            file.truncate(offset)
            file.seek(offset)
            sync_folder(directory)
            yield _Metrics(file, read_config(directory).seeds, writer)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; {_last_good(directory / 'checkpoints')}") from None
    finally:
        if writer is not None:
            writer.close()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM puts its number into; a second SIGINT raises KeyboardInterrupt at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main one may handle signals
        yield asked
        return

    def handle(number: int, _: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt("interrupted twice; the last checkpoint is as it was")
        asked.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
