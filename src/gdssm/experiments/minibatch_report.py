"""What minibatch says: claims, answer, figures and table, all from the measured numbers.

found[b] is what experiments.minibatch.measured returns, order what experiments.minibatch.order does.
"""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from ..blocks import Dots, Lines, Row, Series, Table, Text, as_records
from ..config import counted
from ..tasks import LinearRegression
from .claims import Claim

Found = Mapping[int, Mapping[str, Any]]


def claims(task: LinearRegression, found: Found, order: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Identities of the constructions; losses against their closed form; what one pair of sums cannot do."""
    worst = max(max(result["gap"]) for result in found.values())
    kept = [
        Claim("construction_gap", "identity", 0.0, worst, "<=", 1e-10),
        Claim("delta_rule_by_its_own_recurrence", "identity", 0.0, order["delta_gap"], "<=", 1e-10),
        Claim("one_pair_in_reverse_order", "identity", 0.0, order["one_pair"], "<=", 1e-10),
    ]
    whole = found.get(task.n_examples)
    if whole is not None:
        kept.append(Claim("one_pair_full_batch", "identity", 0.0, max(whole["plain"]), "<=", 1e-10))
    for b, result in found.items():
        ratio = mean(result["loss"]) / result["expected"]
        kept.append(Claim(f"loss_over_closed_form_b_{b}", "hypothesis", 1.0, ratio, "between", (0.98, 1.02)))
    small = min(found)
    if found[small]["count"] > 1:
        kept.append(Claim(f"one_pair_stays_away_b_{small}", "hypothesis", 0.3, min(found[small]["near"]), ">=", 0.1))
    gains = [mean(result["steps"]) / mean(result["loss"]) for result in found.values() if result["count"] > 1]
    if gains:
        kept.append(Claim("full_batch_steps_over_minibatches", "hypothesis", 1.0, max(gains), "<=", 1.0))
    return tuple(kept)


def blocks(task: LinearRegression, found: Found, order: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answer, losses, distances and the table."""
    return as_records([_answer(task, found, order), _losses(found), _distances(found), _table(task, found, order)])


def _answer(task: LinearRegression, found: Found, order: Mapping[str, Any]) -> Text:
    small, many = min(found), {b: result for b, result in found.items() if result["count"] > 1}
    first = found[small]
    worst = max(max(result["gap"]) for result in found.values())
    paragraphs = [
        f"The construction is the explicit learner to {worst:.0e} for b = {', '.join(map(str, found))}. It needs "
        f"{counted(first['pairs'], 'pair')} of states for b = {small}, one for each minibatch: the state grows with the context.",
        "One pair of sums is all of it only for b = N. It gives the same answer for the examples in reverse order (to "
        f"{order['one_pair']:.0e}), minibatches do not: for b = {small} the answer moves by {order['moved'][str(small)]:.2f} of "
        f"its size. With the best polynomial of {counted(first['count'], 'term')} one pair stays {mean(first['plain']):.3f} away "
        f"from b = {small}, with the best Lambdas too ({first['lambdas'][0]:g} for A, {first['lambdas'][1]:g} for B) "
        f"{mean(first['near']):.3f}, relative to the predictions. Lambda < 1 weighs examples by their age; it makes no product of "
        "them in their order.",
        "The delta rule, b = 1, has a recurrence of its own that keeps one D x D matrix. It multiplies Z by another matrix in "
        f"every step, so it is not diagonal. DeltaNet's layer on windows of three tokens is it to {order['delta_gap']:.0e}.",
    ]
    if many:
        parts = [
            f"{mean(result['steps']):.4f} against {mean(result['loss']):.4f} for b = {b} ({counted(result['count'], 'step')})"
            for b, result in many.items()
        ]
        better = sum(mean(result["steps"]) < mean(result["loss"]) for result in many.values())
        paragraphs.append(
            "For the same number of steps at the readout, the best polynomial of one pair against minibatches, loss over that of "
            f"predicting 0: {', '.join(parts)}. Steps on the whole context are better in {better} of {len(many)} cases, with a "
            "state that does not grow."
        )
    return Text("Answer", tuple(paragraphs))


def _losses(found: Found) -> Lines:
    x = tuple(float(b) for b in found)

    def measured(label: str, key: str) -> Series:
        rows = [sorted(result[key]) for result in found.values()]
        return Series(label, x, tuple(mean(row) for row in rows), tuple(row[0] for row in rows), tuple(row[-1] for row in rows))

    return Lines(
        "Loss against the size of minibatches",
        "examples per minibatch, b",
        "loss / that of predicting 0",
        (
            measured("one pass in minibatches, a pair of states for each", "loss"),
            measured("one pair of states, as many steps on the whole context", "steps"),
            Series("closed form", x, tuple(result["expected"] for result in found.values()), reference=True),
        ),
        "Every b at its best rate. Lines are means, bands the range over seeds.",
    )


def _distances(found: Found) -> Dots:
    rows = [
        Row(f"b = {b}", tuple(result[key]), label)
        for label, key in (("Lambda = 1", "plain"), ("best Lambdas", "near"))
        for b, result in found.items()
    ]
    return Dots(
        "How far one pair of sums stays from minibatches",
        "distance of predictions, relative",
        tuple(rows),
        "The polynomial of as many terms as there are minibatches that comes nearest, fitted on other tasks. A dot for every seed.",
    )


def _table(task: LinearRegression, found: Found, order: Mapping[str, Any]) -> Table:
    size = max(task.d_x, task.d_y) ** 2
    rows = [
        (
            b,
            result["count"],
            2 * size * result["pairs"],
            result["lr"],
            mean(result["loss"]),
            result["expected"],
            max(result["gap"]),
            mean(result["plain"]),
            mean(result["near"]),
            order["moved"][str(b)],
            mean(result["steps"]),
        )
        for b, result in found.items()
    ]
    heads = (
        "b",
        "minibatches",
        "numbers of state",
        "rate",
        "loss",
        "closed form",
        "construction gap",
        "one pair, off",
        "with Lambdas, off",
        "moved by reversal",
        "loss of one pair's steps",
    )
    note = (
        "Losses over that of predicting 0, means over seeds. Gap and distances are relative to the predictions. The last column is "
        "the best polynomial of one pair of states with as many terms as there are minibatches. Where b does not divide N the last "
        "minibatch is averaged over its own, smaller size and wants a smaller rate than the others, so the loss is higher."
    )
    return Table("All minibatch sizes", heads, tuple(rows), note)
