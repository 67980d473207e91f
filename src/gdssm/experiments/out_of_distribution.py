"""out-of-distribution: does the trained layer stay gradient descent on tasks it was not trained for?

Layers trained on one law of tasks (N = d = 10, x uniform, W standard normal, no noise) are compared with the explicit step at
the rate that is best for that law: at other scales of W and x, other laws of x, with noise, with examples of another task, and
with inputs that say nothing (arXiv 2410.11687, section on out-of-distribution tasks). Both may fail; they should fail alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .. import learners
from ..analysis import squared_loss
from ..blocks import Block, Dots, Lines, Row, Series, Table, Text, as_records
from ..settings import ModelConfig, TrainConfig
from ..tasks import Context, LinearRegression
from ..tasks.linear import generator
from ..train import build_model
from ..views import HELD_OUT_SEED
from . import Outcome, Sizes
from .claims import Claim
from .jobs import Job
from .trainings import effective_rate, expected_loss, held_out, optimum, target_of, train_seeds

TITLE = "Other tasks than those of training"
QUESTION = "Does the trained layer stay one step of gradient descent on tasks that it was not trained for?"
LAWS = ("normal", "exponential", "laplace")
SWEEPS = {
    "weight_scale": "standard deviation of W's entries",
    "input_range": "width of the range of x",
    "noise": "standard deviation of the noise on the examples",
    "distractors": "examples of another task, of all in the context",
    "irrelevant": "inputs that say nothing, of all",
}


@dataclass(frozen=True)
class Preset(Sizes):
    """Sizes: training, evaluation tasks, and the values of every sweep."""

    seeds: tuple[int, ...] = tuple(range(8))
    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=3000, batch=256))
    rates: tuple[float, ...] = (0.005, 0.01)
    eval_tasks: int = 5_000
    weight_scale: tuple[float, ...] = tuple(0.5 * i for i in range(1, 11))
    input_range: tuple[float, ...] = tuple(round(0.5 + 0.15 * i, 2) for i in range(11))
    noise: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0)
    distractors: tuple[int, ...] = (0, 1, 2, 3, 5)
    irrelevant: tuple[int, ...] = (0, 2, 5, 8)


PRESETS = {
    "quick": Preset(),
    "paper": Preset(
        seeds=tuple(range(20)),
        training=TrainConfig(steps=6000, batch=512),
        eval_tasks=10_000,
        weight_scale=tuple(round(0.5 + 0.1 * i, 1) for i in range(46)),
        input_range=tuple(round(0.5 + 0.03 * i, 2) for i in range(51)),
    ),
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """One job: all seeds are trained and then read all tasks."""
    return {"all": Job(everything, (sizes,))}


def everything(sizes: Preset) -> dict[str, Any]:
    """Losses of all seeds and of the step on every shifted law, and the seeds' effective rates."""
    task = sizes.training.task
    config = replace(sizes.training, data_seed=sizes.seeds[0])
    trained = train_seeds(
        lambda seed: build_model(ModelConfig(), task, seed), sizes.seeds, sizes.rates, config, label="out-of-distribution"
    )
    rate, _ = optimum(task)
    gd = learners.predictor(learners.gradient_descent, lr=rate)
    shown = []
    with torch.no_grad():
        for sweep, value, context, computed in shifts(sizes, rate):
            target = target_of(context)
            losses = [None if model is None else squared_loss(model(context), target) for model in trained.predictors]
            found = {"gd": squared_loss(gd(context), target), "zero": squared_loss(torch.zeros_like(target), target)}
            shown.append({"sweep": sweep, "value": value, "trained": losses, "computed": computed, **found})
    context = held_out(task, sizes.eval_tasks)
    return {
        "rate": trained.rate,
        "effective": [None if model is None else effective_rate(model, context) / rate for model in trained.predictors],
        "shifts": shown,
    }


def shifts(sizes: Preset, rate: float) -> list[tuple[str, float | str, Context, float | None]]:
    """(sweep, its value, tasks, the step's expected loss on them where there is a closed form) of every shifted law."""
    task, many = sizes.training.task, sizes.eval_tasks
    changed = [("weight_scale", value, replace(task, weight_scale=value)) for value in sizes.weight_scale]
    changed += [("input_range", value, replace(task, input_range=value)) for value in sizes.input_range]
    changed += [("noise", value, replace(task, noise_std=value)) for value in sizes.noise]
    found: list[tuple[str, float | str, Context, float | None]] = [
        (sweep, value, held_out(law, many), expected_loss(law, rate)) for sweep, value, law in changed
    ]
    for count in sizes.distractors:
        found.append(("distractors", count, distracted(task, many, count), distracted_loss(task, rate, count)))
    for count in sizes.irrelevant:
        left = 1 - count / task.d_x  # of the squares of W: the loss is a mean over the entries that are left
        found.append(("irrelevant", count, irrelevant(task, many, count), left * expected_loss(task, rate)))
    found += [("input_law", law, unit_norm(task, many, law), None) for law in LAWS]
    return found


