"""solver-race: which solver at the readout needs how many steps, and is each as fast as its theory says?

All solvers read the same two states A = sum y x^T and B = sum x x^T; only the readout differs. The eigenvalues of B are
set: log-spaced from 1 / condition to 1. Nothing is trained. Error: |prediction - W x| / |W x|, root mean square over tasks.
With the residual polynomial p_k of a solver, prediction - W x = -W p_k(B) x, which is computed from the eigenvalues too.

Axes: B tasks, N examples, D features.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import construct, learners
from ..models import InContextModel
from ..tasks import Context
from ..tasks.linear import generator
from ..tokens import interleave
from ..views import HELD_OUT_SEED
from . import Outcome, Sizes, solver_race_report
from .jobs import Job

TITLE = "A race of solvers at the readout"
QUESTION = "How many steps do gradient descent, momentum, Chebyshev, conjugate gradient and Newton need, and what says theory?"
SOLVERS = ("gd", "momentum", "chebyshev", "cg", "newton")
TOLERANCES = (1e-6, 1e-10)
FINE = 50  # steps to a tolerance are found to one part in so many


@dataclass(frozen=True)
class Preset(Sizes):
    """Sizes: conditions of B, features, examples, outputs, tasks per seed, and the most steps that are run."""

    conditions: tuple[float, ...] = (10.0, 1e3, 1e6)
    d: int = 10
    n: int = 20
    tasks: int = 10
    most_steps: int = 20_000
    points: int = 24


PRESETS = {"quick": Preset(), "paper": Preset(seeds=tuple(range(10)), tasks=1000)}


def jobs(sizes: Preset) -> dict[str, Job]:
    """One job for every solver and condition."""
    return {_name(solver, c): Job(race, (sizes, solver, c)) for c in sizes.conditions for solver in SOLVERS}


def _name(solver: str, condition: float) -> str:
    return f"{solver}-{condition:.0f}"


@dataclass(frozen=True)
class Problem:
    """Tasks with B = V diag(values) V^T: context, W (B, D, D), V (B, D, D), values (D,)."""

    context: Context
    w: Tensor
    v: Tensor
    values: Tensor

    @property
    def target(self) -> Tensor:
        """W x, (B, D)."""
        assert self.context.y_query is not None
        return self.context.y_query[:, 0]

    def predicted(self, residual: Tensor) -> Tensor:
        """The prediction (B, D) of a solver whose residual polynomial has these values at the eigenvalues, (D,) or (B, D)."""
        x = torch.einsum("bij,bi->bj", self.v, self.context.x_query[:, 0]) * residual
        return self.target - torch.einsum("bij,bjk,bk->bi", self.w, self.v, x)


def problem(sizes: Preset, condition: float) -> Problem:
    """The tasks of all seeds, in float64."""
    parts = [_drawn(sizes, condition, seed) for seed in sizes.seeds]
    x, w, v, query = (torch.cat(part) for part in zip(*parts, strict=True))
    y, target = x @ w.mT, torch.einsum("bij,bj->bi", w, query)
    return Problem(Context(x, y, query, target[:, None]), w, v, _eigenvalues(sizes.d, condition))


def _eigenvalues(d: int, condition: float) -> Tensor:
    return torch.logspace(-math.log10(condition), 0, d, dtype=torch.float64)


def _drawn(sizes: Preset, condition: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (B, N, D), W (B, D, D), V (B, D, D), queries (B, D) of one seed."""
    g = generator(HELD_OUT_SEED, seed)
    left, right, w = (
        torch.randn(sizes.tasks, rows, sizes.d, generator=g, dtype=torch.float64) for rows in (sizes.n, sizes.d, sizes.d)
    )
    query = torch.randn(sizes.tasks, sizes.d, generator=g, dtype=torch.float64)
    u, v = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    return u * _eigenvalues(sizes.d, condition).sqrt() @ v.mT, w, v, query


def build(solver: str, sizes: Preset, condition: float, steps: int) -> InContextModel:
    """The construction with its best coefficients for eigenvalues of B from 1 / condition to 1."""
    d, n, low = sizes.d, sizes.n, 1 / condition
    if solver in ("gd", "momentum"):
        lr, momentum = _coefficients(solver, condition)
        return construct.gradient_descent(d, d, lr=n * lr, n_context=n, steps=steps, momentum=momentum, dtype=torch.float64)
    if solver == "chebyshev":
        return construct.chebyshev(d, d, n_context=n, steps=steps, lambda_min=low / n, lambda_max=1 / n, dtype=torch.float64)
    if solver == "cg":
        return construct.ridge(d, d, alpha=0.0, steps=steps, n_context=n, dtype=torch.float64)
    return construct.newton(d, d, steps=steps, dtype=torch.float64)


