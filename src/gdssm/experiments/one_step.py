"""one-step: does a randomly initialised layer become one step of gradient descent? (arXiv 2410.11687, main result)

One layer is trained from random weights on in-context linear regression (N = d = 10, vector targets, fresh tasks), then
compared on the same held-out tasks with explicit one-step GD at the best rate, the exact construction, and the closed
form of the best expected loss. Variants: one decay per head, and the published layer's full decay.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import construct, learners, theory
from ..analysis import Alignment, alignment, compare, parameter_match, sensitivity, squared_loss, wilson_interval
from ..config import check_choice, check_count
from ..ensemble import Ensemble
from ..layers import GDSSM
from ..models import InContextModel
from ..monitor import constructed_weights
from ..records import middle_seed
from ..settings import ModelConfig, TrainConfig, evaluation_steps
from ..tasks import Context, Predictor
from ..tokens import as_predictor
from ..train import build_model, train
from ..views import HELD_OUT_SEED, filling, snapshots
from . import Outcome
from .claims import Claim

TITLE = "One layer, one step of gradient descent"
QUESTION = "Does a randomly initialised layer become one step of gradient descent on the examples of its context?"
EVALUATION_SEED = HELD_OUT_SEED  # no training seed: evaluation tasks are never trained on
SUCCESS = {"head": (1.002, 0.9999), "full": (1.005, 0.999)}  # largest loss ratio, smallest cosine
PUBLISHED_PREDICTION_DIFFERENCE, PUBLISHED_SENSITIVITY_DIFFERENCE = 0.059, 0.066  # measured from the published code


@dataclass(frozen=True)
class Preset:
    """Sizes of a run: seeds per variant, evaluation tasks at the end and along the training, training settings."""

    variants: tuple[tuple[str, int], ...]
    eval_tasks: int = 10_000
    curve_tasks: int = 500
    curve_points: int = 20
    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=3000, batch=256, lr=0.01))

    def __post_init__(self) -> None:
        for decay, seeds in self.variants:
            check_choice("decay", decay, tuple(SUCCESS))
            check_count("seeds", seeds)


PRESETS = {
    "quick": Preset(variants=(("head", 20),)),
    "paper": Preset(variants=(("head", 100), ("full", 20))),
}


def run(preset: str, seeds: int | None = None, first_seed: int = 0) -> Outcome:
    """Train and compare; `seeds` overrides the preset's number for every variant, `first_seed` is the first."""
    settings = PRESETS[preset]
    claims: list[Claim] = []
    variants = []
    for decay, count in settings.variants:
        chosen = tuple(range(first_seed, first_seed + (seeds or count)))
        variant = _Variant(settings, decay, chosen)
        variants.append(variant.record())
        claims += variant.claims("" if len(variants) == 1 else f"{decay}_decay_")
    return Outcome(tuple(claims), _record(settings, variants))


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


