"""one-step: does a randomly initialised layer become one step of gradient descent? (arXiv 2410.11687, main result)

One layer is trained from random weights on in-context linear regression (N = d = 10, vector targets, fresh tasks), then
compared on the same held-out tasks with explicit one-step GD at the best rate, the exact construction, and the closed
form of the best expected loss. Variants: one decay per head, and the published layer's full decay.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch

from .. import construct, learners
from ..analysis import Alignment, alignment, compare, parameter_match, sensitivity, squared_loss, wilson_interval
from ..ensemble import Ensemble
from ..layers import GDSSM
from ..models import InContextModel
from ..monitor import constructed_weights
from ..records import middle_seed
from ..settings import ModelConfig, TrainConfig, evaluation_steps
from ..tasks import LinearRegression, Predictor
from ..tokens import as_predictor
from ..train import build_model, train
from ..views import HELD_OUT_SEED, filling, snapshots
from . import Outcome, Sizes
from .claims import Claim
from .jobs import Job
from .trainings import optimum, target_of

TITLE = "One layer, one step of gradient descent"
QUESTION = "Does a randomly initialised layer become one step of gradient descent on the examples of its context?"
EVALUATION_SEED = HELD_OUT_SEED  # no training seed: evaluation tasks are never trained on
SUCCESS = {"head": (1.002, 0.9999), "full": (1.005, 0.999)}  # largest loss ratio, smallest cosine
PUBLISHED_PREDICTION_DIFFERENCE, PUBLISHED_SENSITIVITY_DIFFERENCE = 0.059, 0.066  # measured from the published code


@dataclass(frozen=True)
class Preset(Sizes):
    """Sizes of a run: seeds of one decay per head and of the full decay, evaluation tasks, training settings."""

    seeds: tuple[int, ...] = tuple(range(20))
    full_seeds: tuple[int, ...] = ()
    eval_tasks: int = 10_000
    curve_tasks: int = 500
    curve_points: int = 20
    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=3000, batch=256, lr=0.01))

    def seeded(self, count: int | None, first: int) -> Self:
        """Every variant that has seeds gets so many."""
        full = tuple(range(first, first + (count or len(self.full_seeds)))) if self.full_seeds else ()
        return replace(super().seeded(count, first), full_seeds=full)

    @property
    def variants(self) -> dict[str, tuple[int, ...]]:
        """Seeds of each decay structure that is trained."""
        return {decay: seeds for decay, seeds in (("head", self.seeds), ("full", self.full_seeds)) if seeds}


PRESETS = {
    "quick": Preset(),
    "paper": Preset(seeds=tuple(range(100)), full_seeds=tuple(range(20))),
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """The training of each decay structure."""
    return {f"{decay}-decay": Job(trained_variant, (sizes, decay)) for decay in sizes.variants}


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims of the worst seed, after those that need no training, and the record of every variant."""
    claims: list[Claim] = []
    records: list[dict[str, Any]] = []
    for decay in sizes.variants:
        found = results[f"{decay}-decay"]
        prefix = f"{decay}_decay_" if records else ""
        claims += [] if records else _untrained_claims(found["untrained"])
        claims += [replace(claim, name=prefix + claim.name) for claim in _trained_claims(decay, found)]
        records.append(found["record"])
    seeds = sorted({seed for chosen in sizes.variants.values() for seed in chosen})
    return Outcome(tuple(claims), _record(sizes, records), tuple(seeds))


def _record(settings: Preset, variants: list[dict[str, Any]]) -> dict[str, Any]:
    training = settings.training
    return {
        "experiment": "one-step",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "inputs": "x uniform on (-1/2, 1/2), W standard normal, no noise",
            "examples N": training.task.n_examples,
            "input features d_x": training.task.d_x,
            "target features d_y": training.task.d_y,
            "optimiser": f"Adam, peak rate {training.lr}, warm-up {training.warmup}, cosine to 0",
            "gradient clipping, per seed": training.clip,
            "updates": training.steps,
            "tasks per update": training.batch,
            "evaluation tasks": settings.eval_tasks,
        },
        "variants": variants,
    }


def _reference(task: LinearRegression) -> tuple[Predictor, float, float]:
    """One step of gradient descent at the best rate, that rate, and the closed form of its loss."""
    rate, closed_form = optimum(task)
    return learners.predictor(learners.gradient_descent, lr=rate), rate, closed_form


def untrained(sizes: Preset) -> dict[str, Any]:
    """How far the construction is from the explicit learner, and the learner's loss from the closed form."""
    task = sizes.training.task
    gd, rate, closed_form = _reference(task)
    context = task.sample(1_000, seed=EVALUATION_SEED, step=2, dtype=torch.float64)
    built = construct.gradient_descent(task.d_x, task.d_y, lr=rate, n_context=task.n_examples, dtype=torch.float64)
    found = alignment(as_predictor(built), gd, context)
    scale = float(gd(context).norm(dim=-1).mean())
    context = task.sample(sizes.eval_tasks, seed=EVALUATION_SEED, step=0)
    loss = squared_loss(gd(context), target_of(context))
    return {"construction_difference": found.prediction_difference / scale, "loss_over_closed_form": loss / closed_form}


def _untrained_claims(found: Mapping[str, float]) -> list[Claim]:
    return [
        Claim("construction_is_gradient_descent", "identity", 0.0, found["construction_difference"], "<=", 1e-12),
        # the loss of one model over 10,000 tasks has a standard deviation of 0.7 %
        Claim("gd_loss_over_closed_form", "hypothesis", 1.0, found["loss_over_closed_form"], "between", (0.979, 1.021)),
    ]


