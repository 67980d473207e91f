"""scaling: what a training step costs in time and memory against context, features, tasks, seeds in one program, threads.

One axis is varied at a time around the same base. Time: CPU time of whole training steps, tasks drawn included; the least of
several blocks, for what else a machine does only adds. Memory: bytes kept from the forward to the backward pass, which are
counted and the same on every machine. Exponents are fitted to the larger sizes; no target is an absolute time.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..settings import ModelConfig, TrainConfig
from ..tasks import LinearRegression
from ..tokens import interleave
from ..train import Training, limited_threads, summed_loss
from . import Outcome, Sizes, scaling_report
from .jobs import Job

TITLE = "What training costs"
QUESTION = "How do time and memory of training grow with context, features, tasks, seeds per program and threads?"
DECAYS = ("head", "full")


@dataclass(frozen=True)
class Preset(Sizes):
    """Sizes: the base of every axis, the sizes along each, and how long is measured (CPU seconds for each of `blocks`)."""

    seeds: tuple[int, ...] = (0,)
    base: TrainConfig = field(
        default_factory=lambda: TrainConfig(task=LinearRegression(10, 10, 10), steps=10**6, batch=64, warmup=0)
    )
    examples: tuple[int, ...] = (10, 30, 100, 300, 1000)
    features: tuple[int, ...] = (5, 10, 20, 40, 80)
    batches: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    copies: tuple[int, ...] = (1, 4, 16, 64)
    threads: tuple[int, ...] = (1, 2)
    thread_batch: int = 1024
    seconds: float = 0.25
    blocks: int = 3


PRESETS = {
    "quick": Preset(),
    "paper": Preset(
        examples=(10, 30, 100, 300, 1000, 3000),
        features=(5, 10, 20, 40, 80, 160),
        batches=(16, 64, 256, 1024, 4096, 16384),
        copies=(1, 4, 16, 64, 256),
        threads=(1, 2, 4, 8, 16),
        thread_batch=4096,
        seconds=2.0,
        blocks=5,
    ),
}
AXES = {
    "examples": "examples N (tokens T = 2 N + 1)",
    "features": "features d",
    "batch": "tasks per step",
    "copies": "seeds in one program",
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """One job for every axis and decay structure, and one for threads."""
    found = {f"{axis}-{decay}": Job(measured, (sizes, axis, decay)) for axis in AXES for decay in DECAYS}
    return found | {"threads": Job(threaded, (sizes,))}


def configuration(sizes: Preset, axis: str, value: int, decay: str) -> TrainConfig:
    """The base with one size changed."""
    base = replace(sizes.base, model=ModelConfig(decay=decay), seeds=sizes.seeds[:1])
    if axis == "examples":
        return replace(base, task=replace(base.task, n_examples=value))
    if axis == "features":
        return replace(base, task=replace(base.task, d_x=value, d_y=value))
    if axis == "batch":
        return replace(base, batch=value)
    return replace(base, seeds=tuple(range(sizes.seeds[0], sizes.seeds[0] + value)))


def measured(sizes: Preset, axis: str, decay: str) -> dict[str, Any]:
    """Seconds and bytes of a step at every size of an axis, and what fraction of the step draws tasks."""
    values = {"examples": sizes.examples, "features": sizes.features, "batch": sizes.batches, "copies": sizes.copies}[axis]
    configs = [configuration(sizes, axis, value, decay) for value in values]
    with limited_threads(1):
        timed = [step_seconds(config, sizes.seconds, sizes.blocks) for config in configs]
        drawing = [drawing_seconds(config) for config in configs]
    return {
        "sizes": list(values),
        "seconds": [least for least, _ in timed],
        "slowest": [most for _, most in timed],
        "drawing": drawing,
        "bytes": [kept_bytes(config) for config in configs],
    }


def threaded(sizes: Preset) -> dict[str, Any]:
    """Wall-clock seconds of a step for each number of threads, at a larger batch."""
    config = replace(configuration(sizes, "batch", sizes.thread_batch, "head"))
    found = []
    for count in sizes.threads:
        with limited_threads(count):
            found.append(step_seconds(config, sizes.seconds, sizes.blocks, clock=time.monotonic)[0])
    return {"sizes": list(sizes.threads), "seconds": found}


def step_seconds(config: TrainConfig, seconds: float, blocks: int, clock: Any = time.process_time) -> tuple[float, float]:
    """Least and largest mean time of a training step, over blocks of at least so many seconds and one step."""
    training = Training(config)
    training.advance()  # the first step allocates
    found = []
    for _ in range(blocks):
        start, steps = clock(), 0
        while steps == 0 or clock() - start < seconds:
            training.advance()
            steps += 1
        found.append((clock() - start) / steps)
    return min(found), max(found)


def drawing_seconds(config: TrainConfig) -> float:
    """Least CPU time of three draws of a step's tasks."""
    found = []
    for step in range(3):
        start = time.process_time()
        config.task.sample(config.batch, seed=config.data_seed, step=step)
        found.append(time.process_time() - start)
    return min(found)


def kept_bytes(config: TrainConfig) -> int:
    """Bytes that the forward pass of a step keeps for the backward pass, each piece of memory counted once; no weights."""
    training = Training(config)
    context = config.task.sample(config.batch, seed=config.data_seed, step=0)
    assert context.y_query is not None
    weights = {p.untyped_storage().data_ptr() for p in training.ensemble.parameters.values()}
    kept: dict[int, Any] = {}  # holding the storage keeps its address from being used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = training.ensemble(interleave(context.x, context.y, context.x_query))
        loss = summed_loss(prediction, context.y_query[:, 0])
    total = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims and record."""
    base = sizes.base
    record = {
        "experiment": "scaling",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "base": f"N = {base.task.n_examples}, d = {base.task.d_x}, {base.batch} tasks per step, one seed, one thread, float32",
            "threads measured at": f"{sizes.thread_batch} tasks per step, one decay per head",
            "time": f"CPU time of a step, least of {sizes.blocks} blocks of {sizes.seconds:g} s; threads: wall clock",
            "memory": "bytes kept for the backward pass, without weights",
        },
        "blocks": scaling_report.blocks(AXES, DECAYS, base.batch, results),
    }
    return Outcome(scaling_report.claims(AXES, DECAYS, results), record, sizes.seeds)
