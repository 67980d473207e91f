"""What experiments on sequences have in common: every contender at every rate from every seed, with one recipe, and the best rate.

A job trains one model. The rate with the lowest mean validation loss over the seeds counts for a contender; test results are
those of its jobs. Where training is long, some of the seeds try all rates and the others train at the best of them alone.
All models see the same batches in the same order.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from ..analysis import t_interval
from ..baselines import parameter_count
from ..blocks import Dots, Lines, Row, Series, Table
from ..config import ConfigError, counted
from ..recipe import Recipe
from ..sequence_train import Fitted, fit, score
from ..sequences import SequenceTask
from . import Sizes
from .claims import Claim
from .jobs import Job
from .sequence_contenders import CONTENDERS, Shape, build, check_contenders, state_size

Result = dict[str, Any]


@dataclass(frozen=True)
class Comparison(Sizes):
    """Sizes of a comparison: who, at which rates, in which shape, trained how; points of the validation curve.

    tuned   so many of the seeds, the first ones, try every rate; the others train at the best of them. None: all seeds try all
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    contenders: tuple[str, ...] = ()
    rates: tuple[float, ...] = (1e-3, 3e-3)
    shape: Shape = field(default_factory=Shape)
    recipe: Recipe = field(default_factory=Recipe)
    points: int = 8
    tuned: int | None = None

    def __post_init__(self) -> None:
        check_contenders(self.contenders)
        if self.contenders and "gdssm" not in self.contenders:
            raise ConfigError(f"contenders must have gdssm, which the others are compared with, got {', '.join(self.contenders)}")

    @property
    def tuning(self) -> tuple[int, ...]:
        """The seeds that every rate is tried with."""
        return self.seeds if self.tuned is None or len(self.rates) == 1 else self.seeds[: self.tuned]


def alone(sizes: Comparison) -> Any:
    """The sizes without what one training does not depend on: a comparison of more models or seeds keeps what was trained."""
    return replace(sizes, contenders=(), rates=(), seeds=(), tuned=None)


def rate_name(rate: float) -> str:
    """A rate in the name of a job, e.g. 0.003 as 3e-3."""
    digits, exponent = f"{rate:.3e}".split("e")
    return f"{digits.rstrip('0').rstrip('.').replace('.', 'p')}e{int(exponent)}"


def jobs_of(
    sizes: Comparison, function: Callable[..., Result], arguments: tuple[Any, ...] = (), prefix: str = ""
) -> dict[str, Job]:
    """function(sizes, *arguments, contender, rate, seed) for every contender, every rate and the seeds that try them all."""
    return {
        job_name(prefix, name, rate, seed): Job(function, (alone(sizes), *arguments, name, rate, seed))
        for name in sizes.contenders
        for rate in sizes.rates
        for seed in sizes.tuning
    }


def further_of(
    sizes: Comparison,
    results: Mapping[str, Result],
    function: Callable[..., Result],
    arguments: tuple[Any, ...] = (),
    prefix: str = "",
) -> dict[str, Job]:
    """The same for the other seeds, at each contender's best rate."""
    return {
        job_name(prefix, name, rate, seed): Job(function, (alone(sizes), *arguments, name, rate, seed))
        for name, (rate, _) in best_rates(sizes, results, prefix).items()
        for seed in sizes.seeds
        if seed not in sizes.tuning
    }


def job_name(prefix: str, name: str, rate: float, seed: int) -> str:
    """E.g. gdssm-3e-3-0; the prefix names a part of the experiment."""
    return f"{prefix}{name}-{rate_name(rate)}-{seed}"


