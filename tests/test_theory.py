"""The closed form of one step against the published table, against drawn tasks, and as a minimum; best polynomials."""

import math

import numpy as np
import pytest
import torch

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


def test_the_loss_at_any_rate_is_what_tasks_show():
    """A rate that is best nowhere near: other inputs, more examples, noise."""
    task = LinearRegression(d_x=4, d_y=2, n_examples=9, n_queries=4, input_range=2.0, weight_scale=0.7, noise_std=0.5)
    context = task.sample(40_000, seed=2)
    moments = {"x_var": task.input_variance, "x_fourth_moment": task.input_fourth_moment}
    for lr in (-0.5, 0.0, 1.0, 6.0):
        prediction = learners.gradient_descent(context.x, context.y, context.x_query, lr=lr)
        found = theory.one_step_loss(9, 4, lr, noise_var=0.25, weight_var=0.49, **moments)
        assert float(0.5 * (prediction - context.y_query).square().mean()) == pytest.approx(found, rel=0.02)


def test_the_loss_at_the_best_rate_is_the_best_loss():
    for noise in (0.0, 0.3):
        lr, loss = theory.one_step_optimum(7, 5, noise_var=noise, weight_var=2.0, **UNIFORM)
        assert theory.one_step_loss(7, 5, lr, noise_var=noise, weight_var=2.0, **UNIFORM) == pytest.approx(loss, rel=1e-12)
    with pytest.raises(ValueError, match="lr must be a finite number, got nan"):
        theory.one_step_loss(7, 5, math.nan, **UNIFORM)


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


def eigenvalues(tasks: int, seed: int, **options: object) -> np.ndarray:
    """Of sum_k x_k x_k^T, from NumPy's own generator."""
    x = np.random.default_rng(seed).uniform(-0.5, 0.5, (tasks, 10, 10))
    return np.linalg.eigvalsh(np.einsum("bki,bkj->bij", x, x))


def test_one_best_rate_is_the_closed_form() -> None:
    (rate,), minimum = theory.best_polynomial(eigenvalues(40_000, 0), 1)
    lr, loss = theory.one_step_optimum(10, 10, x_var=1 / 12, x_fourth_moment=1 / 80)
    assert rate == pytest.approx(lr / 10, rel=0.005)
    assert 0.5 / 12 * minimum == pytest.approx(loss, rel=0.005)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_the_minimum_is_one(steps: int) -> None:
    """Its value is what the rates give, and every small change of a rate gives more."""
    values = eigenvalues(300, 1)
    rates, minimum = theory.best_polynomial(values, steps)
    assert len(rates) == steps

    def mean(c: np.ndarray) -> float:
        return float(np.square(np.prod(1 - c * values[..., None], axis=-1)).sum(1).mean())

    assert mean(np.array(rates)) == pytest.approx(minimum, rel=1e-9)
    for i in range(steps):
        for change in (0.99, 1.01):
            moved = np.array(rates)
            moved[i] *= change
            assert mean(moved) > minimum


def test_the_loss_of_the_best_rates_is_what_the_explicit_learner_scores() -> None:
    values = eigenvalues(40_000, 2)
    context = LinearRegression().sample(20_000, seed=3, dtype=torch.float64)
    for steps in (2, 3):
        rates, minimum = theory.best_polynomial(values, steps)
        predicted = learners.polynomial(context.x, context.y, context.x_query, rates=rates)
        loss = float(0.5 * (predicted - context.y_query).square().mean())
        assert loss == pytest.approx(0.5 / 12 * minimum, rel=0.02)


@pytest.mark.parametrize(
    ("values", "steps", "message"),
    [
        (np.ones(3), 1, r"eigenvalues must be finite and of shape \(n, d\), got shape \(3,\)"),
        (np.full((2, 2), np.nan), 1, "eigenvalues must be finite"),
        (np.ones((2, 2)), 0, "steps must be an integer >= 1, got 0"),
        (np.ones((2, 2)), 2, "steps is 2, which is too many"),
        (eigenvalues(50, 0), 40, "steps is 40, which is too many"),
    ],
)
def test_polynomials_that_cannot_be_found(values: np.ndarray, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        theory.best_polynomial(values, steps)
