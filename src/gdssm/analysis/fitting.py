"""Fitting a learner's few numbers: a grid, then Gauss-Newton from the best of its local minima; linear problems directly.

Axes as in spectrum.py; p numbers, T grid points.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..tasks import Context
from .spectrum import Spectrum

STARTS = 2
_STEP = 1e-5  # of the central differences, in the logarithms of the numbers


def loss(spectrum: Spectrum, prediction: Tensor) -> float:
    """Weighted squared error of predictions (n, M, d_y) over that of predicting 0."""
    return float((spectrum.weight * (prediction - spectrum.target).square().sum((1, 2))).sum() / spectrum.total)


def fewer_queries(spectrum: Spectrum, most: int) -> Spectrum:
    """The same tasks with the first queries alone."""
    context = spectrum.context
    return dataclasses.replace(
        spectrum,
        context=Context(context.x, context.y, context.x_query[:, :most]),
        target=spectrum.target[:, :most],
        q=spectrum.q[:, :most],
    )


def refined(
    spectrum: Spectrum,
    grid: Tensor,
    losses: Tensor,
    filter_: Callable[[Tensor, Tensor], Tensor],
    *,
    below: Sequence[float],
) -> Tensor:
    """The numbers (p,) with the least loss: Gauss-Newton, in logarithms, from the best grid points (T, p) that lie apart.

    below   upper limits of the numbers; the lower ones are 0
    """
    starts: list[Tensor] = []
    for i in losses.nan_to_num(nan=torch.inf).argsort().tolist():
        if all(float((grid[i] / start).log().abs().max()) > 0.7 for start in starts):
            starts.append(grid[i])
        if len(starts) == STARTS:
            break
    limit = torch.tensor([np.log(b) for b in below], dtype=torch.float64) - 1e-9
    ends = [_gauss_newton(spectrum, start.log(), limit, filter_) for start in starts]
    return min(ends, key=lambda end: end[1])[0].exp()


def _gauss_newton(
    spectrum: Spectrum, at: Tensor, limit: Tensor, filter_: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, float]:
    """Levenberg-Marquardt on the logarithms of the numbers: where it ends, and the loss there."""
    p, damping = len(at), 1e-3
    offsets = _STEP * torch.eye(p, dtype=torch.float64)
    now = float(spectrum.losses(filter_(at.exp()[None], spectrum.values))[0])
    for _ in range(40):
        filters = filter_(torch.cat([at[None], at + offsets, at - offsets]).exp(), spectrum.values)
        tangents = (filters[1 : p + 1] - filters[p + 1 :]) / (2 * _STEP)
        matrix, slope = spectrum.normal_equations(filters[0], tangents)
        scale = matrix.diagonal().clamp(min=1e-300)
        for _ in range(8):
            move = torch.linalg.solve(matrix + damping * torch.diag(scale), slope).clamp(-1, 1)
            there = torch.minimum(at + move, limit)
            after = float(spectrum.losses(filter_(there.exp()[None], spectrum.values))[0])
            if after < now:
                break
            damping = 10 * damping
        else:
            return at, now
        gain, at, now, damping = now - after, there, after, damping / 10
        if gain < 1e-7 * now or now < 1e-14:  # below that, the loss is rounding
            break
    return at, now


def minimum_along(grid: Tensor, losses: npt.NDArray[np.float64], at: Callable[[float], float]) -> float:
    """The positive number with the least loss: in its logarithm, golden section around the best grid point, then parabolas."""
    i = int(np.argmin(losses))
    low, high = (float(grid[j].log()) for j in (max(i - 1, 0), min(i + 1, len(grid) - 1)))
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    f_left, f_right = at(math.exp(left)), at(math.exp(right))
    while high - low > 0.04:
        if f_left <= f_right:
            high, right, f_right = right, left, f_left
            left = high - golden * (high - low)
            f_left = at(math.exp(left))
        else:
            low, left, f_left = left, right, f_right
            right = low + golden * (high - low)
            f_right = at(math.exp(right))
    middle = (low + high) / 2
    for h in (2e-2, 1e-3, 1e-4):
        below, here, above = (at(math.exp(middle + move)) for move in (-h, 0, h))
        bend = below - 2 * here + above
        if bend > 0:
            middle += max(-2 * h, min(2 * h, h / 2 * (below - above) / bend))
    return math.exp(middle)


def nested_least_squares(spectrum: Spectrum, columns: Sequence[Tensor]) -> Iterator[Tensor]:
    """Coefficients (k,) of the first k predictions (n, M, d_y), k = 1, 2, ..: one orthogonal decomposition for all."""
    w = spectrum.weight.sqrt()[:, None, None]
    matrix = torch.stack([(w * column).flatten() for column in columns], 1)
    wanted = (w * spectrum.target).flatten()
    orthogonal, upper = torch.linalg.qr(matrix)
    along = orthogonal.mT @ wanted
    for k in range(1, min(matrix.shape) + 1):
        yield torch.linalg.lstsq(upper[:k, :k], along[:k, None], driver="gelsd").solution[:, 0]