def train_one(sizes: Comparison, task: SequenceTask, name: str, rate: float, seed: int) -> tuple[Fitted, Result]:
    """Train a contender and test it: what was trained, and JSON data with its numbers; None for what is not finite."""
    model = build(name, task, sizes.shape, seed)
    parameters = parameter_count(model)
    fitted = fit(model, task, replace(sizes.recipe, lr=rate), points=sizes.points, label=f"{name}, rate {rate:g}, seed {seed}")
    result: Result = {
        "parameters": parameters,
        "state": state_size(model, sizes.shape.max_tokens),
        "steps": list(fitted.steps),
        "validation": [finite(loss) for loss in fitted.losses],
        "final": finite(fitted.final),
        "milliseconds": 1000 * fitted.seconds / sizes.recipe.steps,
        "diverged": fitted.diverged,
        "device": fitted.device,
        "test_loss": None,
        "test_accuracy": None,
        "groups": [],
    }
    if fitted.diverged is None:
        found = score(fitted.module, task.held_out("test"), fitted.device)
        result |= {
            "test_loss": finite(found.loss),
            "test_accuracy": found.accuracy,
            "groups": [[group, right, count] for group, (right, count) in found.groups.items()],
        }
    return fitted, result


def trained(sizes: Comparison, task: SequenceTask, name: str, rate: float, seed: int) -> Result:
    """The numbers of train_one: the job of experiments that need no more."""
    return train_one(sizes, task, name, rate, seed)[1]


@dataclass(frozen=True)
class Chosen:
    """A contender at its best rate: its jobs' results by seed, and the mean final validation loss at every rate."""

    name: str
    rate: float
    rates: dict[float, float | None]
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """For readers."""
        return CONTENDERS[self.name].title

    def values(self, key: str) -> tuple[Any, ...]:
        """A number, or a list of them, of every seed; None where it diverged."""
        return tuple(result[key] for result in self.results)

    def middle(self, key: str) -> float | None:
        """The mean over the seeds; None where one has none."""
        values = [value for value in self.values(key) if value is not None]
        return mean(values) if len(values) == len(self.results) else None


def best_rates(
    sizes: Comparison, results: Mapping[str, Result], prefix: str = ""
) -> dict[str, tuple[float, dict[float, float | None]]]:
    """Every contender's rate of the lowest mean validation loss at the end, and the losses; one that diverged is worst."""
    found = {}
    for name in sizes.contenders:
        by_rate = {rate: [results[job_name(prefix, name, rate, seed)]["final"] for seed in sizes.tuning] for rate in sizes.rates}
        losses = {rate: mean(math.inf if loss is None else loss for loss in own) for rate, own in by_rate.items()}
        best = min(sizes.rates, key=lambda rate: losses[rate])
        found[name] = (best, {rate: finite(loss) for rate, loss in losses.items()})
    return found


def choose(sizes: Comparison, results: Mapping[str, Result], prefix: str = "") -> dict[str, Chosen]:
    """Every contender at its best rate, with the results of all seeds there."""
    return {
        name: Chosen(name, rate, losses, tuple(results[job_name(prefix, name, rate, seed)] for seed in sizes.seeds))
        for name, (rate, losses) in best_rates(sizes, results, prefix).items()
    }


