"""What boundary-values says: claims, answer, figures and table, all from the measured numbers.

results[model][scaling][factor][copy] holds size, largest and over_zero, as experiments.boundary_values measures them.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..blocks import Lines, Series, Table, Text, as_records
from .claims import Claim

NAMES = {
    "constructed": "one step of gradient descent, constructed",
    "gdssm": "GDSSM, trained",
    "gdssm-longer": "GDSSM, trained longer",
    "norm-front": "GDSSM with a norm in front, trained",
    "softmax": "softmax attention, trained",
}
SAID = {"targets": "targets", "query": "the query", "inputs": "inputs, query and targets"}
FLAT = 0.1  # a growth exponent up to which predictions count as bounded
Results = Mapping[str, Mapping[str, Any]]


def values(results: Results, model: str, scaling: str, what: str) -> list[list[float]]:
    """[factor][copy] of one number."""
    return [[copy[what] for copy in copies] for copies in results[model][scaling]]


def growth(factors: Sequence[float], sizes: Sequence[Sequence[float]]) -> list[float]:
    """By which power of the factor each copy's predictions grow over its last tenfold: [copy]."""
    first = min(range(len(factors)), key=lambda i: abs(math.log(factors[i] * 10 / factors[-1])))
    span = math.log(factors[-1] / factors[first])
    return [math.log(last / before) / span for before, last in zip(sizes[first], sizes[-1], strict=True)]


def reach(factors: Sequence[float], sizes: Sequence[Sequence[float]]) -> list[float]:
    """The largest factor up to which each copy's predictions are within 10 % of proportional, from 1 on: [copy]."""
    one, found = _unit(factors), []
    for copy in zip(*sizes, strict=True):
        last = factors[one]
        for factor, size in list(zip(factors, copy, strict=True))[one:]:
            if abs(size / factor / (copy[one] / factors[one]) - 1) > 0.1:
                break
            last = factor
        found.append(last)
    return found


def _worst(factors: Sequence[float], results: Results, model: str, scaling: str, expected: float) -> float:
    """The copy's growth exponent that is farthest from what is expected."""
    found = growth(factors, values(results, model, scaling, "size"))
    return max(found, key=lambda exponent: abs(exponent - expected))


def claims(factors: Sequence[float], results: Results) -> tuple[Claim, ...]:
    """Identities of the homogeneous layers; what is expected of the others, by the worst seed."""
    built = results["constructed"]
    i = min(range(len(factors)), key=lambda i: abs(factors[i] - 10))
    predicted, found = built["predicted_over_zero"][i], built["inputs"][i][0]["over_zero"]
    identities = (
        Claim("degree_1_in_targets", "identity", 0.0, built["degrees"]["y"], "<=", 1e-5),
        Claim("degree_2_in_inputs_and_query", "identity", 0.0, built["degrees"]["x"], "<=", 1e-5),
        Claim("trained_degree_3_in_all_tokens", "identity", 0.0, results["gdssm"]["degrees"]["all"], "<=", 1e-5),
    )
    far = (
        Claim("worse_than_zero_beyond", "hypothesis", math.sqrt(2), built["crossing"], "between", (1.37, 1.46)),
        Claim("loss_over_closed_form_at_10_x", "hypothesis", 1.0, found / predicted, "between", (0.9, 1.1)),
    )
    exponents = [
        Claim(f"{name}_growth_in_targets", "hypothesis", p, _worst(factors, results, model, "targets", p), "between", (low, high))
        for name, model, p, low, high in (
            ("gdssm", "gdssm", 1.0, 0.98, 1.02),
            ("norm_front", "norm-front", 0.0, -FLAT, FLAT),
            ("softmax", "softmax", 0.0, -FLAT, FLAT),
        )
    ]
    inputs = [
        Claim(
            f"{name}_growth_in_inputs", "hypothesis", 0.0, _worst(factors, results, model, "inputs", 0.0), "between", (-FLAT, FLAT)
        )
        for name, model in (("norm_front", "norm-front"), ("softmax", "softmax"))
    ]
    return (*identities, *far, *exponents, *inputs)


def blocks(factors: Sequence[float], results: Results) -> list[dict[str, Any]]:
    """The answer, predictions and losses against the factor, and the table."""
    figures = [_predictions(factors, results, scaling) for scaling in SAID]
    losses = [_losses(factors, results, scaling) for scaling in ("targets", "inputs")]
    return as_records([_answer(factors, results), *figures, *losses, _table(factors, results)])


