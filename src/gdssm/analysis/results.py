"""What `identify` returns: the nearest learner, those it cannot be told from, and all that were tried. No torch here."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..records import rounded

NAMES = {
    "zero": "zero",
    "mean": "the mean of the targets",
    "nearest_neighbours": "nearest neighbours",
    "gradient_descent": "gradient descent",
    "polynomial": "gradient descent with a rate for each step",
    "momentum": "gradient descent with momentum",
    "preconditioned": "one step of preconditioned gradient descent",
    "least_squares": "least squares",
    "bayes": "Bayes-optimal (ridge at the known noise)",
    "ridge": "ridge regression",
    "newton": "Newton-Schulz iteration",
    "conjugate_gradient": "conjugate gradient",
    "ridge_conjugate_gradient": "conjugate gradient on the ridge problem",
}
"""Families in the order in which ties of equally many free numbers and equal distance are resolved."""

_LONGEST = 5  # numbers of a list that a line shows


@dataclass(frozen=True)
class Match:
    """One explicit learner beside a predictor, on tasks that its numbers were not fitted on.

    family            a key of NAMES
    steps             k: steps, iterations or neighbours; None for a family without
    numbers           what was fitted (for bayes: what is known): lr, momentum, alpha, rates, matrix
    free              how many real numbers were fitted
    distance          relative distance of the predictions, 0 for equal ones and 1 for those of the zero learner
    interval          its 95 % bootstrap interval over tasks
    weights_distance  relative distance of the implicit weights d y / d x_query; None where the predictor has none
    """

    family: str
    steps: int | None
    numbers: Mapping[str, Any]
    free: int
    distance: float
    interval: tuple[float, float]
    weights_distance: float | None

    @property
    def name(self) -> str:
        """The family with its steps, e.g. "gradient descent, 3 steps"."""
        if self.steps is None or self.family == "preconditioned":
            return NAMES[self.family]
        unit = {"nearest_neighbours": "neighbour", "newton": "iteration"}.get(self.family, "step")
        return f"{NAMES[self.family]}, {self.steps} {unit}{'s' * (self.steps != 1)}"

    @property
    def fitted(self) -> str:
        """The fitted numbers in a few words."""
        parts = []
        if "imaginary" in self.numbers:
            return f"{self.steps} rates, some complex"
        for name, value in self.numbers.items():
            if name == "matrix":
                parts.append(f"a {len(value)} x {len(value)} matrix")
            elif isinstance(value, list):
                shown = " ".join(f"{v:.4g}" for v in value[:_LONGEST]) + " .." * (len(value) > _LONGEST)
                parts.append(f"{name} {shown}")
            else:
                parts.append(f"{name} {value:.4g}")
        return ", ".join(parts)

    def as_record(self) -> dict[str, Any]:
        """JSON data with six significant digits."""
        return {
            "family": self.family,
            "steps": self.steps,
            "numbers": {name: rounded(value) for name, value in self.numbers.items()},
            "free": self.free,
            "distance": rounded(self.distance),
            "interval": rounded(list(self.interval)),
            "weights_distance": None if self.weights_distance is None else rounded(self.weights_distance),
        }

    def __str__(self) -> str:
        return f"{self.name}{' with ' * bool(self.fitted)}{self.fitted}"


@dataclass(frozen=True)
class Identification:
    """The learner that a predictor runs in its context, as far as it can be told.

    best       the answer; None where no learner explains the stated share of the predictions
    same       learners whose fitted predictions are the best's: richer families that contain it, other names for it
    ties       learners with other predictions that these tasks do not tell from the best
    table      every learner that was fitted, the nearest first
    share      what `best` had to explain; `explained` is what the nearest does, 1 - distance^2
    tasks      how many the numbers were fitted on, and how many scored
    """

    best: Match | None
    same: tuple[Match, ...]
    ties: tuple[Match, ...]
    table: tuple[Match, ...]
    share: float
    tasks: tuple[int, int]

    @property
    def explained(self) -> float:
        """Share of the predictions' mean square that the best explains, or else the nearest."""
        if self.best is not None and self.best.family == "zero":
            return 1.0
        return 1 - (self.best or self.table[0]).distance ** 2

    @property
    def summary(self) -> str:
        """The answer with its distance in a few words; of none of these, the nearest."""
        match = self.best or self.table[0]
        return f"{'' if self.best else 'none of these; nearest: '}{match} (distance {match.distance:.3g})"

    def relation(self, match: Match) -> str:
        """What a learner of the table is to the answer: "answer", "the same", "tie", or "" for all others."""
        groups = (("answer", () if self.best is None else (self.best,)), ("the same", self.same), ("tie", self.ties))
        own = (match.family, match.steps)  # no two learners of a table share these
        return next((word for word, group in groups if any((one.family, one.steps) == own for one in group)), "")

    def closest(self, family: str) -> Match | None:
        """The nearest learner of a family, whether or not it is near; None where none was fitted."""
        return next((match for match in self.table if match.family == family), None)

    @property
    def by_family(self) -> tuple[Match, ...]:
        """The answer, then the nearest learner of every other family, the nearest first."""
        first: dict[str, Match] = {} if self.best is None else {self.best.family: self.best}
        for match in self.table:
            first.setdefault(match.family, match)
        return tuple(first.values())

    def as_record(self) -> dict[str, Any]:
        """JSON data, finite: all fields."""
        return {
            "best": None if self.best is None else self.best.as_record(),
            "same": [match.as_record() for match in self.same],
            "ties": [match.as_record() for match in self.ties],
            "table": [match.as_record() for match in self.table],
            "explained": rounded(self.explained),
            "share": self.share,
            "tasks": {"fitted": self.tasks[0], "scored": self.tasks[1]},
        }

    def __str__(self) -> str:
        if self.best is None:
            nearest = self.table[0]
            return (
                f"None of the learners tried: the nearest, {nearest}, explains {100 * self.explained:.3g} % of the predictions on "
                f"{self.tasks[1]} tasks, less than the {100 * self.share:.3g} % asked for."
            )
        low, high = self.best.interval
        text = (
            f"{_capital(str(self.best))}: relative distance of predictions {self.best.distance:.3g} "
            f"(95 % interval {low:.3g} to {high:.3g}) on {self.tasks[1]} tasks that the numbers were not fitted on"
        )
        if self.best.weights_distance is not None:
            text += f", of implicit weights {self.best.weights_distance:.3g}"
        text += "."
        if self.same:
            text += f" The same predictions come from {listed(self.same)}."
        if self.ties:
            return text + f" These tasks do not tell it from {listed(self.ties)}."
        other = self.rival
        return text if other is None else text + f" The nearest other learner is {other.name}, at {other.distance:.3g}."

    @property
    def rival(self) -> Match | None:
        """The nearest learner with other predictions than the best's."""
        known = {id(match) for match in (self.best, *self.same)}
        return next((match for match in self.table if id(match) not in known), None)