def distracted(task: LinearRegression, tasks: int, count: int) -> Context:
    """Tasks in which the first `count` targets come from a W of their own."""
    context = held_out(task, tasks)
    other = replace(task, n_examples=1).true_weights(tasks, seed=HELD_OUT_SEED, step=10, dtype=context.x.dtype)
    foreign = context.x[:, :count] @ other.mT
    return replace(context, y=torch.cat([foreign, context.y[:, count:]], dim=1))


def distracted_loss(task: LinearRegression, rate: float, count: int) -> float:
    """Expected loss of a step of which `count` examples are foreign: that of N - count examples, and foreign W' as noise.

    0.5 w s d [1 - 2 c (N-m) s + c^2 Q(N-m) + c^2 Q(m)], Q(n) = n (m4 + (n + d - 2) s^2) the mean of tr S^2 / d.
    """
    n, d, s, m4, w = task.n_examples, task.d_x, task.input_variance, task.input_fourth_moment, task.weight_scale**2
    c = rate / n

    def square(examples: int) -> float:
        return examples * (m4 + (examples + d - 2) * s * s)

    return 0.5 * w * s * d * (1 - 2 * c * (n - count) * s + c * c * (square(n - count) + square(count)))


def irrelevant(task: LinearRegression, tasks: int, count: int) -> Context:
    """Tasks in which the last `count` inputs have weight 0: x as ever, y of what is left."""
    context = held_out(task, tasks)
    w = task.true_weights(tasks, seed=HELD_OUT_SEED, step=0, dtype=context.x.dtype)
    w[..., task.d_x - count :] = 0
    return replace(context, y=context.x @ w.mT, y_query=context.x_query @ w.mT)


def unit_norm(task: LinearRegression, tasks: int, law: str) -> Context:
    """Tasks whose inputs have independent entries of a law and are then scaled to norm 1.

    exponential: positive, so all inputs share a direction, of half of their square.
    """
    g = generator(HELD_OUT_SEED, 20 + LAWS.index(law))
    shape = (tasks, task.n_examples + 1, task.d_x)
    if law == "normal":
        x = torch.randn(*shape, generator=g)
    else:
        x = torch.empty(*shape).exponential_(generator=g)
        if law == "laplace":
            x = x * (1 - 2 * torch.randint(2, shape, generator=g))
    x = x / x.norm(dim=-1, keepdim=True)
    y: Tensor = x @ (torch.randn(tasks, task.d_y, task.d_x, generator=g) * task.weight_scale).mT
    return Context(x[:, :-1], y[:, :-1], x[:, -1:], y[:, -1:])


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims about the worst seed and setting of every sweep, and the curves."""
    found = results["all"]
    shown = found["shifts"]
    claims = [
        Claim(f"{sweep}_loss_ratio", "replication", 1.0, _worst(_of(shown, sweep)), "<=", 1.02) for sweep in (*SWEEPS, "input_law")
    ]
    off = max((abs(rate - 1) if rate is not None else float("inf")) for rate in found["effective"])
    claims.append(Claim("effective_eta_error", "replication", 0.0, off, "<=", 0.01))
    claims.append(Claim("gd_loss_over_closed_form", "hypothesis", 1.0, _furthest(shown), "between", (0.95, 1.05)))
    blocks: list[Block] = [_answer(sizes, found), *(_figure(sweep, _of(shown, sweep), found) for sweep in SWEEPS)]
    blocks += [_laws(_of(shown, "input_law")), _table(shown)]
    training, task = sizes.training, sizes.training.task
    record = {
        "experiment": "out-of-distribution",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "trained on": "x uniform on (-1/2, 1/2), W standard normal, no noise",
            "examples N": task.n_examples,
            "input features d_x": task.d_x,
            "target features d_y": task.d_y,
            "optimiser": f"Adam, peak rate {found['rate']:g} (best of {len(sizes.rates)}), warm-up {training.warmup}, cosine to 0",
            "updates": training.steps,
            "tasks per update": training.batch,
            "evaluation tasks of each setting": sizes.eval_tasks,
        },
        "blocks": as_records(blocks),
    }
    return Outcome(tuple(claims), record, sizes.seeds)


def _of(shown: Sequence[Mapping[str, Any]], sweep: str) -> list[Mapping[str, Any]]:
    return [shift for shift in shown if shift["sweep"] == sweep]


def _ratios(shift: Mapping[str, Any]) -> list[float]:
    """Loss over that of the step by seed; infinite for a seed that diverged."""
    return [float("inf") if loss is None else loss / shift["gd"] for loss in shift["trained"]]


def _worst(shown: Sequence[Mapping[str, Any]]) -> float:
    """The ratio furthest from 1 of all seeds and settings, as one above 1: to be better than the step counts too."""
    return max(max(ratio, 1 / ratio) for shift in shown for ratio in _ratios(shift))


def _furthest(shown: Sequence[Mapping[str, Any]]) -> float:
    """The step's measured loss over the computed one, where it is furthest from 1; a loss that is 0 by its making is left out."""
    found = [shift["gd"] / shift["computed"] for shift in shown if shift["computed"]]
    return max(found, key=lambda ratio: abs(ratio - 1))


