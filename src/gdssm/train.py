"""Meta-training: fresh tasks every step, many seeds as one batched program, one readable loop.

Every seed has its own initial weights, its own clipping and its own optimiser state; all seeds see the same tasks,
which are a pure function of (data_seed, step). Read `train` first.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .config import check_choice, check_count, check_number
from .ensemble import Adam, Ensemble
from .layers import GDSSM
from .models import InContextModel
from .progress import track
from .tasks import LinearRegression
from .tokens import interleave
from .weights import DECAYS

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class ModelConfig:
    """A one-layer GDSSM; see gdssm.GDSSM for the fields."""

    decay: str = "head"
    n_heads: int = 1
    key_map: bool = False
    feedthrough: bool = False
    normalize: bool = False

    def __post_init__(self) -> None:
        check_choice("decay", self.decay, DECAYS)
        check_count("n_heads", self.n_heads)

    def build(self, task: LinearRegression, seed: int, dtype: torch.dtype) -> InContextModel:
        """The model for this task with random weights that depend on the seed alone."""
        layer = GDSSM(
            max(task.d_x, task.d_y),
            decay=self.decay,
            n_heads=self.n_heads,
            key_map=self.key_map,
            feedthrough=self.feedthrough,
            normalize=self.normalize,
            dtype=dtype,
        )
        layer.reset_parameters(torch.Generator().manual_seed(seed))
        return InContextModel(layer, task.d_x, task.d_y)


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, and how.

    task, model     see LinearRegression and ModelConfig
    seeds           one copy of the model for each
    steps, batch    optimiser steps, tasks in each
    lr, warmup      peak rate of Adam, steps of linear warm-up; then a cosine to 0. The decays' log rates have far to
                    go to Lambda = 1: they keep the peak rate for 80 % of the steps
    clip            largest gradient norm, per seed
    beta1, beta2    Adam's
    data_seed       seed of the tasks
    dtype           "float32" or "float64"
    threads         of torch while training. One is the safe choice for small tasks: a second saves little, the numbers
                    do not depend on the machine's cores, and a busy machine does not slow it several times
    """

    task: LinearRegression = field(default_factory=LinearRegression)
    model: ModelConfig = field(default_factory=ModelConfig)
    seeds: tuple[int, ...] = (0,)
    steps: int = 4000
    batch: int = 64
    lr: float = 2e-2
    warmup: int = 100
    clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    data_seed: int = 0
    dtype: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed")
        for seed in self.seeds:
            check_count("seeds", seed, 0)
        check_count("steps", self.steps)
        check_count("batch", self.batch)
        check_count("warmup", self.warmup, 0)
        check_count("data_seed", self.data_seed, 0)
        check_count("threads", self.threads)
        check_number("lr", self.lr, above=0)
        check_number("clip", self.clip, above=0)
        check_number("beta1", self.beta1, least=0, most=1)
        check_number("beta2", self.beta2, least=0, most=1)
        check_choice("dtype", self.dtype, tuple(DTYPES))


class NonFiniteError(RuntimeError):
    """Training produced a value that is not finite; the message names the step and the seeds."""


def schedule(config: TrainConfig, step: int, decays: bool) -> float:
    """The share of the peak rate: linear warm-up, then a cosine to 0 at the last step; for the decays its end only."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    done = step / config.steps
    return warm * 0.5 * (1 + math.cos(math.pi * (max(0.0, done - 0.8) / 0.2 if decays else done)))


def train(
    config: TrainConfig,
    *,
    evaluate: Callable[[int, Ensemble], None] | None = None,
    evaluate_at: Collection[int] = (),
    label: str = "training",
) -> Ensemble:
    """Train all seeds and return them; evaluate(step, ensemble) is called before the steps in evaluate_at.

    The loss of a task is 0.5 |y_query - prediction|^2 / d_y. The same configuration gives the same weights. Raises
    NonFiniteError as soon as a loss is not finite.
    """
    dtype = DTYPES[config.dtype]
    ensemble = Ensemble([config.model.build(config.task, seed, dtype) for seed in config.seeds])
    optimizer = Adam(ensemble, beta1=config.beta1, beta2=config.beta2)
    decays = decay_columns(ensemble)
    with _threads(config.threads):
        for step in track(config.steps, label):
            if evaluate is not None and step in evaluate_at:
                evaluate(step, ensemble)
            context = config.task.sample(config.batch, seed=config.data_seed, step=step, dtype=dtype)
            tokens = interleave(context.x, context.y, context.x_query)
            assert context.y_query is not None
            others, decay = (config.lr * schedule(config, step, decays=which) for which in (False, True))
            training_step(optimizer, tokens, context.y_query[:, 0], others + decays * (decay - others), config.clip, step)
    return ensemble


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch with this many threads; as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decay_columns(ensemble: Ensemble) -> Tensor:
    """1 for the columns that hold decays' log rates, 0 for the others: (P,)."""
    chosen = torch.zeros_like(ensemble.flat[0])
    for name, columns in ensemble.columns.items():
        if name.endswith("log_rate"):
            chosen[columns] = 1
    return chosen


def training_step(optimizer: Adam, tokens: Tensor, target: Tensor, rates: Tensor, clip: float, step: int = 0) -> None:
    """One update of every copy: tokens (B, T, D), target (B, d_y), rates (P,); each copy's gradient has norm <= clip."""
    ensemble = optimizer.ensemble
    prediction = ensemble(tokens)  # (S, B, d_y)
    loss = mse_loss(prediction, target.expand_as(prediction), reduction="sum") * (0.5 / target.numel())
    if not math.isfinite(loss.item()):
        bad = (~torch.isfinite(prediction).all(2).all(1)).nonzero().flatten().tolist()
        raise NonFiniteError(f"step {step}: the loss is not finite for the copies at positions {bad}")
    ensemble.differentiate(loss)
    ensemble.gradient.renorm_(2, 0, clip)  # row by row
    optimizer.step(rates)
