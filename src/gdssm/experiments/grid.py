"""A grid of learning rates and seeds trained as one program, and the rate that other tasks than the reported ones choose.

Several experiments train one layer from several seeds and ask what loss it reaches; this is the part they share.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from ..copies import train_copies
from ..ensemble import Ensemble
from ..settings import TrainConfig
from ..tasks import Context
from ..tokens import interleave
from ..views import HELD_OUT_SEED
from .trainings import target_of

CHUNK = 2_000  # tasks that all copies read at once
VALIDATION_STEP, EVALUATION_STEP = 1, 0


@dataclass(frozen=True)
class Chosen:
    """The copies of the rate with the lowest median loss on the validation tasks, one for each seed.

    rate        the peak rate
    validation  rate -> losses by seed; infinite where a copy diverged
    models      of the chosen rate, by seed
    losses      their mean squared losses on the evaluation tasks, infinite where a copy diverged
    """

    rate: float
    validation: dict[float, list[float]]
    models: list[nn.Module]
    losses: list[float]

    @property
    def loss(self) -> float:
        """The median over the seeds."""
        return median(self.losses)


def train_grid(
    make: Callable[[int], nn.Module],
    config: TrainConfig,
    seeds: Sequence[int],
    rates: Sequence[float],
    *,
    validation_tasks: int,
    evaluation_tasks: int,
    outputs: slice = slice(None),
    label: str = "training",
) -> Chosen:
    """Train make(seed) for every seed at every rate, all on the same tasks; losses are of `outputs` alone.

    make    a seed -> a module, interleaved tokens (B, T, D) -> predictions (B, d_y)
    config  task, steps, batch and schedule, as gdssm.copies.train_copies reads them; tasks come from seeds[0]
    """
    order = [(rate, seed) for rate in rates for seed in seeds]
    settled = TrainConfig(**{**vars(config), "data_seed": seeds[0]})
    found = train_copies([make(seed) for _, seed in order], [rate for rate, _ in order], settled, label=label)
    ensemble = found.ensemble
    validation = losses(ensemble, config.task.sample(validation_tasks, seed=HELD_OUT_SEED, step=VALIDATION_STEP), outputs)
    by_rate = {rate: [loss for (own, _), loss in zip(order, validation, strict=True) if own == rate] for rate in rates}
    best = min(rates, key=lambda rate: median(by_rate[rate]))
    evaluation = losses(ensemble, config.task.sample(evaluation_tasks, seed=HELD_OUT_SEED, step=EVALUATION_STEP), outputs)
    copies = [i for i, (rate, _) in enumerate(order) if rate == best]
    models = [ensemble.load(make(seeds[0]), i) for i in copies]
    return Chosen(best, by_rate, models, [evaluation[i] for i in copies])


@torch.no_grad()
def losses(ensemble: Ensemble, context: Context, outputs: slice = slice(None)) -> list[float]:
    """0.5 (target - prediction)^2, mean over tasks and outputs, of every copy; infinite where it is not finite."""
    target = target_of(context)[:, 0, outputs]
    total = torch.zeros(len(ensemble), dtype=torch.float64)
    for start in range(0, len(context), CHUNK):
        part = slice(start, start + CHUNK)
        prediction = ensemble(interleave(context.x[part], context.y[part], context.x_query[part]))[..., outputs]
        total += (prediction - target[part]).double().square().sum((1, 2))
    found = (0.5 * total / target.numel()).tolist()
    return [loss if math.isfinite(loss) else math.inf for loss in found]


def finite(values: Sequence[float]) -> list[float | None]:
    """JSON has no infinity: None where a value is not finite."""
    return [value if math.isfinite(value) else None for value in values]
