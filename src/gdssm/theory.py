"""Closed forms: what one step of gradient descent can reach, in expectation over tasks. No torch needed.

Setting: x with i.i.d. zero-mean entries of variance s and fourth moment m4, W with i.i.d. zero-mean entries of
variance w, y = W x + noise of variance v, N examples, d inputs; prediction c (sum_i y_i x_i^T) x_query against the
noise-free target. For k steps, the best polynomial over sampled eigenvalues.
"""

from typing import TYPE_CHECKING

from .config import check_count, check_number

if TYPE_CHECKING:
    import numpy.typing as npt


def one_step_optimum(
    n: int, d: int, *, x_var: float, x_fourth_moment: float, noise_var: float = 0.0, weight_var: float = 1.0
) -> tuple[float, float]:
    """Best rate and expected loss of one step from W = 0: (lr, loss), per output, loss = 0.5 (y - prediction)^2.

    With S = sum_i x_i x_i^T, E tr S^2 = N (d m4 + d (d-1) s^2) + N (N-1) d s^2, and the expected loss is the parabola

        0.5 [ w d s - 2 c N w d s^2 + c^2 (w s E tr S^2 + v N d s^2) ]

    whose minimum is at c* = lr / N. ValueError for n, d < 1, x_var, weight_var <= 0, or moments that no
    distribution has (x_fourth_moment < x_var^2).
    """
    slope, curvature = _parabola(n, d, x_var, x_fourth_moment, noise_var, weight_var)
    c = slope / curvature
    return n * c, 0.5 * (weight_var * d * x_var - c * slope)


def one_step_loss(
    n: int, d: int, lr: float, *, x_var: float, x_fourth_moment: float, noise_var: float = 0.0, weight_var: float = 1.0
) -> float:
    """Expected loss of one step from W = 0 at any rate: the parabola of `one_step_optimum` at c = lr / N.

    For a rate that was the best for other moments, another noise or another n. ValueError as there, and for a rate that is
    not finite.
    """
    check_number("lr", lr)
    slope, curvature = _parabola(n, d, x_var, x_fourth_moment, noise_var, weight_var)
    c = lr / n
    return 0.5 * (weight_var * d * x_var - 2 * c * slope + c * c * curvature)


def _parabola(n: int, d: int, s: float, m4: float, v: float, w: float) -> tuple[float, float]:
    """Slope and curvature of the loss in c: 0.5 [ w d s - 2 c slope + c^2 curvature ]; the public functions' errors."""
    check_count("n", n)
    check_count("d", d)
    check_number("x_var", s, above=0)
    check_number("x_fourth_moment", m4, least=s**2)
    check_number("noise_var", v, least=0)
    check_number("weight_var", w, above=0)
    trace = n * (d * m4 + d * (d - 1) * s**2) + n * (n - 1) * d * s**2
    return n * w * d * s**2, w * s * trace + v * n * d * s**2


def best_polynomial(eigenvalues: "npt.ArrayLike", steps: int) -> tuple[tuple[float, ...], float]:
    """The best rates of k gradient steps, one for each, over a law of tasks known by samples.

        residual r(lambda) = prod_j (1 - c_j lambda)      minimises the mean over tasks of sum_i r(lambda_i)^2

    eigenvalues   (n, d), those of sum_k x_k x_k^T of n sampled contexts
    steps         k >= 1

    Returns the rates c_j per summed example, smallest first, and the minimum; for W with entries of variance w, inputs
    of variance s and no noise, the expected loss per output is 0.5 w s times it. r is linear in its coefficients, so this
    is one least-squares problem; its roots, all positive, are 1 / c_j. Sampling error: that of a mean over n tasks.
    Raises ValueError for other shapes, fewer than one step, or so many steps that the roots are lost to rounding.
    """
    import numpy as np

    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"eigenvalues must be finite and of shape (n, d), got shape {values.shape}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
    most = values.max()
    powers = (values.reshape(-1, 1) / most) ** np.arange(1, steps + 1)
    coefficients = np.linalg.lstsq(powers, -np.ones(values.size), rcond=None)[0]
    minimum = float(np.square(1 + powers @ coefficients).sum() / len(values))
    roots = np.roots([*coefficients[::-1], 1.0]) * most
    if len(roots) < steps or np.abs(roots.imag).max() > 1e-6 * most or roots.real.min() <= 0:
        raise ValueError(f"steps is {steps}, which is too many for the roots of the polynomial to be told apart")
    return tuple(sorted(float(1 / root) for root in roots.real)), minimum