def difference(first: Sequence[float | None], second: Sequence[float | None]) -> tuple[float, float, float] | None:
    """Mean of first - second over the seeds, paired, and its 95 % interval; None where a value is missing or there is only one."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(pairs) < max(2, len(first)):
        return None
    values = [a - b for a, b in pairs]
    low, high = t_interval(values)
    return mean(values), low, high


def equal_parameters(chosen: Mapping[str, Chosen], first: str = "gdssm") -> Claim:
    """That no contender has more than 5 % more or fewer parameters than the first."""
    budget = chosen[first].results[0]["parameters"]
    worst = max(abs(one.results[0]["parameters"] / budget - 1) for one in chosen.values())
    return Claim("parameters_apart", "identity", 0.0, worst, "<=", 0.05)


def table(title: str, chosen: Mapping[str, Chosen], columns: Mapping[str, Callable[[Chosen], Any]], note: str = "") -> Table:
    """A row for every contender: its size, rate and cost, and the columns between."""
    heads = ("model", "parameters", "state", *columns, "best rate", "CPU ms per step")
    rows = []
    for one in chosen.values():
        state = one.results[0]["state"]
        cells = [column(one) for column in columns.values()]
        rows.append((one.title, one.results[0]["parameters"], state, *cells, one.rate, one.middle("milliseconds")))
    return Table(title, heads, tuple(rows), note)


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over the seeds, for a table."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"{len(values) - len(known)} of {len(values)} diverged"
    return f"{mean(known):.4f}" + (f" ± {stdev(known):.4f}" if len(known) > 1 else "")


def curves(title: str, chosen: Mapping[str, Chosen], y_label: str, scale: float = 1.0) -> Lines | None:
    """Validation losses along the training; the band reaches over the seeds. None where no contender ran to its end."""
    series = []
    for one in chosen.values():
        known = [result for result in one.results if result["diverged"] is None and None not in result["validation"]]
        if known:
            columns = list(zip(*(result["validation"] for result in known), strict=True))
            low, middle, high = (tuple(scale * f(column) for column in columns) for f in (min, mean, max))
            middle = tuple(min(max(m, a), b) for m, a, b in zip(middle, low, high, strict=True))  # rounding of equal numbers
            series.append(Series(one.title, tuple(known[0]["steps"]), middle, low, high))
    caption = "Each model at its best rate: mean over the seeds, the band reaches from the lowest to the highest."
    return Lines(title, "optimiser steps", y_label, tuple(series[:8]), caption) if series else None


def dots(
    title: str,
    x_label: str,
    chosen: Mapping[str, Chosen],
    values: Callable[[Chosen], Sequence[float | None]],
    unit: str = "seed",
) -> Dots:
    """A row of seeds, or other units, for every contender."""
    rows = tuple(Row(one.title, tuple(values(one)), "ours" if CONTENDERS[one.name].ours else "others") for one in chosen.values())
    return Dots(title, x_label, rows, f"Every dot is a {unit} at the model's best learning rate; the mark is the median.")


def settings_of(sizes: Comparison, unit: str = "seed", sequences: str = "") -> dict[str, Any]:
    """The settings that all comparisons have, for a record; unit is what rates are tried with, sequences those of a step."""
    recipe, shape, some = sizes.recipe, sizes.shape, len(sizes.tuning)
    tried = ""
    if len(sizes.rates) > 1:
        first = f"the first {unit}" if some == 1 else f"the first {counted(some, unit)}"
        rest = "" if some == len(sizes.seeds) else f" of {first}; the other {unit}s train at that rate alone"
        tried = f"; the one that counts is the best on the validation{rest}"
    return {
        "blocks, heads, width of GDSSM": f"{shape.n_layers}, {shape.n_heads}, {shape.width}",
        "sizes of the others": "those of as many parameters",
        "optimiser": f"AdamW, warm-up {recipe.warmup}, cosine to 0, weight decay {recipe.weight_decay:g} on matrices",
        "learning rates": ", ".join(f"{rate:g}" for rate in sizes.rates) + tried,
        "gradient clipping": recipe.clip,
        "steps, sequences in each": f"{recipe.steps}, {sequences or recipe.batch}",
        "seeds": len(sizes.seeds),
        "data": "the same batches in the same order for every model",
    }


def finite(value: float | None) -> float | None:
    """The value, None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def worst_if_missing(value: float | None) -> float:
    """A value for a claim that a missing number must not satisfy."""
    return math.inf if value is None else value


@torch.no_grad()
def streamed_difference(model: nn.Module, tokens: torch.Tensor, pieces: int = 3) -> float:
    """Largest difference between the logits of one pass and those of pieces and single tokens, over the largest logit.

    The logits of a trained model grow with training, and rounding with them; below 1 nothing is divided.
    """
    model.eval()
    whole, _ = model(tokens)
    parts, state = [], None
    length = tokens.shape[1]
    cuts = [round(length * i / pieces) for i in range(pieces)]
    for start, end in pairwise(cuts):
        out, state = model(tokens[:, start:end], state)
        parts.append(out)
    for t in range(cuts[-1], length):
        out, state = model(tokens[:, t : t + 1], state)
        parts.append(out)
    return float((torch.cat(parts, dim=1) - whole).abs().max() / whole.abs().max().clamp(min=1))