def explicit(solver: str, sizes: Preset, condition: float, steps: int) -> Callable[[Context], Tensor]:
    """The learner that the construction should equal."""
    n, low = sizes.n, 1 / condition
    if solver in ("gd", "momentum"):
        lr, momentum = _coefficients(solver, condition)
        return learners.predictor(learners.gradient_descent, lr=n * lr, steps=steps, momentum=momentum)
    if solver == "chebyshev":
        return learners.predictor(learners.chebyshev, steps=steps, lambda_min=low / n, lambda_max=1 / n)
    if solver == "cg":
        return learners.predictor(learners.conjugate_gradient, alpha=0.0, steps=steps)
    return learners.predictor(learners.newton, steps=steps)


def _coefficients(solver: str, condition: float) -> tuple[float, float]:
    """Best rate per summed example, and momentum, for eigenvalues from 1 / condition to 1 (Polyak, 1964)."""
    low = 1 / condition
    if solver == "gd":
        return 2 / (1 + low), 0.0
    return 4 / (1 + low**0.5) ** 2, contraction("momentum", condition) ** 2


def contraction(solver: str, condition: float) -> float:
    """The factor by which the error falls per step in the long run."""
    root = condition if solver == "gd" else condition**0.5
    return (root - 1) / (root + 1)


def residual(solver: str, sizes: Preset, condition: float, steps: int, tasks: Problem) -> Tensor | None:
    """p_k at the eigenvalues in closed form, (D,) or (B, D); None for conjugate gradient, whose p_k depends on the query."""
    values, low = tasks.values, 1 / condition
    if solver == "gd":
        return (1 - _coefficients(solver, condition)[0] * values) ** steps
    if solver == "momentum":
        return _heavy_ball(values, *_coefficients(solver, condition), steps)
    if solver == "chebyshev":
        # T_k(cos t) = cos kt; outside [-1, 1] T_k(cosh t) = cosh kt, written so that large k do not overflow
        inside = torch.cos(steps * torch.arccos((((1 + low) - 2 * values) / (1 - low)).clamp(-1, 1)))
        t = math.acosh((1 + low) / (1 - low))
        return inside * 2 * math.exp(-steps * t) / (1 + math.exp(-2 * steps * t))
    if solver == "newton":
        gram = tasks.context.x.mT @ tasks.context.x
        scale = gram.abs().sum(1).amax(1) * gram.abs().sum(2).amax(1)
        return (2.0**steps * torch.log1p(-(values**2) / scale[:, None])).exp()
    return None


def _heavy_ball(values: Tensor, rate: float, momentum: float, steps: int) -> Tensor:
    """p_{k+1} = (1 + m - c lambda) p_k - m p_{k-1} from p_0 = 1, p_1 = 1 - c lambda, solved: the roots are sqrt(m) e^{+-it}.

    p_k = m^{k/2} (cos kt + b sin kt / sin t) with b = (1 - c lambda) / sqrt(m) - cos t. At both ends of the spectrum t is
    0 or pi, where sin kt / sin t is k (cos t)^(k - 1).
    """
    root = momentum**0.5
    cosine = ((1 + momentum - rate * values) / (2 * root)).clamp(-1, 1)
    t = torch.arccos(cosine)
    edge = t.sin().abs() < 1e-6
    ratio = torch.where(edge, steps * cosine.sign() ** (steps - 1), (steps * t).sin() / t.sin().where(~edge, torch.ones_like(t)))
    return root**steps * ((steps * t).cos() + ((1 - rate * values) / root - cosine) * ratio)


