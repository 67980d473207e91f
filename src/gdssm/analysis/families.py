"""The families of explicit learners that `identify` tries, and how the free numbers of each are fitted.

A family is a function Spectrum -> learners, one for each number of steps k, with the numbers that fit best. Definitions
are those of gdssm.learners; docs/identify.md has the equations. A new family is a function here, one line in FAMILIES and
one in results.NAMES.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from torch import Tensor

from . import fitting
from .spectrum import Spectrum

Filter = Callable[[Tensor, Tensor], Tensor]  # numbers (T, p), eigenvalues (n, r) -> (T, n, r)


@dataclass(frozen=True)
class Known:
    """What the families may know: the largest k, and alpha = noise variance / weight variance, None where there is no noise."""

    max_steps: int
    alpha: float | None


@dataclass(frozen=True)
class Learner:
    """A learner with its numbers: predictions (n, M, d_y) and implicit weights (n, d_y, d_x) of tasks.

    implicit_weights is None for a learner that is not linear in the query.
    """

    family: str
    steps: int | None
    numbers: Mapping[str, Any]
    free: int
    predict: Callable[[Spectrum], Tensor]
    implicit_weights: Callable[[Spectrum], Tensor] | None


def fit(spectrum: Spectrum, known: Known) -> list[Learner]:
    """Every learner of every family, fitted to the predictions of these tasks."""
    return [learner for family in FAMILIES for learner in family(spectrum, known)]


def _spectral(
    family: str, steps: int | None, numbers: Mapping[str, Any], free: int, values: Callable[[Spectrum], Tensor]
) -> Learner:
    """A learner that is a function of the eigenvalues."""
    return Learner(family, steps, numbers, free, lambda s: s.predict(values(s)), lambda s: s.implicit_weights(values(s)))


def _constant(family: str, steps: int | None, predict: Callable[[Spectrum], Tensor]) -> Learner:
    """A learner whose prediction does not move with the query, or jumps."""
    return Learner(family, steps, {}, 0, predict, lambda s: s.vectors.new_zeros(len(s.weight), s.a.shape[1], s.vectors.shape[2]))


def zero(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """Always 0."""
    yield _constant("zero", None, lambda s: torch.zeros_like(s.target))


def mean(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """The mean of the targets, whatever the query."""
    yield _constant("mean", None, lambda s: s.context.y.mean(1, keepdim=True).expand_as(s.target))


def nearest_neighbours(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """The mean of the targets of the k < N examples nearest to the query; the k that fits best."""
    most = spectrum.context.x.shape[1] - 1
    if most >= 1:
        errors = [fitting.loss(spectrum, prediction) for prediction in _neighbours(spectrum, range(1, most + 1))]
        best = 1 + int(np.argmin(errors))
        yield _constant("nearest_neighbours", best, lambda s: next(_neighbours(s, [best])))


def _neighbours(spectrum: Spectrum, counts: Sequence[int]) -> Iterator[Tensor]:
    """(n, M, d_y) for each k."""
    context = spectrum.context
    order = torch.cdist(context.x_query, context.x).argsort(dim=2, stable=True)  # (n, M, N)
    total, taken = torch.zeros_like(spectrum.target), 0
    for count in counts:
        while taken < count:
            index = order[:, :, taken, None].expand(-1, -1, context.y.shape[2])
            total, taken = total + context.y.gather(1, index), taken + 1
        yield total / count


def _descent(numbers: Tensor, values: Tensor, steps: int) -> Iterator[Tensor]:
    """f after 1, 2, .. steps with rate c and momentum m, numbers (T, 1 or 2): f <- f + c (1 - lambda f) + m (f - f_before)."""
    rate = numbers[:, 0, None, None]
    kept = 1 - rate * values  # f + c (1 - lambda f) = c + (1 - c lambda) f, in one pass over memory
    now = before = torch.zeros_like(kept)
    if numbers.shape[1] == 1:
        for _ in range(steps):
            now = torch.addcmul(rate, kept, now)
            yield now
        return
    momentum = numbers[:, 1, None, None]
    kept = kept + momentum
    for _ in range(steps):
        now, before = torch.addcmul(rate, kept, now).addcmul_(momentum, before, value=-1), now
        yield now


def _after(steps: int) -> Filter:
    def values_of(numbers: Tensor, values: Tensor) -> Tensor:
        *_, last = _descent(numbers, values, steps)
        return last

    return values_of


def _rate_grid(spectrum: Spectrum, count: int) -> Tensor:
    """Rates from far below to far above 2 / lambda_max, beyond which gradient descent diverges."""
    return torch.logspace(-4, 1, count, dtype=torch.float64) / spectrum.top.median()


def gradient_descent(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """k steps with one rate, k = 1 .. max_steps."""
    grid = _rate_grid(spectrum, 120)[:, None]
    n = spectrum.context.x.shape[1]
    for steps, filters in enumerate(_descent(grid, spectrum.values, known.max_steps), start=1):
        best = fitting.refined(spectrum, grid, spectrum.losses(filters), _after(steps), below=[np.inf])
        yield _spectral("gradient_descent", steps, {"lr": float(best[0]) * n}, 1, partial(_fixed, _after(steps), best))


def momentum(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """k steps with one rate and heavy-ball momentum in (0, 1), k = 2 .. max_steps; the first step has none."""
    betas = torch.tensor([0.02, *np.arange(0.1, 0.95, 0.1), 0.95], dtype=torch.float64)
    grid = torch.cartesian_prod(_rate_grid(spectrum, 40), betas)
    n = spectrum.context.x.shape[1]
    for steps, filters in enumerate(_descent(grid, spectrum.values, known.max_steps), start=1):
        if steps > 1:
            best = fitting.refined(spectrum, grid, spectrum.losses(filters), _after(steps), below=[np.inf, 1.0])
            numbers = {"lr": float(best[0]) * n, "momentum": float(best[1])}
            yield _spectral("momentum", steps, numbers, 2, partial(_fixed, _after(steps), best))


def _fixed(filter_: Filter, numbers: Tensor, spectrum: Spectrum) -> Tensor:
    return filter_(numbers[None], spectrum.values)[0]


def polynomial(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """k steps with a rate each, k = 2 .. max_steps: f is any polynomial of degree k - 1, and fitting it is linear."""
    top = float(spectrum.values.max())
    columns = [spectrum.predict(basis) for basis in _chebyshev(spectrum.values, top, known.max_steps)]
    for steps, coefficients in enumerate(fitting.nested_least_squares(spectrum, columns), start=1):
        if steps > 1:
            yield _spectral("polynomial", steps, _rates(coefficients, top), steps, partial(_series, coefficients, top))


def _chebyshev(values: Tensor, top: float, count: int) -> Iterator[Tensor]:
    """The first Chebyshev polynomials, for values in [0, top]: they are fitted where powers would be lost to rounding."""
    at = 2 * values / top - 1
    now, following = torch.ones_like(at), at
    for _ in range(count):
        yield now
        now, following = following, 2 * at * following - now


def _series(coefficients: Tensor, top: float, spectrum: Spectrum) -> Tensor:
    terms = torch.stack(list(_chebyshev(spectrum.values, top, len(coefficients))))
    return torch.einsum("k,kni->ni", coefficients, terms)


def _rates(coefficients: Tensor, top: float) -> dict[str, Any]:
    """Rates c_j per summed example with 1 - lambda f(lambda) = prod_j (1 - c_j lambda), smallest first.

    Pairs of complex rates, which two steps with momentum make, are given by real and imaginary parts. Without rates where
    the polynomial is of lower degree.
    """
    eigenvalue = Chebyshev([top / 2, top / 2], [0, top])
    roots = np.asarray((1 - eigenvalue * Chebyshev(coefficients.numpy(), [0, top])).roots(), dtype=np.complex128)
    rates = np.sort_complex(1 / roots[roots != 0])
    found: dict[str, Any] = {"rates": rates.real.tolist()}
    if bool((np.abs(rates.imag) > 1e-6 * np.abs(rates)).any()):
        found["imaginary"] = rates.imag.tolist()
    return found if np.isfinite(rates).all() else {}


def preconditioned(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """One step A P x_query with any d_x x d_x matrix P; left out where there are fewer than two predictions per entry."""
    context = spectrum.context
    d_x = context.x.shape[2]
    if spectrum.target.shape[0] * min(spectrum.target.shape[1], d_x) * min(spectrum.target.shape[2], d_x) < 2 * d_x**2:
        return
    a = context.y.mT @ context.x  # (n, d_y, d_x)
    w = spectrum.weight[:, None, None]
    matrix = torch.einsum("nij,nkl->ikjl", w * (a.mT @ a), context.x_query.mT @ context.x_query).reshape(d_x**2, d_x**2)
    along = (w * (a.mT @ spectrum.target.mT @ context.x_query)).sum(0).reshape(-1)
    p = torch.linalg.lstsq(matrix, along[:, None], driver="gelsd").solution.reshape(d_x, d_x)

    def weights(s: Spectrum) -> Tensor:
        return s.context.y.mT @ s.context.x @ p

    numbers = {"matrix": (context.x.shape[1] * p).tolist()}
    yield Learner("preconditioned", 1, numbers, d_x**2, lambda s: s.context.x_query @ weights(s).mT, weights)


def least_squares(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """The least-squares solution, of smallest norm where N < d_x."""
    yield _spectral("least_squares", None, {}, 0, lambda s: s.reliable / s.values.where(s.reliable > 0, 1))


def _ridge(numbers: Tensor, values: Tensor) -> Tensor:
    return 1 / (values + numbers[:, :, None])


def _alpha_grid(spectrum: Spectrum, count: int) -> Tensor:
    return torch.logspace(-8, 3, count, dtype=torch.float64) * spectrum.top.median()


def bayes(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """The posterior mean at the known noise: ridge at alpha = noise variance / weight variance. Nothing is fitted."""
    if known.alpha:
        alpha = torch.tensor([known.alpha], dtype=torch.float64)
        yield _spectral("bayes", None, {"alpha": known.alpha}, 0, partial(_fixed, _ridge, alpha))


def ridge(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """Ridge regression, alpha > 0 fitted."""
    grid = _alpha_grid(spectrum, 150)[:, None]
    best = fitting.refined(spectrum, grid, spectrum.losses(_ridge(grid, spectrum.values)), _ridge, below=[np.inf])
    yield _spectral("ridge", None, {"alpha": float(best[0])}, 1, partial(_fixed, _ridge, best))


def newton(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """k Newton-Schulz iterations from B / |B|_1^2: f = (1 - (1 - lambda^2 / |B|_1^2)^(2^k)) / lambda. Nothing is fitted."""
    for steps in range(1, known.max_steps + 1):
        yield _spectral("newton", steps, {}, 0, partial(_newton, steps))


def _newton(steps: int, spectrum: Spectrum) -> Tensor:
    x = spectrum.context.x
    size = (x.mT @ x).abs().sum(1).amax(1)  # |B|_1, B is symmetric
    shrunk = torch.log1p(-(spectrum.values / size[:, None]).square().clamp(max=1))
    return -torch.expm1(2**steps * shrunk) * spectrum.reliable / spectrum.values.where(spectrum.reliable > 0, 1)


def conjugate_gradient(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """k iterations for B v = x_query, where N >= d_x: otherwise there may be no solution. Nothing is fitted."""
    if spectrum.context.x.shape[1] >= spectrum.context.x.shape[2]:
        for steps in range(1, known.max_steps + 1):
            yield Learner("conjugate_gradient", steps, {}, 0, partial(_last_iterate, steps, 0.0), None)


def ridge_conjugate_gradient(spectrum: Spectrum, known: Known) -> Iterator[Learner]:
    """k iterations for (B + alpha I) v = x_query, alpha > 0 fitted."""
    few = fitting.fewer_queries(spectrum, 4)
    grid = _alpha_grid(few, 23)
    table = [[fitting.loss(few, p) for p in conjugate_gradients(few, float(alpha), known.max_steps)] for alpha in grid]
    for steps, losses in enumerate(np.array(table).T, start=1):
        alpha = fitting.minimum_along(grid, losses, lambda a, k=steps: fitting.loss(few, _last_iterate(k, a, few)))  # type: ignore[misc]
        learner = partial(_last_iterate, steps, alpha)
        yield Learner("ridge_conjugate_gradient", steps, {"alpha": alpha}, 1, learner, None)


def _last_iterate(steps: int, alpha: float, spectrum: Spectrum) -> Tensor:
    *_, last = conjugate_gradients(spectrum, alpha, steps)
    return last


def conjugate_gradients(spectrum: Spectrum, alpha: float, steps: int) -> Iterator[Tensor]:
    """Predictions (n, M, d_y) after 1, 2, .. iterations.

    In the eigenbasis B is diagonal; the part of the query outside the examples' span is one more coordinate with eigenvalue
    0. Differentiable in q and outside.
    """
    values = torch.cat([spectrum.values, torch.zeros_like(spectrum.values[:, :1])], 1)[:, None] + alpha  # (n, 1, r + 1)
    residual = torch.cat([spectrum.q, spectrum.outside[..., None]], 2)  # (n, M, r + 1)
    v, direction = torch.zeros_like(residual), residual
    first = size = residual.square().sum(2, keepdim=True)
    for _ in range(steps):
        going = size > torch.finfo(torch.float64).eps ** 2 * first
        image = values * direction
        step = torch.where(going, size / torch.where(going, (direction * image).sum(2, keepdim=True), 1), 0)
        v, residual = v + step * direction, residual - step * image
        new = residual.square().sum(2, keepdim=True)
        direction = residual + torch.where(going, new / torch.where(going, size, 1), 0) * direction
        size = torch.where(going, new, size)
        yield v[..., :-1] @ spectrum.a.mT


FAMILIES: tuple[Callable[[Spectrum, Known], Iterator[Learner]], ...] = (
    zero,
    mean,
    nearest_neighbours,
    gradient_descent,
    momentum,
    polynomial,
    preconditioned,
    least_squares,
    bayes,
    ridge,
    newton,
    conjugate_gradient,
    ridge_conjugate_gradient,
)