def _answer(factors: Sequence[float], results: Results) -> Text:
    built = results["constructed"]
    i = min(range(len(factors)), key=lambda i: abs(factors[i] - 10))
    paragraphs = [
        "The constructed step is homogeneous: scaled targets scale its predictions by the same factor to "
        f"{built['degrees']['y']:.0e}, inputs and query together by the square to {built['degrees']['x']:.0e}, for factors from "
        f"{factors[0]:g} to {factors[-1]:g}. Any weights of the layer are homogeneous of degree 3 in all tokens together; the "
        f"trained ones are to {results['gdssm']['degrees']['all']:.0e}.",
        "So there is no largest prediction, and no good one far out in x: the rate that is best in the range of training is too "
        "large beyond it. With the best rate of training, one step is worse than predicting 0 beyond sqrt(2) = 1.414 times the "
        f"range in closed form, beyond {built['crossing']:.3f} times as measured; at {factors[i]:g} times the range its loss is "
        f"{built['inputs'][i][0]['over_zero']:.3g} times that of predicting 0, in closed form "
        f"{built['predicted_over_zero'][i]:.3g}.",
    ]
    for model in ("gdssm", "gdssm-longer", "norm-front", "softmax"):
        parts = []
        for scaling, said in SAID.items():
            found = sorted(growth(factors, values(results, model, scaling, "size")))
            parts.append(f"{_powers(found)} with {said}")
        largest = max(max(copies) for scaling in SAID for copies in values(results, model, scaling, "largest"))
        inside = median(values(results, model, "targets", "over_zero")[_unit(factors)])
        paragraphs.append(
            f"{NAMES[model]}: over the last tenfold, predictions grow with the power {', '.join(parts)} (least and most of the "
            f"seeds). The largest prediction anywhere is {largest:.3g} times the largest target of training. In the range of "
            f"training its loss is {inside:.3f} of that of predicting 0, that of the constructed step "
            f"{built['targets'][_unit(factors)][0]['over_zero']:.3f} (median over seeds)."
        )
    grows = [abs(g - 1) <= 0.02 for g in growth(factors, values(results, "gdssm", "targets", "size"))]
    if all(grows):
        paragraphs.append("Far out in the targets every trained layer stays linear.")
    else:
        reaches = [
            f"{min(found):g} to {max(found):g} with {said} scaled ({NAMES[model]})"
            for scaling, said in (("targets", "targets"), ("query", "the query"))
            for model in ("gdssm", "gdssm-longer")
            if (found := reach(factors, values(results, model, scaling, "size")))
        ]
        paragraphs.append(
            f"Far out in the targets {sum(grows)} of {len(grows)} trained layers stay linear. Training leaves small entries where "
            "the construction has zeros; they multiply a target or the query with itself, grow with the square or cube of the "
            "factor, and take over in the end. Predictions are within 10 % of linear up to a factor of "
            f"{', '.join(reaches)} (least and most of the seeds). {_longer(factors, results)}"
        )
    return Text("Answer", tuple(paragraphs))


def _longer(factors: Sequence[float], results: Results) -> str:
    short, long = (min(reach(factors, values(results, model, "targets", "size"))) for model in ("gdssm", "gdssm-longer"))
    return "Longer training moves the bound out." if long > short else "Longer training did not move the bound out."


def _powers(found: Sequence[float]) -> str:
    return f"{round(found[0], 2) + 0.0:.2f} to {round(found[-1], 2) + 0.0:.2f}"  # + 0.0: no minus at zero


def _unit(factors: Sequence[float]) -> int:
    return min(range(len(factors)), key=lambda i: abs(factors[i] - 1))


def _series(factors: Sequence[float], results: Results, scaling: str, what: str) -> list[Series]:
    found = []
    for model, name in NAMES.items():
        rows = [sorted(copies) for copies in values(results, model, scaling, what)]
        middle, low, high = (tuple(pick(row) for row in rows) for pick in (median, min, max))
        found.append(Series(name, tuple(factors), middle, low, high))
    return found


def _predictions(factors: Sequence[float], results: Results, scaling: str) -> Lines:
    right = Series("right answers", tuple(factors), tuple(factors), reference=True)
    return Lines(
        f"Predictions with {SAID[scaling]} scaled",
        f"factor on {SAID[scaling]}",
        "size of predictions / of targets in training",
        (*_series(factors, results, scaling, "size"), right),
        "Root mean square over tasks; lines are medians, bands the range over seeds.",
        x_log=True,
        y_log=True,
    )


def _losses(factors: Sequence[float], results: Results, scaling: str) -> Lines:
    return Lines(
        f"Loss with {SAID[scaling]} scaled",
        f"factor on {SAID[scaling]}",
        "loss / that of predicting 0",
        (
            *_series(factors, results, scaling, "over_zero"),
            Series("predicting 0", (factors[0],), (1.0,), reference=True),
        ),
        "Lines are medians, bands the range over seeds.",
        x_log=True,
        y_log=True,
    )


def _table(factors: Sequence[float], results: Results) -> Table:
    rows = []
    last = len(factors) - 1
    for model, name in NAMES.items():
        for scaling in SAID:
            exponents = growth(factors, values(results, model, scaling, "size"))
            rows.append(
                (
                    name,
                    SAID[scaling],
                    median(exponents),
                    min(exponents),
                    max(exponents),
                    median(values(results, model, scaling, "largest")[last]),
                    median(values(results, model, scaling, "over_zero")[last]),
                )
            )
    note = (
        "Growth: the power of the factor with which predictions grow over the last tenfold. The last two columns are at "
        f"{factors[-1]:g} times the range of training: the largest prediction over the largest target of training, and the loss "
        "over that of predicting 0, medians over seeds."
    )
    heads = ("model", "scaled", "growth", "least", "most", "largest prediction", "loss / predicting 0")
    return Table("Far out", heads, tuple(rows), note)
