"""Training in a directory: metrics, checkpoints, and runs that go on to the same numbers after any interruption.

    DIR/run.json             configuration and environment
    DIR/metrics.jsonl        one JSON object per line: losses every log_every steps, evaluations
    DIR/checkpoints/step-00000200.safetensors   the two last ones
    DIR/models/seed-0.safetensors               the trained models, for gdssm.load
    DIR/results.json, record.json               what the report is made of

Read `run` first.
"""

import contextlib
import dataclasses
import json
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch

from . import checkpoint
from .analysis import NonFinitePredictionError
from .checkpoint import AnyTraining, Config
from .config import ConfigError, UserError, one_line
from .experiments.claims import environment
from .files import remove_unfinished, write_whole
from .metrics import Metrics, MetricsError, open_metrics, read_evaluations
from .monitor import Monitor
from .progress import track
from .saving import save
from .settings import evaluation_steps
from .storage import StorageError
from .text_config import TextConfig
from .text_training import TextMonitor
from .train import NonFiniteError, limited_threads

AnyMonitor = Monitor | TextMonitor


class RunError(UserError):
    """A directory that a run cannot be written to or gone on with; one line that names it."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop has written a checkpoint; the message says how to go on."""


def run(
    config: Config,
    directory: Path,
    *,
    resume: bool = False,
    checkpoint_every: int = 200,
    tensorboard: bool = False,
    source: str = "CONFIG.py",
) -> AnyTraining:
    """Train in a directory and return the finished training.

    config            a TrainConfig or a TextConfig

    resume            go on from the last good checkpoint; from the start where there is none
    checkpoint_every  steps from one checkpoint to the next; the numbers do not depend on it
    tensorboard       write metrics to DIR/tensorboard too
    source            the configuration's file, for messages and notes

    Whenever the process is killed, `resume` ends with the weights and metrics of an undisturbed run, bit by bit, for the
    same machine, versions and threads. SIGINT and SIGTERM stop between two steps, with a checkpoint. Raises RunError,
    MetricsError, StorageError and ConfigError for what cannot be used, NonFiniteError where training breaks down, Interrupted.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:
        stack.enter_context(limited_threads(config.threads))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(config.data_seed)
        training, monitor = checkpoint.begin(config), _monitor(config)  # what cannot be trained leaves nothing behind
        stack.enter_context(_held(directory))
        existing = (directory / "run.json").exists()
        if existing and not resume:
            raise RunError(f"--out is {str(directory)!r}, which holds a run; go on with --resume, or name another directory")
        if existing:
            _check_same(training.config, read_config(directory))
        elif found := checkpoint.paths(directory / "checkpoints"):
            raise RunError(f"--out is {str(directory)!r}, which has {found[0].name} but no run.json; name another directory")
        else:
            content = {"kind": training.kind, "config": dataclasses.asdict(training.config), "environment": environment()}
            _write(directory / "run.json", content)
        mark = checkpoint.restore(training, directory / "checkpoints")
        if resume:
            print(f"{directory}: going on at step {training.step} of {config.steps}", file=sys.stderr)
        with open_metrics(directory, mark, config.seeds, monitor.series, tensorboard=tensorboard, step=training.step) as metrics:
            _Run(training, monitor, directory, metrics, checkpoint_every, source).finish()
        _write_models(training, directory, source)
    return training


class _Run:
    """The loop with everything that is written while it goes on."""

    def __init__(
        self, training: AnyTraining, monitor: AnyMonitor, directory: Path, metrics: Metrics, checkpoint_every: int, source: str
    ) -> None:
        self.training, self.monitor, self.directory, self.metrics = training, monitor, directory, metrics
        self.checkpoint_every, self.source = checkpoint_every, source
        self.folder = directory / "checkpoints"

    def finish(self) -> None:
        """All steps that are left. An error says which checkpoint is good."""
        try:
            self._finish()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {checkpoint.last_good(self.folder)}") from None
        except (MetricsError, StorageError) as error:
            raise RunError(f"{error}; {checkpoint.last_good(self.folder)}") from None

    def _finish(self) -> None:
        training, config = self.training, self.training.config
        evaluate_at = frozenset(evaluation_steps(config.steps, config.eval_points))
        with _signals() as asked:
            for step in track(config.steps, f"training {self.directory}", first=training.step):
                if step in evaluate_at:
                    self._evaluate()
                seen = training.advance()
                if step % config.log_every == 0:
                    self.metrics.write(step, seen.metrics())
                last = training.step == config.steps
                if last:
                    self._evaluate()
                if last or asked or training.step % self.checkpoint_every == 0:
                    training.check()
                    checkpoint.write(training, self.folder, self.metrics.sync())  # no bytes are counted that are not on the disk
                if asked and not last:
                    again = shlex.join(["gdssm", "train", self.source, "--out", str(self.directory), "--resume"])
                    raise Interrupted(f"interrupted at step {training.step} of {config.steps}, which is saved; go on with: {again}")

    def _evaluate(self) -> None:
        self.training.check()
        try:
            found = cast(Any, self.monitor).evaluate(self.training)  # of the training's own kind
        except NonFinitePredictionError as error:
            raise NonFiniteError(f"step {self.training.step}, evaluation: {error}") from None
        self.metrics.write(self.training.step, {"evaluation": found})


def write_record(path: Path) -> tuple[Path, str]:
    """Write results.json and record.json of a run or a checkpoint, without training: their folder, the result in one line.

    path   a run's directory, also of an unfinished run, or one checkpoint of it; the files of a checkpoint go into a
           folder beside it, of its name without the suffix

    RunError, MetricsError and StorageError for files that cannot be used, and RunError where there is a record and no
    checkpoint any more: it is not replaced by one of step 0.
    """
    training = load_training(path)
    monitor = cast(Any, _monitor(training.config))  # of the training's own kind
    evaluations = read_evaluations(path, monitor.series, monitor.numbers) if path.is_dir() else []
    evaluations = [(step, line) for step, line in evaluations if step <= training.step]
    if path.is_dir() and not checkpoint.paths(path / "checkpoints") and (path / "record.json").exists():
        raise RunError(f"{path}: has no checkpoint, so its record cannot be made again; record.json is left as it is")
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
    return folder, monitor.sentence(training, evaluations[-1][1])


def read_config(directory: Path) -> Config:
    """The configuration of a run. RunError where run.json is missing or holds something else."""
    path = directory / "run.json"
    try:
        return checkpoint.config_from(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: holds no configuration of a run: {one_line(str(error))}") from None


def load_training(path: Path) -> AnyTraining:
    """A training as it stood at a checkpoint: the file's, or the last good one of a run's directory.

    A run without checkpoints stands at step 0. On the CPU where the run's device is not there. RunError and StorageError
    where the files cannot be used.
    """
    if not path.is_dir():
        return checkpoint.load(path)
    training = checkpoint.begin(checkpoint.available(read_config(path)))
    checkpoint.restore(training, path / "checkpoints")
    return training


def _monitor(config: Config) -> AnyMonitor:
    return TextMonitor(config) if isinstance(config, TextConfig) else Monitor(config)


_SAID = {"digest": "the digest of the text"}  # fields that no one wrote


def _check_same(config: Config, before: Config) -> None:
    if type(config) is not type(before):
        raise ConfigError(f"config is a {type(config).__name__}, the run that --resume goes on with has a {type(before).__name__}")
    now, then = (_flat(dataclasses.asdict(c)) for c in (config, before))
    for name, value in now.items():
        if then[name] != value:
            raise ConfigError(f"{_SAID.get(name, name)} is {value!r}, the run that --resume goes on with has {then[name]!r}")


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


def _write_models(training: AnyTraining, directory: Path, source: str) -> None:
    for copy, seed in enumerate(training.config.seeds):
        notes = {"command": f"gdssm train {Path(source).name}", "seed": seed, "step": training.step}
        path = directory / "models" / f"seed-{seed}.safetensors"
        save(training.model(copy).cpu(), path, notes | training.notes() | {"config": dataclasses.asdict(training.config)})


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
        except BlockingIOError:
            raise RunError(f"--out is {str(directory)!r}, where another process is training") from None
        except (ModuleNotFoundError, OSError):  # no such locks on this system, or in this file system
            pass
        for folder in (directory, directory / "checkpoints", directory / "models"):
            remove_unfinished(folder)
        yield


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
