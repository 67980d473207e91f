"""dimensions: does training find the step for inputs of 5 to 50 features and contexts of 5 to 200 examples?

One layer is trained from random weights for every size, vector targets with d_y = d_x = d, and compared with one explicit step
at that size's best rate in closed form, on the same held-out tasks. d = 5 to 50 are the sizes of arXiv 2410.11687.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from .. import learners
from ..analysis import squared_loss, wilson_interval
from ..blocks import Block, Dots, Lines, Row, Series, Table, Text, as_records
from ..settings import ModelConfig, TrainConfig
from ..tasks import LinearRegression
from ..train import build_model
from . import Outcome, Sizes
from .claims import Claim
from .jobs import Job
from .trainings import held_out, measured, optimum, target_of, train_seeds

TITLE = "Sizes of inputs and contexts"
QUESTION = "Does training find one step of gradient descent at every size of the inputs and every length of the context?"
PUBLISHED = (5, 10, 20, 35, 50)  # d, with PUBLISHED_EXAMPLES in a context
PUBLISHED_EXAMPLES = 10
CLAIMED = 50  # the largest N and d about which something is claimed
SUCCESS = 1.01  # largest loss ratio


@dataclass(frozen=True)
class Preset(Sizes):
    """Sizes: (d, N) of every training, its settings, evaluation tasks."""

    sizes: tuple[tuple[int, int], ...] = (*((d, 10) for d in PUBLISHED), (10, 5), (10, 20), (10, 50), (50, 50), (10, 200))
    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1800, batch=64))
    rates: tuple[float, ...] = (0.02,)
    eval_tasks: int = 1_000


PRESETS = {
    "quick": Preset(),
    "paper": Preset(
        seeds=tuple(range(10)),
        sizes=tuple((d, n) for d in PUBLISHED for n in (5, 10, 20, 50, 100, 200)),
        training=TrainConfig(steps=5000, batch=256),
        rates=(0.01, 0.02),
        eval_tasks=10_000,
    ),
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """The training of every size."""
    return {_job(d, n): Job(trained, (replace(sizes, sizes=()), d, n)) for d, n in sizes.sizes}


def _job(d: int, n: int) -> str:
    return f"d-{d}-n-{n}"


def trained(sizes: Preset, d: int, n: int) -> dict[str, Any]:
    """All seeds of one size beside the explicit step: losses, ratios, cosines; the loss in closed form and of predicting 0."""
    task = LinearRegression(d, d, n)
    config = replace(sizes.training, task=task, data_seed=sizes.seeds[0])
    found = train_seeds(
        lambda seed: build_model(ModelConfig(), task, seed), sizes.seeds, sizes.rates, config, label=f"d = {d}, N = {n}"
    )
    rate, computed = optimum(task)
    context = held_out(task, sizes.eval_tasks)
    gd = learners.predictor(learners.gradient_descent, lr=rate)
    target = target_of(context)
    return {
        "rate": found.rate,
        "computed": computed,
        "gd": squared_loss(gd(context), target),
        "zero": squared_loss(torch.zeros_like(target), target),
        "copies": measured(found.predictors, gd, context),
    }


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims about the worst seed, and losses over d and over N."""
    by_size = {(d, n): results[_job(d, n)] for d, n in sizes.sizes}
    published = [found for (d, n), found in by_size.items() if n == PUBLISHED_EXAMPLES and d in PUBLISHED]
    claimed = [found for (d, n), found in by_size.items() if max(d, n) <= CLAIMED]
    reached = sum(_reached(found) for found in claimed)
    copies = sum(len(found["copies"]) for found in claimed)
    over = max((found["gd"] / found["computed"] for found in by_size.values()), key=lambda ratio: abs(ratio - 1))
    claims = [
        Claim("published_sizes_loss_ratio", "replication", 1.0, _worst(published), "<=", SUCCESS),
        Claim(f"up_to_{CLAIMED}_loss_ratio", "hypothesis", 1.0, _worst(claimed), "<=", SUCCESS),
        Claim(f"up_to_{CLAIMED}_success_rate", "hypothesis", 1.0, reached / copies, ">=", 0.95),
        Claim("gd_loss_over_closed_form", "hypothesis", 1.0, over, "between", (0.94, 1.06)),
    ]
    training = sizes.training
    blocks: list[Block] = [
        _answer(sizes, by_size),
        *_figures(sizes, by_size),
        _dots(by_size),
        _table(by_size),
    ]
    record = {
        "experiment": "dimensions",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "inputs": "x uniform on (-1/2, 1/2), W standard normal, no noise, d_y = d_x = d",
            "optimiser": f"Adam, warm-up {training.warmup}, cosine to 0",
            "peak rates tried": ", ".join(f"{rate:g}" for rate in sizes.rates),
            "updates": training.steps,
            "tasks per update": training.batch,
            "evaluation tasks of each size": sizes.eval_tasks,
        },
        "blocks": as_records(blocks),
    }
    return Outcome(tuple(claims), record, sizes.seeds)


def _ratios(found: Mapping[str, Any]) -> list[float | None]:
    """Loss over the step's by seed, None for one that diverged."""
    return [None if copy is None else copy["loss_ratio"] for copy in found["copies"]]


