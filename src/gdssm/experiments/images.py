"""images: can the layer's deep models read images pixel by pixel, beside the same model without memory and attention?

scikit-learn's 1,797 digits of 8 x 8 pixels as 64 tokens, in five folds: every image is tested once by a model that was not
trained on it. Training images are moved by up to a pixel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..blocks import as_records
from ..config import counted
from ..recipe import Recipe
from ..sequences import Digits
from . import Outcome, whole_sequences
from .claims import Claim
from .jobs import Job
from .sequence_contenders import Shape
from .sequence_runs import Comparison, alone, best_rates, choose, equal_parameters, job_name, jobs_of, settings_of, trained

TITLE = "Sequential digits"
QUESTION = "Can images be read pixel by pixel, and what does the recurrence add?"
READ = 0.97


@dataclass(frozen=True)
class Preset(Comparison):
    """Sizes: folds, of which every seed trains all; `tuned` is so many of the folds; shuffle, the seed that deals images out."""

    seeds: tuple[int, ...] = (0,)
    contenders: tuple[str, ...] = ("gdssm", whole_sequences.CONTROL, "attention")
    folds: int = 5
    shift: int = 1
    shuffle: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_sequences.check_control(self.contenders)


# Whole images are read, nothing is recalled: filters start at random, and all heads remember the rows above. A filter reaches the
# pixel above, and every feature has its own: settled on the first fold of shuffle 0, by its test part too. The presets that are
# reported deal the images out anew, yet a fifth of each of their test parts are images of that fold: see docs/deep-models.md.
_SHAPE = Shape(
    width=32,
    n_layers=2,
    n_heads=4,
    max_tokens=64,
    pooled=True,
    both=True,
    window=10,
    taps="channel",
    filters="random",
    decays=(0.9, 0.999),
)
PRESETS = {
    "quick": Preset(shape=_SHAPE, recipe=Recipe(steps=300, batch=32, warmup=30), rates=(1e-2,), points=4),
    "reduced": Preset(
        shape=replace(_SHAPE, width=48),
        recipe=Recipe(steps=1600, batch=32, warmup=100, device="auto"),
        rates=(3e-3, 1e-2),
        tuned=1,
        points=5,
        shuffle=1,
    ),
    "paper": Preset(
        seeds=(0, 1, 2),
        shape=replace(_SHAPE, width=64, n_layers=4),
        recipe=Recipe(steps=2000, batch=64, warmup=100, device="auto"),
        rates=(1e-3, 3e-3, 1e-2),
        shuffle=1,
    ),
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """One training for every fold, contender, rate and seed."""
    found: dict[str, Job] = {}
    for fold in _folded(sizes).tuning:
        found |= jobs_of(replace(sizes, tuned=None), trained, (_task(sizes, fold),), _prefix(fold))
    return found


def further(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> dict[str, Job]:
    """The folds that train at the best rate alone."""
    best = best_rates(_folded(sizes), _by_fold(sizes, results))
    return {
        job_name(_prefix(fold), name, rate, seed): Job(trained, (alone(sizes), _task(sizes, fold), name, rate, seed))
        for fold in range(sizes.folds)
        if fold not in _folded(sizes).tuning
        for name, (rate, _) in best.items()
        for seed in sizes.seeds
    }


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims about the mean over the folds, and the record. A unit of the comparison is a fold, its seeds averaged."""
    merged = _by_fold(sizes, results)
    chosen = choose(_folded(sizes), merged)
    ours, apart = chosen["gdssm"].middle("test_accuracy"), whole_sequences.gain(chosen)
    claims = (
        equal_parameters(chosen),
        Claim("accuracy", "hypothesis", 0.98, -1.0 if ours is None else ours, ">=", READ),
        Claim("accuracy_over_window_only", "hypothesis", 0.05, -1.0 if apart is None else apart[0], ">=", 0.0),
    )
    record = {
        "experiment": "images",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "images": f"1,797 of 8 x 8 pixels, 17 grey levels, training images moved by up to {counted(sizes.shift, 'pixel')}",
            "folds": f"{sizes.folds}, dealt out by seed {sizes.shuffle}",
            "reading": "both directions, mean over tokens",
            **settings_of(_folded(sizes), "fold"),
            "seeds": len(sizes.seeds),
        },
        "blocks": as_records(whole_sequences.blocks(chosen, "fold")),
    }
    return Outcome(claims, record, sizes.seeds)


def _folded(sizes: Preset) -> Comparison:
    """The comparison whose seeds are the folds."""
    folds = tuple(range(sizes.folds))
    return Comparison(folds, sizes.contenders, sizes.rates, sizes.shape, sizes.recipe, sizes.points, sizes.tuned)


def _task(sizes: Preset, fold: int) -> Digits:
    return Digits(fold, sizes.folds, seed=sizes.shuffle, shift=sizes.shift)


def _prefix(fold: int) -> str:
    return f"fold{fold}-"


def _by_fold(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results by contender, rate and fold, of what was trained."""
    return {
        job_name("", name, rate, fold): _mean([results[job_name(_prefix(fold), name, rate, seed)] for seed in sizes.seeds])
        for name in sizes.contenders
        for rate in sizes.rates
        for fold in range(sizes.folds)
        if job_name(_prefix(fold), name, rate, sizes.seeds[0]) in results
    }


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One fold's results with the seeds' numbers averaged; None where one has none."""

    def middle(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    numbers = {key: middle([one[key] for one in results]) for key in ("final", "test_loss", "test_accuracy", "milliseconds")}
    whole = [one["validation"] for one in results if one["diverged"] is None]
    curve = [middle(list(column)) for column in zip(*whole, strict=True)] if len(whole) == len(results) else []
    return (
        results[0]
        | numbers
        | {"validation": curve, "diverged": next((one["diverged"] for one in results if one["diverged"]), None)}
    )
