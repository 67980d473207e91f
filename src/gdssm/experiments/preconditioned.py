"""The tasks and the explicit learners of the preconditioning experiment, and the closed forms that predict their losses."""

from typing import Any

import torch
from torch import Tensor

from .. import learners, theory
from ..analysis import squared_loss
from ..tasks import Context, LinearRegression, ShiftedRegression
from .trainings import target_of

STATED = {"scalar": 0.1619, "preconditioned": 0.0829}  # computed before, for what SCALINGS calls "gaussian, mean variance 1/12"
SCALINGS = {
    "gaussian, mean variance 1/12": ("gaussian", True),
    "uniform, mean variance 1/12": ("uniform", True),
    "gaussian, first variance 1/12": ("gaussian", False),
    "uniform, first variance 1/12": ("uniform", False),
}


def falling(d: int, n: int, *, inputs: str = "gaussian", normalised: bool = True, noise_std: float = 0.0) -> LinearRegression:
    """Inputs whose variances fall as 1/k; `normalised` to a mean of 1/12 (r = 1), otherwise 1/12 is the first one."""
    shares = [1 / k for k in range(1, d + 1)]
    scale = d / sum(shares) if normalised else 1.0
    return LinearRegression(d, d, n, inputs=inputs, noise_std=noise_std, spectrum=tuple(scale * share for share in shares))


def predicted(task: LinearRegression) -> dict[str, Any]:
    """Closed forms for a task with a spectrum: rate and loss of one step with one rate, rates and loss with one for each input."""
    spectrum = torch.tensor(task.spectrum or (1.0,) * task.d_x, dtype=torch.float64)
    moments: dict[str, Any] = {
        "variances": (task.input_variance * spectrum).tolist(),
        "fourth_moments": (task.input_fourth_moment * spectrum**2).tolist(),
        "noise_var": task.noise_std**2,
        "weight_var": task.weight_scale**2,
    }
    rate, scalar = theory.scalar_step(task.n_examples, **moments)
    rates, preconditioned = theory.preconditioned_step(task.n_examples, **moments)
    return {"rate": rate, "scalar": scalar, "rates": list(rates), "preconditioned": preconditioned}


def stated_losses() -> dict[str, dict[str, float]]:
    """Losses of one step with and without a preconditioner at d = 10, N = 40, for each way to scale the spectrum 1/k."""
    return {
        name: {key: predicted(falling(10, 40, inputs=inputs, normalised=normalised))[key] for key in STATED}
        for name, (inputs, normalised) in SCALINGS.items()
    }


def over_step_from_mean(task: ShiftedRegression, model: str) -> float:
    """Expected loss of the best layer of a model with a prior mean, over that of one step from W0, without noise.

    With B = sum x x^T, T = E tr B^2, and for C and F that share the singular vectors of W0, output i has a prior mean of mean
    square m_i = sigma_i(W0)^2 / d, and C and F have the entries c and f there:

        loss_i = 0.5 s E tr[ m_i ((1 - f) I - c B)^2 + (I - c B)^2 ]

    f = 0 without feedthrough: c is that of one step, and loss_i is (1 + m_i) times one step's. With it 1 - f = c N s, and
    c = d N s / (T + m_i (T - d N^2 s^2)), loss_i = 0.5 s d (1 - c N s). With the second head every loss_i is one step's.
    """
    n, d, s = task.n_examples, task.d_x, task.input_variance
    rate, loss = theory.one_step_optimum(n, d, x_var=s, x_fourth_moment=task.input_fourth_moment)
    if model == "two-heads-feedthrough":
        return 1.0
    means = torch.linalg.svdvals(task.mean(torch.float64)) ** 2 / d  # of the outputs after a rotation, m_i
    means = torch.cat([means, means.new_zeros(task.d_y - len(means))])
    if model == "plain":
        return float((1 + means).mean())
    trace = d * n * s / (rate / n)  # E tr B^2, from c* = d N s / T
    c = d * n * s / (trace + means * (trace - d * n**2 * s**2))
    return float((0.5 * s * d * (1 - c * n * s)).mean()) / loss


def explicit(task: LinearRegression, context: Context) -> dict[str, float]:
    """Losses of explicit learners on the tasks of a context, computed in float64."""
    x, y, query, target = (one.double() for one in (context.x, context.y, context.x_query, target_of(context)))
    expected = predicted(task)
    w0 = task.mean(torch.float64) if isinstance(task, ShiftedRegression) else torch.zeros(task.d_y, task.d_x, dtype=torch.float64)
    rest, base = y - x @ w0.T, query @ w0.T

    def step(targets: Tensor, rates: Tensor) -> Tensor:
        return torch.einsum("bnj,bni,bmi->bmj", targets, x, query * rates)

    scalar = torch.full((task.d_x,), expected["rate"], dtype=torch.float64)
    own = torch.tensor(expected["rates"], dtype=torch.float64)
    noise = task.noise_std**2
    return {
        "zero": squared_loss(torch.zeros_like(target), target),
        "scalar": squared_loss(step(y, scalar), target),
        "preconditioned": squared_loss(step(y, own), target),
        "from_mean": squared_loss(base + step(rest, scalar), target),
        "least_squares": squared_loss(learners.least_squares(x, y, query), target),
        "bayes": squared_loss(base + learners.bayes(x, rest, query, noise_var=noise, weight_var=task.weight_scale**2), target),
    }
