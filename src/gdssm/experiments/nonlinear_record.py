"""What the nonlinear experiment says: its text, figures and table, all from the measured numbers."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from ..blocks import Block, Dots, Lines, Row, Series, Table, Text

Results = Mapping[str, Mapping[str, Any]]
TITLES = {"layer": "MLP, then the layer", "attention": "MLP, then linear attention"}
REFERENCES = {
    "zero": "zero",
    "linear": "one step on x",
    "rbf": "one step on radial basis functions, lengthscale 1",
    "rbf_best": "the same, best lengthscale",
    "ideal": "one step on sin, cos",
}


def blocks(results: Results, bound: float) -> list[Block]:
    """The record's blocks."""
    return [_answer(results, bound), _curves(results), _seeds(results), _example(results), _table(results)]


def _known(result: Mapping[str, Any], key: str = "loss") -> list[float]:
    return [copy[key] for copy in result["copies"] if copy is not None and copy[key] is not None]


def _answer(results: Results, bound: float) -> Text:
    losses = results["references"]["losses"]
    fixed = "; ".join(f"{title} {losses[name]:.5f}" for name, title in REFERENCES.items())
    paragraphs = [
        f"Losses to compare with, each step at its best rate (best lengthscale {results['references']['lengthscale']:g}): {fixed}."
    ]
    paragraphs += [_trained(name, results[name], losses, bound) for name in TITLES]
    cosines, odd, own, found = (_known(results["layer"], key) for key in ("cosine", "odd", "own_step_loss", "loss"))
    if cosines:
        same = "It is one step of gradient descent on its own features" if min(cosines) >= 0.99 else "It is not quite one step"
        paragraphs.append(
            f"{same}: the weights of the implicit linear model have a cosine of {min(cosines):.4f} (worst seed) to "
            f"{median(cosines):.4f} (median) with that step's, and the step alone, at the rate that is written in the layer's "
            f"weights, has a loss of {median(own):.5f} (median) beside the layer's {median(found):.5f}. Of the part of the answer "
            f"that changes sign with the targets alone, the cosine is {min(odd):.4f} (worst seed) to {median(odd):.4f} (median). A "
            "gradient step from 0 is all of that kind; a trained layer may add what does not depend on the targets' sign, and here "
            "it can pay, since the targets at x are not 0 in the mean over tasks but a multiple of cos x."
        )
    paragraphs.append(
        "With random Fourier features in place of the MLP nothing is learned: 1 to 20 steps in the state are kernel gradient "
        f"descent in function space, to {results['kernel']['difference']:.1e} of the largest prediction."
    )
    return Text("What the numbers answer", tuple(paragraphs))


def _trained(name: str, result: Mapping[str, Any], losses: Mapping[str, float], bound: float) -> str:
    found = _known(result)
    if not found:
        return f"{TITLES[name]}: every seed diverged."
    reached = sum(loss <= bound for loss in found)
    tried = "; ".join(f"{rate:g}: {'diverged' if loss is None else format(loss, '.5f')}" for rate, loss in result["by_rate"])
    if median(found) <= losses["ideal"]:
        place = "below one step on the features sin and cos, at a rate that is the same for both of them"
    elif median(found) <= losses["rbf"]:
        place = "between one step on sin and cos and one on radial basis functions"
    else:
        place = "above one step on radial basis functions"
    return (
        f"{TITLES[name]}: loss {min(found):.5f} to {max(found):.5f}, median {median(found):.5f}, {place}. {reached} of "
        f"{len(result['copies'])} seeds are at most {bound:g}. Worst seed on validation tasks for each peak rate tried: {tried}."
    )


def _curves(results: Results) -> Lines:
    series = []
    for name, title in TITLES.items():
        result = results[name]
        points = [(step, [curve[i] for curve in result["curves"]]) for i, step in enumerate(result["steps"])]
        whole = [(step, values) for step, values in points if None not in values]
        if whole:
            series.append(
                Series(
                    title,
                    tuple(float(step) for step, _ in whole),
                    tuple(median(values) for _, values in whole),
                    tuple(min(values) for _, values in whole),
                    tuple(max(values) for _, values in whole),
                )
            )
    losses = results["references"]["losses"]
    series += [Series(REFERENCES[name], (0.0,), (losses[name],), reference=True) for name in ("zero", "rbf", "ideal")]
    caption = "Validation tasks. Median over seeds; the spread is from the lowest to the highest seed."
    return Lines("Loss along training", "update", "loss", tuple(series), caption, y_log=True)


def _seeds(results: Results) -> Dots:
    rows = tuple(
        Row(title, tuple(None if copy is None else copy["loss"] for copy in results[name]["copies"]))
        for name, title in TITLES.items()
    )
    return Dots(
        "Every seed",
        "loss",
        rows,
        "Every dot is a seed; the mark is the median.",
        x_log=True,
        reference=results["references"]["losses"]["ideal"],
        reference_label=REFERENCES["ideal"],
    )


def _example(results: Results) -> Lines:
    series = []
    for name, title in TITLES.items():
        example = results[name]["example"]
        known = [(x, y) for x, y in zip(example["grid"], example["prediction"], strict=True) if y is not None]
        if known:
            series.append(Series(title, tuple(x for x, _ in known), tuple(y for _, y in known)))
    example = results["layer"]["example"]
    pairs = sorted(zip(example["x"], example["y"], strict=True))
    series.append(Series("the task's examples", tuple(x for x, _ in pairs), tuple(y for _, y in pairs), reference=True))
    caption = (
        "One held-out task: what the first seed answers to queries along x after reading the ten examples, which a line joins."
    )
    return Lines("One task", "x", "y", tuple(series), caption)


def _table(results: Results) -> Table:
    losses = results["references"]["losses"]
    rows: list[tuple[str | int | float | None, ...]] = [
        (title, None, None, losses[name], None, None, None, None) for name, title in REFERENCES.items()
    ]
    for name, title in TITLES.items():
        found, cosines, own = (_known(results[name], key) for key in ("loss", "cosine", "own_step_loss"))
        rows.append(
            (
                title,
                results[name]["parameters"],
                results[name]["rate"],
                median(found) if found else None,
                min(found, default=None),
                max(found, default=None),
                min(cosines, default=None),
                median(own) if own else None,
            )
        )
    heads = ("model", "parameters", "best peak rate", "loss, median", "lowest", "highest", "cosine, lowest", "own step's loss")
    note = (
        "Loss 0.5 (y - prediction)^2 on the same held-out tasks. Cosine and own step: the layer beside one gradient step on its "
        "own features. Attention has no such step in its weights, since its keys, queries and values mix features."
    )
    return Table("All models", heads, tuple(rows), note)