def _reached(found: Mapping[str, Any]) -> int:
    return sum(ratio is not None and ratio <= SUCCESS for ratio in _ratios(found))


def _worst(several: Sequence[Mapping[str, Any]]) -> float:
    return max(float("inf") if ratio is None else ratio for found in several for ratio in _ratios(found))


def _answer(sizes: Preset, by_size: Mapping[tuple[int, int], Mapping[str, Any]]) -> Text:
    inside = {size: found for size, found in by_size.items() if max(size) <= CLAIMED}
    beyond = {size: found for size, found in by_size.items() if size not in inside}
    good = sum(_reached(found) for found in inside.values())
    copies = len(sizes.seeds) * len(inside)
    missed = [f"d = {d}, N = {n} ({_reached(found)} of {len(sizes.seeds)})" for (d, n), found in inside.items() if _short(found)]
    tried = f"at {'the rate' if len(sizes.rates) == 1 else 'the best of the rates'} {', '.join(f'{r:g}' for r in sizes.rates)}"
    paragraphs = [
        f"Up to N = d = {CLAIMED}, {good} of {copies} seeds end within {100 * (SUCCESS - 1):.2g} % of the loss of one step, "
        f"{tried}, {sizes.training.steps} updates of {sizes.training.batch} tasks. "
        + (f"Not all seeds do at {', '.join(missed)}." if missed else "All seeds do at every such size."),
    ]
    if beyond:
        worst = {size: _worst([found]) for size, found in beyond.items()}
        listed = "; ".join(
            f"d = {d}, N = {n}: {'a seed diverged' if worst[d, n] == float('inf') else f'{worst[d, n]:.4f}'}" for d, n in beyond
        )
        paragraphs.append(f"Beyond, where nothing is claimed, the worst seed's loss over the step's is: {listed}.")
    paragraphs.append(
        "The step itself is worse for more inputs and better for more examples: its loss in closed form is d s / 2 times "
        "n0 / (N + n0), n0 = d - 2 + m4 / s^2."
    )
    return Text("What the numbers answer", tuple(paragraphs))


def _short(found: Mapping[str, Any]) -> bool:
    return _reached(found) < len(found["copies"])


def _figures(sizes: Preset, by_size: Mapping[tuple[int, int], Mapping[str, Any]]) -> list[Block]:
    """Losses over d at the published N, and over N at d = 10, where there are several sizes."""
    over_d = {d: found for (d, n), found in sorted(by_size.items()) if n == PUBLISHED_EXAMPLES}
    over_n = {n: found for (d, n), found in sorted(by_size.items()) if d == PUBLISHED_EXAMPLES}
    blocks: list[Block] = []
    for several, label, title in (
        (over_d, "inputs d", f"Loss over the number of inputs, N = {PUBLISHED_EXAMPLES}"),
        (over_n, "examples N", f"Loss over the length of the context, d = {PUBLISHED_EXAMPLES}"),
    ):
        if len(several) < 2:
            continue
        x = tuple(float(size) for size in several)
        known = [[c["loss"] for c in found["copies"] if c is not None] or [found["zero"]] for found in several.values()]
        ends = tuple(min(losses) for losses in known), tuple(max(losses) for losses in known)
        series = (
            Series("trained, median of seeds", x, tuple(median(losses) for losses in known), *ends),
            Series("predicting 0", x, tuple(found["zero"] for found in several.values())),
            Series("one step, computed", x, tuple(found["computed"] for found in several.values()), reference=True),
        )
        caption = f"Band: lowest to highest of {len(sizes.seeds)} seeds. The step has the best rate of each size."
        blocks.append(Lines(title, label, "loss per output", series, caption, x_log=True, y_log=True))
    return blocks


def _dots(by_size: Mapping[tuple[int, int], Mapping[str, Any]]) -> Dots:
    rows = tuple(
        Row(f"d = {d}, N = {n}", tuple(_ratios(found)), f"up to {CLAIMED}" if max(d, n) <= CLAIMED else "beyond")
        for (d, n), found in by_size.items()
    )
    return Dots(
        "Every seed",
        "loss over that of one step of gradient descent",
        rows,
        "Every dot is a seed, the mark is the median.",
        reference=1.0,
        reference_label="one step of gradient descent",
    )


def _table(by_size: Mapping[tuple[int, int], Mapping[str, Any]]) -> Table:
    rows = []
    for (d, n), found in by_size.items():
        known = [copy for copy in found["copies"] if copy is not None]
        ratios, cosines = [c["loss_ratio"] for c in known], [c["sensitivity_cosine"] for c in known]
        low, high = wilson_interval(_reached(found), len(found["copies"]))
        spread = (median(ratios), min(ratios), max(ratios), min(cosines)) if known else (None,) * 4
        reached = f"{_reached(found)} of {len(found['copies'])} ({low:.2f} to {high:.2f})"
        rows.append((d, n, found["computed"], found["gd"], *spread, reached, found["rate"]))
    heads = ("d", "N", "one step, computed", "one step, measured", "ratio, median", "lowest", "highest", "cosine, lowest")
    note = (
        f"Ratio: loss over the step's on the same tasks. Reached: seeds within {SUCCESS:g} of it, with the 95 % interval (Wilson)."
    )
    return Table("Every size", (*heads, "reached", "peak rate"), tuple(rows), note)