class _Variant:
    """One decay structure: its training, its curves and its final comparison."""

    def __init__(self, settings: Preset, decay: str, seeds: tuple[int, ...]) -> None:
        self.settings, self.decay, self.seeds = settings, decay, seeds
        base = settings.training
        self.config = replace(base, model=ModelConfig(decay=decay), seeds=seeds, data_seed=seeds[0])
        self.task = base.task
        self.rate, self.closed_form = theory.one_step_optimum(
            self.task.n_examples, self.task.d_x, x_var=self.task.input_variance, x_fourth_moment=self.task.input_fourth_moment
        )
        self.gd: Predictor = learners.predictor(learners.gradient_descent, lr=self.rate)
        self.curve_context = self.task.sample(settings.curve_tasks, seed=EVALUATION_SEED, step=1)
        self.context = self.task.sample(settings.eval_tasks, seed=EVALUATION_SEED, step=0)
        self.gd_on_curve = sensitivity(self.gd, self.curve_context)
        self.steps: list[int] = []
        self.curves: list[list[Alignment]] = []  # [evaluation][seed]
        self.history: list[list[InContextModel]] = []  # the same: which seed is shown is known only at the end
        points = evaluation_steps(self.config.steps, settings.curve_points)
        ensemble = train(self.config, evaluate=self._evaluate, evaluate_at=points, label=f"one-step, decay {decay}")
        self._evaluate(self.config.steps, ensemble)
        self.models = self.history[-1]
        gd = sensitivity(self.gd, self.context)
        self.final = [compare(sensitivity(as_predictor(model), self.context), gd, self.target) for model in self.models]
        self.matches = [parameter_match(_layer(model)) for model in self.models]

    def _model(self, ensemble: Ensemble, i: int) -> InContextModel:
        model = build_model(self.config.model, self.task, 0, getattr(torch, self.config.dtype))
        ensemble.load(model, i)
        return model

    def _evaluate(self, step: int, ensemble: Ensemble) -> None:
        self.steps.append(step)
        models = [self._model(ensemble, i) for i in range(len(self.seeds))]
        self.history.append(models)
        target = _target(self.curve_context)
        self.curves.append([compare(sensitivity(as_predictor(m), self.curve_context), self.gd_on_curve, target) for m in models])

    @property
    def target(self) -> torch.Tensor:
        """Targets of the evaluation tasks."""
        return _target(self.context)

    def claims(self, prefix: str) -> list[Claim]:
        """What training reached, the worst seed for each number; before the first variant's, what needs no training."""
        most, least = SUCCESS[self.decay]
        successes = sum(a.loss_ratio <= most and a.sensitivity_cosine >= least for a in self.final)
        n = len(self.final)

        def worst(name: str, pick: Callable[[Iterable[float]], float] = max) -> float:
            return pick(getattr(a, name) for a in self.final)

        found = [
            Claim("loss_ratio", "replication", 1.0, worst("loss_ratio"), "<=", most),
            Claim("sensitivity_cosine", "replication", 1.0, worst("sensitivity_cosine", min), ">=", least),
            Claim("off_construction", "replication", 0.0, max(m.off_construction for m in self.matches), "<=", 0.02),
            Claim("success_rate", "replication", 1.0, successes / n, ">=", 0.95),
            Claim("success_rate_lower_95", "hypothesis", wilson_interval(n, n)[0], wilson_interval(successes, n)[0], ">=", 0.8),
            _at_most("prediction_difference", PUBLISHED_PREDICTION_DIFFERENCE, worst("prediction_difference")),
            _at_most("sensitivity_difference", PUBLISHED_SENSITIVITY_DIFFERENCE, worst("sensitivity_difference")),
        ]
        if not prefix:
            found = [*self._untrained_claims(), *found]
        return [replace(c, name=prefix + c.name) for c in found]

    def _untrained_claims(self) -> list[Claim]:
        """The construction equals the explicit learner; the closed form predicts the learner's loss."""
        context = self.task.sample(1_000, seed=EVALUATION_SEED, step=2, dtype=torch.float64)
        built = construct.gradient_descent(
            self.task.d_x, self.task.d_y, lr=self.rate, n_context=self.task.n_examples, dtype=torch.float64
        )
        found = alignment(as_predictor(built), self.gd, context)
        scale = float(self.gd(context).norm(dim=-1).mean())
        ratio = squared_loss(self.gd(self.context), self.target) / self.closed_form
        return [
            Claim("construction_is_gradient_descent", "identity", 0.0, found.prediction_difference / scale, "<=", 1e-12),
            # the loss of one model over 10,000 tasks has a standard deviation of 0.7 %
            Claim("gd_loss_over_closed_form", "hypothesis", 1.0, ratio, "between", (0.979, 1.021)),
        ]

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
        curve_target = _target(self.curve_context)
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


def _target(context: Context) -> torch.Tensor:
    assert context.y_query is not None
    return context.y_query


def _layer(model: InContextModel) -> GDSSM:
    assert isinstance(model.layer, GDSSM)
    return model.layer
