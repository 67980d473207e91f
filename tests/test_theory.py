"""The closed form of one step against the published table, against tasks drawn from the sampler, and as a minimum."""

import math

import pytest

from gdssm import LinearRegression, learners, theory

UNIFORM = {"x_var": 1 / 12, "x_fourth_moment": 1 / 80}


@pytest.mark.parametrize(
    ("n", "d", "c", "loss"),
    [
        (10, 5, 0.81081, 0.06757),
        (10, 10, 0.60606, 0.20623),
        (20, 10, 0.40268, 0.13702),
        (10, 20, 0.40268, 0.55369),
        (10, 50, 0.20067, 1.73495),
    ],
)
def test_the_table_for_uniform_inputs(n, d, c, loss):
    lr, got = theory.one_step_optimum(n, d, **UNIFORM)
    assert lr / n == pytest.approx(c, abs=6e-6)
    assert got == pytest.approx(loss, abs=6e-6)


def test_without_noise_the_short_form():
    """c* = s / (m4 + (N + d - 2) s^2), loss* = 0.5 d s (1 - c* N s), whatever the scale of W."""
    for n, d, s, m4 in ((1, 1, 2.0, 5.0), (7, 3, 0.5, 0.25), (40, 8, 1.0, 3.0)):
        c = s / (m4 + (n + d - 2) * s**2)
        for weight_var in (1.0, 9.0):
            lr, loss = theory.one_step_optimum(n, d, x_var=s, x_fourth_moment=m4, weight_var=weight_var)
            assert lr == pytest.approx(n * c, rel=1e-12)
            assert loss == pytest.approx(0.5 * weight_var * d * s * (1 - c * n * s), rel=1e-12)


@pytest.mark.parametrize("inputs", ["uniform", "gaussian"])
@pytest.mark.parametrize(
    ("n", "d", "noise", "scale", "size"), [(10, 10, 0.0, 1.0, 1.0), (6, 4, 0.5, 1.0, 2.0), (15, 5, 1.0, 0.6, 3.0)]
)
def test_tasks_agree(n, d, noise, scale, size, inputs):
    """The best rate and its loss on 40,000 tasks: the loss is a parabola in the rate, so both follow from two means."""
    task = LinearRegression(
        d_x=d, d_y=2, n_examples=n, n_queries=4, inputs=inputs, input_range=size, weight_scale=scale, noise_std=noise
    )
    context = task.sample(40_000, seed=1)
    unit = learners.gradient_descent(context.x, context.y, context.x_query, lr=1.0)
    both, square = float((unit * context.y_query).mean()), float(unit.square().mean())
    moments = {"x_var": task.input_variance, "x_fourth_moment": task.input_fourth_moment}
    lr, loss = theory.one_step_optimum(n, d, noise_var=noise**2, weight_var=scale**2, **moments)
    assert both / square == pytest.approx(lr, rel=0.015)
    prediction = learners.gradient_descent(context.x, context.y, context.x_query, lr=lr)
    assert float(0.5 * (prediction - context.y_query).square().mean()) == pytest.approx(loss, rel=0.02)


def test_the_rate_is_the_minimum_of_the_expected_loss():
    """E over signs and permutations by hand for N = d = 1: 0.5 w [s - 2 c s^2 + c^2 (s m4 + v s^2 / w)]."""
    s, m4, v, w = 0.8, 1.9, 0.3, 1.7
    lr, loss = theory.one_step_optimum(1, 1, x_var=s, x_fourth_moment=m4, noise_var=v, weight_var=w)

    def expected(c):
        return 0.5 * (w * s - 2 * c * w * s**2 + c**2 * (w * m4 * s + v * s**2))

    assert expected(lr) == pytest.approx(loss, rel=1e-12)
    for step in (-0.01, 0.01):
        assert expected(lr * (1 + step)) > loss


def test_more_noise_a_smaller_rate():
    rates = [theory.one_step_optimum(10, 10, noise_var=v, **UNIFORM) for v in (0.0, 0.1, 1.0, 1e9)]
    assert [lr for lr, _ in rates] == sorted((lr for lr, _ in rates), reverse=True)
    assert rates[-1][1] == pytest.approx(0.5 * 10 / 12, rel=1e-6)  # predicting 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n must be an integer >= 1, got 0"),
        ({"d": 2.5}, r"d must be an integer >= 1, got 2\.5"),
        ({"x_var": 0.0}, r"x_var must be a finite number > 0, got 0\.0"),
        ({"x_fourth_moment": 0.001}, r"x_fourth_moment must be a finite number >= 0\.0069.*, got 0\.001"),
        ({"noise_var": -1.0}, r"noise_var must be a finite number >= 0, got -1\.0"),
        ({"noise_var": math.nan}, "noise_var must be a finite number >= 0, got nan"),
        ({"weight_var": 0}, "weight_var must be a finite number > 0, got 0"),
    ],
)
def test_impossible_moments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        theory.one_step_optimum(**{"n": 10, "d": 10, **UNIFORM, **changes})