@torch.no_grad()
def race(sizes: Preset, solver: str, condition: float) -> dict[str, Any]:
    """One solver: its error curve by seed, the closed form's, steps to the tolerance, and its distance to what it should be."""
    run = _Race(sizes, solver, condition)
    steps: list[int] = []
    for k in _grid(sizes, solver):
        steps.append(k)
        if run.all(k) < TOLERANCES[-1] / 100:
            break
    limit = contraction(solver, condition) if solver in ("gd", "momentum", "chebyshev") else None
    return {
        "steps": steps,
        "curve": [run.errors(k) for k in steps],
        "whole": [run.all(k) for k in steps],
        "theory": [run.theory(k) for k in steps],
        "contraction": limit,
        "orders": run.orders(steps) if solver == "newton" else [],
        "to_tolerance": [run.first(steps, tolerance) for tolerance in TOLERANCES],
        "predicted": [run.predicted(tolerance) for tolerance in TOLERANCES],
        "after": [run.all(sizes.d), run.all(2 * sizes.d)],
        "closed_form_gap": None if solver == "cg" else max(run.gap(k) for k in steps),
        "learner_gap": max(run.learner_gap(k) for k in steps if k <= 2 * sizes.d),
    }


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims and record from the races."""
    races = {c: {solver: results[_name(solver, c)] for solver in SOLVERS} for c in sizes.conditions}
    record = {
        "experiment": "solver-race",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "eigenvalues of B": "log-spaced from 1 / condition to 1",
            "conditions of B": ", ".join(f"{c:g}" for c in sizes.conditions),
            "features d": sizes.d,
            "examples N": sizes.n,
            "tasks per seed": sizes.tasks,
            "most steps run": sizes.most_steps,
            "arithmetic": "float64",
            "coefficients": "the best for the known ends of the spectrum",
        },
        "blocks": solver_race_report.blocks(races, sizes.d, TOLERANCES),
    }
    return Outcome(solver_race_report.claims(races), record, sizes.seeds)


def _grid(sizes: Preset, solver: str) -> list[int]:
    """Step counts: every one up to 2 d, then log-spaced; for solvers that end in few steps every one up to 60."""
    if solver in ("cg", "newton"):
        return list(range(1, 61))
    far = [round(sizes.most_steps ** (i / sizes.points)) for i in range(1, sizes.points + 1)]
    return sorted({*range(1, 2 * sizes.d + 1, 2), 2 * sizes.d, *far})


class _Race:
    """One solver on the tasks of one condition; predictions are kept by step count."""

    def __init__(self, sizes: Preset, solver: str, condition: float) -> None:
        self.sizes, self.solver, self.condition = sizes, solver, condition
        self.tasks = problem(sizes, condition)
        context = self.tasks.context
        self.tokens = interleave(context.x, context.y, context.x_query)
        self.found: dict[int, Tensor] = {}

    def prediction(self, steps: int) -> Tensor:
        """(B, D) of the construction."""
        if steps not in self.found:
            model = build(self.solver, self.sizes, self.condition, steps)
            self.found[steps] = model(self.tokens)
        return self.found[steps]

    def all(self, steps: int) -> float:
        """The error over all tasks."""
        return _relative(self.prediction(steps) - self.tasks.target, self.tasks.target)

    def errors(self, steps: int) -> list[float]:
        """The error of every seed's tasks."""
        gap, target = self.prediction(steps) - self.tasks.target, self.tasks.target
        size = self.sizes.tasks
        return [_relative(a, b) for a, b in zip(gap.split(size), target.split(size), strict=True)]

    def theory(self, steps: int) -> float | None:
        """The error that the closed form gives."""
        found = residual(self.solver, self.sizes, self.condition, steps, self.tasks)
        return None if found is None else _relative(self.tasks.predicted(found) - self.tasks.target, self.tasks.target)

    def gap(self, steps: int) -> float:
        """Distance of the construction's predictions to the closed form's."""
        found = residual(self.solver, self.sizes, self.condition, steps, self.tasks)
        assert found is not None
        return _relative(self.prediction(steps) - self.tasks.predicted(found), self.tasks.target)

    def orders(self, steps: list[int]) -> list[float]:
        """Every task's order of convergence, where one can be read off."""
        gaps = torch.stack([(self.prediction(k) - self.tasks.target).norm(dim=1) for k in steps])  # (K, B)
        errors = (gaps / self.tasks.target.norm(dim=1)).T.tolist()
        rounding = solver_race_report.ROUNDING * self.condition
        return [order for task in errors if (order := solver_race_report.order(task, rounding)) is not None]

    def learner_gap(self, steps: int) -> float:
        """Distance of the construction's predictions to the explicit learner's."""
        wanted = explicit(self.solver, self.sizes, self.condition, steps)(self.tasks.context)[:, 0]
        return _relative(self.prediction(steps) - wanted, self.tasks.target)

    def first(self, grid: list[int], tolerance: float) -> int | None:
        """The fewest steps whose error is at most the tolerance: bisected between the grid's points; None where none is."""
        below = next((k for k in grid if self.all(k) <= tolerance), None)
        if below is None:
            return None
        return _bisected(max([0, *(k for k in grid if k < below)]), below, self.all, tolerance)

    def predicted(self, tolerance: float) -> int | None:
        """The same by the closed form, however many they are."""
        if self.solver == "cg":
            return None

        def error(steps: int) -> float:
            found = self.theory(steps)
            assert found is not None
            return found

        high = 1
        while error(high) > tolerance:
            high *= 2
        return _bisected(high // 2, high, error, tolerance)


def _relative(gap: Tensor, target: Tensor) -> float:
    return float(gap.norm() / target.norm())


def _bisected(above: int, below: int, error: Callable[[int], float], tolerance: float) -> int:
    """The fewest steps with error <= tolerance, in (above, below], to one part in FINE, for errors that fall."""
    while below - above > max(1, above // FINE):
        middle = (above + below) // 2
        above, below = (above, middle) if error(middle) <= tolerance else (middle, below)
    return below
