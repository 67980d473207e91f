"""Checkpoints of a run, DIR/checkpoints/step-00000200.safetensors: all that the next steps depend on, in files that run no code.

A checkpoint holds the weights, the optimiser, the step, torch's random state, the configuration, and the mark of the metrics
that belong to it; tasks and schedule are functions of the step.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import storage
from .config import ConfigError, from_mapping, one_line
from .metrics import Mark
from .settings import TrainConfig
from .storage import StorageError
from .train import Training

KEPT = 2  # should the last one be damaged, there is one before it


def write(training: Training, folder: Path, mark: Mark) -> None:
    """Write where a training stands, and remove all but the last two. StorageError where it cannot be written."""
    path = folder / f"step-{training.step:08d}.safetensors"
    content = {"step": training.step, "metrics": mark._asdict(), "config": dataclasses.asdict(training.config)}
    storage.write(path, "checkpoint", training.arrays() | _random_state(training), content)
    for old in paths(folder)[KEPT:]:
        with contextlib.suppress(OSError):  # one too many does no harm
            old.unlink()


def restore(training: Training, folder: Path) -> Mark:
    """Stand at the last good checkpoint of a folder, and return its mark; where there is none, stay at the start.

    A damaged one is passed over, and said so on standard error; StorageError where all of them are.
    """
    problems = []
    for path in paths(folder):
        try:
            mark = _restore(training, path)
        except StorageError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            print(f"{problem}; going on from {path.name}", file=sys.stderr)
        return mark
    if problems:
        raise StorageError(f"{problems[0]}; no other checkpoint can be used (without the folder {folder} the run starts again)")
    return Mark()


def load(path: Path) -> Training:
    """A training as it stood at a checkpoint. On the CPU where its device is not there. StorageError for other files."""
    content = storage.read(path, "checkpoint")[1]
    try:
        training = Training(available(from_mapping(TrainConfig, content["config"], "config.")))
    except (ConfigError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: does not hold a training of this gdssm: {one_line(str(error))}") from None
    _restore(training, path)
    return training


def available(config: TrainConfig) -> TrainConfig:
    """The configuration, on the CPU where there is no GPU: to look at what was trained on one."""
    return config if torch.cuda.is_available() else dataclasses.replace(config, device="cpu")


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the last one first."""
    return sorted(folder.glob("step-*.safetensors"), key=lambda path: (len(path.name), path.name), reverse=True)


def last_good(folder: Path) -> str:
    """For messages: the last checkpoint that can be read."""
    for path in paths(folder):
        with contextlib.suppress(StorageError):
            storage.read(path, "checkpoint")
            return f"the last good checkpoint is {path}"
    return "no checkpoint was written before"


def _restore(training: Training, path: Path) -> Mark:
    tensors, content = storage.read(path, "checkpoint")
    try:
        if _plain(content["config"]) != _plain(dataclasses.asdict(training.config)):
            raise StorageError(f"{path}: belongs to another configuration")
        mark = Mark(int(content["metrics"]["size"]), str(content["metrics"]["sha256"]))
        training.restore(int(content["step"]), tensors)
        torch.set_rng_state(tensors["random.cpu"])
        if training.config.device == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path}: does not hold this training: {one_line(str(error))}") from None
    return mark


def _plain(config: Mapping[str, Any]) -> Any:
    """A configuration as JSON data, without the device: weights are the same numbers on each."""
    return json.loads(json.dumps({name: value for name, value in config.items() if name != "device"}))


def _random_state(training: Training) -> dict[str, Tensor]:
    state = {"random.cpu": torch.get_rng_state()}
    if training.config.device == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state()
    return state