def _trained_claims(decay: str, found: Mapping[str, Any]) -> list[Claim]:
    """What training reached, the worst seed for each number."""
    most, least = SUCCESS[decay]
    final = found["final"]
    successes, n = sum(a["loss_ratio"] <= most and a["sensitivity_cosine"] >= least for a in final), len(final)

    def worst(name: str, pick: Callable[[Iterable[float]], float] = max) -> float:
        return pick(a[name] for a in final)

    return [
        Claim("loss_ratio", "replication", 1.0, worst("loss_ratio"), "<=", most),
        Claim("sensitivity_cosine", "replication", 1.0, worst("sensitivity_cosine", min), ">=", least),
        Claim("off_construction", "replication", 0.0, max(found["off_construction"]), "<=", 0.02),
        Claim("success_rate", "replication", 1.0, successes / n, ">=", 0.95),
        Claim("success_rate_lower_95", "hypothesis", wilson_interval(n, n)[0], wilson_interval(successes, n)[0], ">=", 0.8),
        _at_most("prediction_difference", PUBLISHED_PREDICTION_DIFFERENCE, worst("prediction_difference")),
        _at_most("sensitivity_difference", PUBLISHED_SENSITIVITY_DIFFERENCE, worst("sensitivity_difference")),
    ]


def trained_variant(sizes: Preset, decay: str) -> dict[str, Any]:
    """Train all seeds of one decay structure: final alignments, off-construction entries, record; what needs no training."""
    variant = _Variant(sizes, decay, sizes.variants[decay])
    return {
        "untrained": untrained(sizes),
        "final": [asdict(a) for a in variant.final],
        "off_construction": [m.off_construction for m in variant.matches],
        "record": variant.record(),
    }


class _Variant:
    """One decay structure: its training, its curves and its final comparison."""

    def __init__(self, settings: Preset, decay: str, seeds: tuple[int, ...]) -> None:
        self.settings, self.decay, self.seeds = settings, decay, seeds
        base = settings.training
        self.config = replace(base, model=ModelConfig(decay=decay), seeds=seeds, data_seed=seeds[0])
        self.task = base.task
        self.gd, self.rate, self.closed_form = _reference(self.task)
        self.curve_context = self.task.sample(settings.curve_tasks, seed=EVALUATION_SEED, step=1)
        context = self.task.sample(settings.eval_tasks, seed=EVALUATION_SEED, step=0)
        self.gd_on_curve = sensitivity(self.gd, self.curve_context)
        self.steps: list[int] = []
        self.curves: list[list[Alignment]] = []  # [evaluation][seed]
        self.history: list[list[InContextModel]] = []  # the same: which seed is shown is known only at the end
        points = evaluation_steps(self.config.steps, settings.curve_points)
        ensemble = train(self.config, evaluate=self._evaluate, evaluate_at=points, label=f"one-step, decay {decay}")
        self._evaluate(self.config.steps, ensemble)
        self.models = self.history[-1]
        gd = sensitivity(self.gd, context)
        self.final = [compare(sensitivity(as_predictor(model), context), gd, target_of(context)) for model in self.models]
        self.matches = [parameter_match(_layer(model)) for model in self.models]

    def _model(self, ensemble: Ensemble, i: int) -> InContextModel:
        model = build_model(self.config.model, self.task, 0, getattr(torch, self.config.dtype))
        ensemble.load(model, i)
        return model

    def _evaluate(self, step: int, ensemble: Ensemble) -> None:
        self.steps.append(step)
        models = [self._model(ensemble, i) for i in range(len(self.seeds))]
        self.history.append(models)
        target = target_of(self.curve_context)
        self.curves.append([compare(sensitivity(as_predictor(m), self.curve_context), self.gd_on_curve, target) for m in models])

    def record(self) -> dict[str, Any]:
        """What figures are drawn from: curves [seed][evaluation], rescaled weights, and the views of one seed."""
        task, models = self.task, [_layer(model) for model in self.models]
        d = max(task.d_x, task.d_y)
        curves = {
            name: [[getattr(evaluation[i], key) for evaluation in self.curves] for i in range(len(self.seeds))]
            for name, key in (
                ("loss", "loss"),
                ("sensitivity_cosine", "sensitivity_cosine"),
                ("sensitivity_difference", "sensitivity_difference"),
                ("prediction_difference", "prediction_difference"),
            )
        }
        curve_target = target_of(self.curve_context)
        i = middle_seed([losses[-1] for losses in curves["loss"]])
        return {
            "name": f"{self.decay} decay",
            "seeds": list(self.seeds),
            "steps": self.steps,
            **curves,
            "gd_loss": squared_loss(self.gd_on_curve[0], curve_target),
            "zero_loss": squared_loss(torch.zeros_like(curve_target), curve_target),
            "closed_form_loss": self.closed_form,
            "rate": [m.rate for m in self.matches],
            "trained": {
                "w_q": [m.w_q.tolist() for m in self.matches],
                "d": [m.d.tolist() for m in self.matches],
                "c": [m.c.tolist() for m in self.matches],
                "decay": [layer.decay_matrix[0].tolist() for layer in models],
            },
            "constructed": constructed_weights(d, self.rate / task.n_examples),
            "snapshots": snapshots(self.steps, [_layer(models[i]) for models in self.history], self.seeds[i]),
            "filling": filling(self.models[i], task, self.rate, self.seeds[i]),
        }


def _at_most(name: str, published: float, value: float) -> Claim:
    """Expected no larger than what the published code's trained layer shows."""
    return Claim(name, "hypothesis", published, value, "<=", published)


def _layer(model: InContextModel) -> GDSSM:
    assert isinstance(model.layer, GDSSM)
    return model.layer
