"""Closed forms: what one step of gradient descent can reach, in expectation over tasks. No torch needed.

Setting: x with i.i.d. zero-mean entries of variance s and fourth moment m4, W with i.i.d. zero-mean entries of
variance w, y = W x + noise of variance v, N examples, d inputs; prediction c (sum_i y_i x_i^T) x_query against the
noise-free target.
"""

from .config import check_count, check_number


def one_step_optimum(
    n: int, d: int, *, x_var: float, x_fourth_moment: float, noise_var: float = 0.0, weight_var: float = 1.0
) -> tuple[float, float]:
    """Best rate and expected loss of one step from W = 0: (lr, loss), per output, loss = 0.5 (y - prediction)^2.

    With S = sum_i x_i x_i^T, E tr S^2 = N (d m4 + d (d-1) s^2) + N (N-1) d s^2, and the expected loss is the parabola

        0.5 [ w d s - 2 c N w d s^2 + c^2 (w s E tr S^2 + v N d s^2) ]

    whose minimum is at c* = lr / N. ValueError for n, d < 1, x_var, weight_var <= 0, or moments that no
    distribution has (x_fourth_moment < x_var^2).
    """
    check_count("n", n)
    check_count("d", d)
    check_number("x_var", x_var, above=0)
    check_number("x_fourth_moment", x_fourth_moment, least=x_var**2)
    check_number("noise_var", noise_var, least=0)
    check_number("weight_var", weight_var, above=0)
    s, w = x_var, weight_var
    trace = n * (d * x_fourth_moment + d * (d - 1) * s**2) + n * (n - 1) * d * s**2
    c = n * w * d * s**2 / (w * s * trace + noise_var * n * d * s**2)
    return n * c, 0.5 * w * d * s * (1 - c * n * s)