def _answer(sizes: Preset, found: Mapping[str, Any]) -> Text:
    shown = found["shifts"]
    worst = max((*SWEEPS, "input_law"), key=lambda sweep: _worst(_of(shown, sweep)))
    value = _worst(_of(shown, worst))
    alike = "yes" if value <= 1.02 else "no"
    off = [abs(rate - 1) for rate in found["effective"] if rate is not None]
    task = sizes.training.task
    wide = max(_of(shown, "input_range"), key=lambda shift: shift["value"])
    best = optimum(replace(task, input_range=wide["value"]))[0]
    fails = (
        f"Where the range of x is {wide['value']:g}, one step at this rate has {wide['gd'] / wide['zero']:.3g} times the loss of "
        f"predicting 0: the best rate there is {best:.3g}, not {optimum(task)[0]:.3g}."
    )
    rates = (
        f"The seeds' own rates, the best fit of a step to their predictions, lie within {100 * max(off):.2g} % of the best rate "
        "in closed form."
        if off
        else "No seed has finite weights."
    )
    return Text(
        "What the numbers answer",
        (
            f"Does the trained layer stay the same step everywhere? By a loss within 2 % of the step's in every setting and seed: "
            f"{alike}. Furthest from it, with a ratio of {value:.4f} (or its inverse), is {_name(worst)}. {rates}",
            f"To stay the same step is not to stay good. {fails} A step's prediction is of degree one in the targets, so another "
            "scale of W changes nothing but the scale of the losses. It is of degree two in x and the query together, so another "
            "range of x asks for another rate, which neither the layer nor the fixed step has.",
            "Exponential inputs are all positive, so that they share a direction, along which the examples of a context add up: "
            f"the step's loss is {_loss_over_zero(shown, 'exponential'):.3g} times that of predicting 0, against "
            f"{_loss_over_zero(shown, 'normal'):.3g} for normal inputs. An example of another task is noise to both.",
        ),
    )


def _name(sweep: str) -> str:
    return "the other laws of x" if sweep == "input_law" else f"the sweep of the {SWEEPS[sweep]}"


def _loss_over_zero(shown: Sequence[Mapping[str, Any]], law: str) -> float:
    (shift,) = [shift for shift in shown if shift["value"] == law]
    return float(shift["gd"] / shift["zero"])


def _figure(sweep: str, shown: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Lines:
    """Losses over the values of a sweep: seeds, the step, its closed form."""
    x = tuple(float(shift["value"]) for shift in shown)
    known = [[loss for loss in shift["trained"] if loss is not None] or [shift["zero"]] for shift in shown]
    trained = Series(
        "trained, median of seeds",
        x,
        tuple(median(losses) for losses in known),
        tuple(min(losses) for losses in known),
        tuple(max(losses) for losses in known),
    )
    series = (
        trained,
        Series("predicting 0", x, tuple(shift["zero"] for shift in shown)),
        Series("one step, measured", x, tuple(shift["gd"] for shift in shown)),
        Series("one step, computed", x, tuple(shift["computed"] for shift in shown), reference=True),
    )
    caption = (
        f"Band: lowest to highest of {len(found['effective'])} seeds. The step has the rate that is best for the law of training, "
        "everywhere. All curves are of the same tasks, but for the computed one."
    )
    return Lines(f"Loss over the {SWEEPS[sweep]}", SWEEPS[sweep], "loss per output", series, caption)


def _laws(shown: Sequence[Mapping[str, Any]]) -> Dots:
    rows = tuple(
        Row(shift["value"], tuple(None if loss is None else loss / shift["gd"] for loss in shift["trained"])) for shift in shown
    )
    return Dots(
        "Other laws of the inputs, scaled to norm 1",
        "loss over that of one step of gradient descent",
        rows,
        "Every dot is a seed, the mark is the median.",
        reference=1.0,
        reference_label="one step of gradient descent",
        scale=(0.97, 1.03),
    )


def _table(shown: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for shift in shown:
        known = [ratio for ratio, loss in zip(_ratios(shift), shift["trained"], strict=True) if loss is not None]
        rows.append(
            (
                SWEEPS.get(shift["sweep"], "law of x, scaled to norm 1"),
                shift["value"],
                shift["zero"],
                shift["computed"],
                shift["gd"],
                median(known) if known else None,
                min(known, default=None),
                max(known, default=None),
            )
        )
    heads = ("what differs", "value", "predicting 0", "one step, computed", "one step, measured")
    note = "Ratio: the trained layer's loss over that of the step on the same tasks."
    return Table("Every setting", (*heads, "ratio, median", "lowest", "highest"), tuple(rows), note)
