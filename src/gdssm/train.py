"""Meta-training: fresh tasks every step, many seeds as one batched program, one readable loop.

Every seed has its own initial weights, its own clipping and its own optimiser state; all seeds see the same tasks,
which are a pure function of (data_seed, step). Read `train` first; gdssm.runs adds files to it.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .config import ConfigError
from .ensemble import Adam, Ensemble
from .layers import GDSSM
from .models import InContextModel
from .progress import track
from .readouts import IteratedReadout
from .recipe import Recipe
from .settings import ModelConfig, TrainConfig
from .tasks import LinearRegression
from .tokens import interleave

__all__ = ["ModelConfig", "NonFiniteError", "Step", "TrainConfig", "Training", "build_model", "schedule", "train", "training_step"]


class NonFiniteError(RuntimeError):
    """Training produced a value that is not finite; the message names the step and the tensor."""


def build_model(config: ModelConfig, task: LinearRegression, seed: int, dtype: torch.dtype = torch.float32) -> InContextModel:
    """The model of a configuration for a task, with random weights that depend on the seed alone."""
    layer: GDSSM | IteratedReadout
    if config.steps > 1:
        layer = IteratedReadout(config.steps, decay=config.decay, normalize=config.normalize, dtype=dtype)
    else:
        layer = GDSSM(
            max(task.d_x, task.d_y),
            decay=config.decay,
            n_heads=config.n_heads,
            key_map=config.key_map,
            feedthrough=config.feedthrough,
            normalize=config.normalize,
            dtype=dtype,
        )
    layer.reset_parameters(torch.Generator().manual_seed(seed))
    return InContextModel(layer, task.d_x, task.d_y)


def schedule(config: TrainConfig | Recipe, step: int, decays: bool) -> float:
    """The share of the peak rate: linear warm-up, then a cosine to 0 at the last step; for the decays its end only."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    done = step / config.steps
    return warm * 0.5 * (1 + math.cos(math.pi * (max(0.0, done - 0.8) / 0.2 if decays else done)))


class Step(NamedTuple):
    """What a step saw before it changed the weights: predictions (S, B, d_y), targets (B, d_y), norms of gradients (S,)."""

    prediction: Tensor
    target: Tensor
    norms: Tensor

    def losses(self) -> Tensor:
        """The loss of each copy, (S,)."""
        return (self.prediction - self.target).square().sum((1, 2)) * (0.5 / self.target.numel())

    def metrics(self) -> dict[str, list[float]]:
        """What a run writes down of it, one number per copy."""
        return {"loss": self.losses().tolist(), "gradient_norm": self.norms.tolist()}


class Training:
    """Where a training stands: the copies, the optimiser, and the next step. `arrays` and `step` are all of it.

    Raises ConfigError where the device of the configuration is not there.
    """

    kind = "in-context"

    def __init__(self, config: TrainConfig) -> None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda', which torch does not find on this machine; allowed here: cpu")
        self.config, self.step = config, 0
        self.dtype = getattr(torch, config.dtype)
        models = [build_model(config.model, config.task, seed, self.dtype).to(config.device) for seed in config.seeds]
        self.ensemble = Ensemble(models)
        self.optimizer = Adam(self.ensemble, beta1=config.beta1, beta2=config.beta2)
        self._decays = decay_columns(self.ensemble)

    def advance(self) -> Step:
        """One optimiser step. Raises NonFiniteError; the weights have not been updated then."""
        config, step = self.config, self.step
        context = config.task.sample(config.batch, seed=config.data_seed, step=step, dtype=self.dtype, device=config.device)
        assert context.y_query is not None
        tokens, target = interleave(context.x, context.y, context.x_query), context.y_query[:, 0]
        others, decay = (config.lr * schedule(config, step, decays=which) for which in (False, True))
        found = training_step(
            self.optimizer, tokens, target, others + self._decays * (decay - others), config.clip, step, config.seeds
        )
        self.step += 1
        return found

    def check(self) -> None:
        """NonFiniteError where a weight is not finite after the steps so far."""
        bad = _bad_weights(self.ensemble, self.config.seeds)
        if bad is not None:
            raise NonFiniteError(f"step {self.step - 1}: {bad}")

    def model(self, copy: int) -> InContextModel:
        """One of the copies as a model of its own."""
        model = build_model(self.config.model, self.config.task, 0, self.dtype).to(self.config.device)
        self.ensemble.load(model, copy)
        return model

    def notes(self) -> dict[str, Any]:
        """What a saved model needs beside its weights: nothing."""
        return {}

    def arrays(self) -> dict[str, Tensor]:
        """Every number that the next steps depend on, but for `step`: weights and Adam's two means, (S, P) each."""
        return {"weights": self.ensemble.flat, "adam.mean": self.optimizer.mean, "adam.square": self.optimizer.square}

    @torch.no_grad()
    def restore(self, step: int, arrays: Mapping[str, Tensor]) -> None:
        """Stand where `arrays` and `step` were taken. ValueError for missing arrays and other shapes or dtypes."""
        own = self.arrays()
        for name, value in own.items():
            given = arrays.get(name)
            if given is None or given.shape != value.shape or given.dtype != value.dtype:
                raise ValueError(f"{name} must be {value.dtype} of shape {tuple(value.shape)}")
        for name, value in own.items():
            value.copy_(arrays[name])
        self.step = self.optimizer.steps = step