@dataclass(frozen=True)
class Spread:
    """Several predictors, such as seeds of one training: the Identification of each, and what they have in common."""

    each: tuple[Identification, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many predictors have which answer, the most frequent first."""
        return dict(Counter(map(_named, self.each)).most_common())

    @property
    def middle(self) -> int:
        """Position of the predictor with the middle distance among those with the most frequent answer."""
        answer = next(iter(self.counts))
        found = [(one.best or one.table[0], i) for i, one in enumerate(self.each) if _named(one) == answer]
        order = sorted((match.distance, i) for match, i in found)
        return order[(len(order) - 1) // 2][1]

    @property
    def best(self) -> Match | None:
        """The most frequent answer, as of the predictor in the middle."""
        return self.each[self.middle].best

    @property
    def ranges(self) -> dict[str, tuple[float, float, float]]:
        """(least, median, greatest) over the predictors with the most frequent answer: distance and fitted single numbers."""
        answer = next(iter(self.counts))
        matches = [one.best for one in self.each if one.best and one.best.name == answer]
        found: dict[str, list[float]] = {"distance": [match.distance for match in matches]} if matches else {}
        for match in matches:
            for name, value in match.numbers.items():
                if not isinstance(value, list):
                    found.setdefault(name, []).append(value)
        return {name: (min(values), median(values), max(values)) for name, values in found.items()}

    def as_record(self) -> dict[str, Any]:
        """JSON data, finite."""
        return {
            "best": None if self.best is None else self.best.as_record(),
            "counts": self.counts,
            "ranges": {name: rounded(list(values)) for name, values in self.ranges.items()},
            "each": [one.as_record() for one in self.each],
        }

    def __str__(self) -> str:
        text = f"{len(self.each)} predictors: " + "; ".join(f"{name} ({count})" for name, count in self.counts.items()) + "."
        ranges = ", ".join(f"{name} {low:.4g} to {high:.4g} (median {mid:.4g})" for name, (low, mid, high) in self.ranges.items())
        return f"{text} With the first answer: {ranges}." if ranges else text


def _named(found: Identification) -> str:
    """The answer in a word or two."""
    return "none of these" if found.best is None else found.best.name


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def listed(matches: tuple[Match, ...]) -> str:
    """Names in words, with the step counts of one family in one place."""
    steps: dict[str, list[int]] = {}
    for match in matches:
        steps.setdefault(match.family, []).extend([] if match.steps is None else [match.steps])
    parts = []
    for family, counts in steps.items():
        alone = family == "preconditioned" or not counts
        parts.append(NAMES[family] if alone else f"{NAMES[family]} (k = {_counts(sorted(counts))})")
    return "; ".join(parts)


def _counts(counts: list[int]) -> str:
    """Sorted numbers, with runs of three and more as "2 to 10"."""
    runs: list[list[int]] = []
    for count in counts:
        if runs and count == runs[-1][-1] + 1:
            runs[-1].append(count)
        else:
            runs.append([count])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
