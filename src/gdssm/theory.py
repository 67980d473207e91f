"""Closed forms: what one step of gradient descent can reach, in expectation over tasks. No torch needed.

Setting: x with i.i.d. zero-mean entries of variance s and fourth moment m4, W with i.i.d. zero-mean entries of
variance w, y = W x + noise of variance v, N examples, d inputs; prediction c (sum_i y_i x_i^T) x_query against the
noise-free target. For k steps, the best polynomial over sampled eigenvalues. For weights that drift, the same step with
examples weighed by age. For inputs of unequal variances, the best preconditioner.
"""

from typing import TYPE_CHECKING

from .config import check_count, check_number

if TYPE_CHECKING:
    import numpy as np
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


def forgetting_step(
    n: int, d: int, *, correlation: float, forgetting: float, x_var: float, x_fourth_moment: float
) -> tuple[float, float]:
    """One step whose examples weigh forgetting^(N-k), where W drifts: best (lr, loss), per output, without noise.

        W_{k+1} = rho W_k + sqrt(1 - rho^2) N(0, 1),   W_1 ~ N(0, 1),   prediction c sum_k u_k y_k x_k^T x_query,
        u_k = forgetting^(N-k),   y_query = W_{N+1} x_query,   lr = N c
        loss = 0.5 [d s - 2 c d s^2 sum_k u_k rho^(N+1-k) + c^2 s Q]
        Q = sum_k u_k^2 (d m4 + d (d-1) s^2) + sum_{k != l} u_k u_l rho^|k-l| d s^2

    minimised over c. Without noise a variance w of W's entries multiplies the loss and leaves the rate. ValueError as for
    one_step_optimum, and for correlation or forgetting outside [0, 1].
    """
    import numpy as np

    check_count("n", n)
    check_count("d", d)
    check_number("correlation", correlation, least=0, most=1)
    check_number("forgetting", forgetting, least=0, most=1)
    check_number("x_var", x_var, above=0)
    check_number("x_fourth_moment", x_fourth_moment, least=x_var**2)
    s, age = x_var, np.arange(n - 1, -1, -1)
    u = np.power(float(forgetting), age)
    reach = float(u @ np.power(float(correlation), age + 1))
    pairs = float(u @ np.power(float(correlation), np.abs(age[:, None] - age)) @ u)
    own = float(u @ u)
    square = own * (d * x_fourth_moment + d * (d - 1) * s**2) + (pairs - own) * d * s**2
    c = d * s * reach / square
    return n * c, 0.5 * d * s * (1 - c * s * reach)


def best_forgetting(n: int, d: int, *, correlation: float, x_var: float, x_fourth_moment: float) -> tuple[float, float, float]:
    """The forgetting factor in [0, 1] with the least loss of forgetting_step: (forgetting, lr, loss); the same errors.

    By golden-section search: the loss has one minimum over the factor. To about 1e-7, for around it the loss is flat.
    """
    moments = {"correlation": correlation, "x_var": x_var, "x_fourth_moment": x_fourth_moment}

    def loss(forgetting: float) -> float:
        return forgetting_step(n, d, forgetting=forgetting, **moments)[1]

    low, high, share = 0.0, 1.0, (5**0.5 - 1) / 2
    while high - low > 1e-8:
        left, right = high - share * (high - low), low + share * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    best = min((low, high, 1.0), key=loss)
    return best, *forgetting_step(n, d, forgetting=best, **moments)


def preconditioned_step(
    n: int, *, variances: "npt.ArrayLike", fourth_moments: "npt.ArrayLike", noise_var: float = 0.0, weight_var: float = 1.0
) -> tuple[tuple[float, ...], float]:
    """The best diagonal preconditioner of one step, for inputs of unequal variances: its rates and the expected loss.

        prediction W = sum_k y_k x_k^T diag(p),   x with independent zero-mean entries of variances s_i, fourth moments m_i
        loss = 0.5 w sum_i s_i (1 - 2 N s_i p_i + e_i p_i^2)
        e_i = N (m_i + s_i sum_{j != i} s_j) + N (N-1) s_i^2 + N s_i v / w

    per output, at its minimum p_i = N s_i / e_i. No full matrix does better, for the mean of (sum x x^T)^2 is diagonal too.
    ValueError for n < 1, arrays of other shapes than (d,) or of unequal ones, and moments that no distribution has.
    """
    s, e = _step_moments(n, variances, fourth_moments, noise_var, weight_var)
    rates = n * s / e
    return tuple(rates.tolist()), float(0.5 * weight_var * (s * (1 - n * s * rates)).sum())


def scalar_step(
    n: int, *, variances: "npt.ArrayLike", fourth_moments: "npt.ArrayLike", noise_var: float = 0.0, weight_var: float = 1.0
) -> tuple[float, float]:
    """As preconditioned_step with all p_i equal: the best rate per summed example, c = lr / N, and the expected loss."""
    s, e = _step_moments(n, variances, fourth_moments, noise_var, weight_var)
    rate = float(n * (s @ s) / (s @ e))
    return rate, float(0.5 * weight_var * (s.sum() - n * (s @ s) * rate))


def _step_moments(
    n: int, variances: "npt.ArrayLike", fourth_moments: "npt.ArrayLike", noise_var: float, weight_var: float
) -> "tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]":
    """s_i and e_i of preconditioned_step, checked."""
    import numpy as np

    check_count("n", n)
    check_number("noise_var", noise_var, least=0)
    check_number("weight_var", weight_var, above=0)
    s, m = np.asarray(variances, dtype=np.float64), np.asarray(fourth_moments, dtype=np.float64)
    if s.ndim != 1 or s.size == 0 or s.shape != m.shape:
        raise ValueError(f"variances and fourth_moments must be of one shape (d,), got {s.shape} and {m.shape}")
    if not (np.isfinite(s).all() and np.isfinite(m).all() and (s > 0).all() and (m >= s**2 * (1 - 1e-12)).all()):
        raise ValueError("variances must be > 0 and fourth_moments at least their squares, all finite")
    return s, n * (m + s * (s.sum() - s)) + n * (n - 1) * s**2 + n * s * noise_var / weight_var