def train(
    config: TrainConfig,
    *,
    evaluate: Callable[[int, Ensemble], None] | None = None,
    evaluate_at: Collection[int] = (),
    label: str = "training",
) -> Ensemble:
    """Train all seeds and return them; evaluate(step, ensemble) is called before the steps in evaluate_at.

    The loss of a task is 0.5 |y_query - prediction|^2 / d_y. The same configuration gives the same weights. Raises
    NonFiniteError as soon as a loss or gradient is not finite.
    """
    training = Training(config)
    with limited_threads(config.threads):
        for step in track(config.steps, label):
            if evaluate is not None and step in evaluate_at:
                evaluate(step, training.ensemble)
            training.advance()
    return training.ensemble


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
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


def training_step(
    optimizer: Adam, tokens: Tensor, target: Tensor, rates: Tensor, clip: float, step: int = 0, seeds: Sequence[int] = ()
) -> Step:
    """One update of every copy: tokens (B, T, D), target (B, d_y), rates (P,); each copy's gradient has norm <= clip.

    Raises NonFiniteError that names step, tensor and seed, before anything is updated.
    """
    ensemble = optimizer.ensemble
    prediction, pullback = ensemble.linearised(tokens)  # (S, B, d_y)
    errors = prediction - target
    if not math.isfinite(torch.linalg.vector_norm(errors).item()):
        raise NonFiniteError(f"step {step}: {_first_bad(ensemble, tokens, target, prediction, seeds)}")
    pullback(errors.div_(target.numel()))  # the gradient of summed_loss
    norms = torch.linalg.vector_norm(ensemble.gradient, dim=1)
    longest = norms.max().item()  # NaN where one is
    if not math.isfinite(longest):
        copy, column = _first(~torch.isfinite(ensemble.gradient), norms)
        raise NonFiniteError(f"step {step}: the gradient of {ensemble.name_of(column)} is not finite ({_whose(copy, seeds)})")
    if longest > clip:
        ensemble.gradient.renorm_(2, 0, clip)  # row by row
    optimizer.step(rates)
    return Step(prediction, target, norms)


def summed_loss(prediction: Tensor, target: Tensor, loss: str = "squared") -> Tensor:
    """The sum over copies of the losses, each a mean over tasks: (S, B, d_y), (B, d_y) -> scalar.

    loss "squared" is 0.5 |target - prediction|^2 / d_y; "cross_entropy" -target . log softmax(prediction).
    """
    if loss == "cross_entropy":
        return -(target * prediction.log_softmax(-1)).sum() / len(target)
    return mse_loss(prediction, target.expand_as(prediction), reduction="sum") * (0.5 / target.numel())


def _first_bad(ensemble: Ensemble, tokens: Tensor, target: Tensor, prediction: Tensor, seeds: Sequence[int]) -> str:
    """Which tensor made a loss not finite: the task's, a parameter, or else the prediction."""
    for name, value in (("the tokens", tokens), ("the targets", target)):
        if not bool(torch.isfinite(value).all()):
            return f"{name} of the task are not finite"
    bad = _bad_weights(ensemble, seeds)
    if bad is not None:
        return bad
    copy = int((~torch.isfinite(prediction)).flatten(1).any(1).int().argmax())
    return f"the prediction or its loss is not finite ({_whose(copy, seeds)})"


def _bad_weights(ensemble: Ensemble, seeds: Sequence[int]) -> str | None:
    bad = torch.isnan(ensemble.flat) | torch.isposinf(ensemble.flat)  # a log rate of -infinity is Lambda = 1
    if not bool(bad.any()):
        return None
    copy, column = _first(bad, ensemble.flat[:, 0])
    return f"parameter {ensemble.name_of(column)} is not finite ({_whose(copy, seeds)})"


def _first(bad: Tensor, norms: Tensor) -> tuple[int, int]:
    """Row and column of the first bad entry; where only a norm overflowed, the row of that norm and column 0."""
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        return row, column
    return int((~torch.isfinite(norms)).int().argmax()), 0


def _whose(copy: int, seeds: Sequence[int]) -> str:
    return f"seed {seeds[copy]}" if seeds else f"copy {copy}"
