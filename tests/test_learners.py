"""The explicit learners against scikit-learn, torch's optimiser, autograd and closed forms in NumPy."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge

from gdssm import Context, learners
from plain import ratio

DOUBLE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def problem(d_x=4, d_y=3, n=9, batch=3, queries=5, seed=0):
    return normal(batch, n, d_x, seed=seed), normal(batch, n, d_y, seed=seed + 1), normal(batch, queries, d_x, seed=seed + 2)


def each(function, x, y, queries):
    """function(x_b, y_b, q_b) in NumPy for every task."""
    return np.stack([function(*(t[b].numpy() for t in (x, y, queries))) for b in range(len(x))])


def test_least_squares_is_scikit_learns():
    x, y, q = problem()
    wanted = each(lambda x, y, q: LinearRegression(fit_intercept=False).fit(x, y).predict(q), x, y, q)
    assert ratio(learners.least_squares(x, y, q), wanted) <= 1e-12


def test_least_squares_of_few_examples_has_the_smallest_norm():
    """y = W x exactly, and W is in the span of the examples: W = (y^T K^{-1}) x with K = x x^T."""
    x, y, q = problem(d_x=6, n=3)
    wanted = each(lambda x, y, q: q @ x.T @ np.linalg.solve(x @ x.T, y), x, y, q)
    assert ratio(learners.least_squares(x, y, q), wanted) <= 1e-12
    assert ratio(learners.least_squares(x, y, x), y) <= 1e-12


@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0, 30.0])
def test_ridge_is_scikit_learns(alpha):
    x, y, q = problem()
    wanted = each(lambda x, y, q: Ridge(alpha, fit_intercept=False, solver="svd").fit(x, y).predict(q), x, y, q)
    assert ratio(learners.ridge(x, y, q, alpha=alpha), wanted) <= 1e-12


@pytest.mark.parametrize(("noise_var", "weight_var"), [(0.5, 1.0), (0.01, 2.5), (4.0, 0.1)])
@pytest.mark.parametrize("n", [3, 9])
def test_bayes_is_the_gaussian_posterior(n, noise_var, weight_var):
    """In function space: y and W q are jointly Gaussian, so the mean is k (K + v I)^{-1} y, K = w x x^T, k = w q x^T."""
    x, y, q = problem(n=n)

    def posterior(x, y, q):
        return weight_var * q @ x.T @ np.linalg.solve(weight_var * x @ x.T + noise_var * np.eye(n), y)

    got = learners.bayes(x, y, q, noise_var=noise_var, weight_var=weight_var)
    assert ratio(got, each(posterior, x, y, q)) <= 1e-12


def test_bayes_without_noise_is_least_squares():
    """The limit of little noise, which is the solution of smallest norm."""
    x, y, q = problem(d_x=6, n=3)
    assert ratio(learners.bayes(x, y, q, noise_var=1e-6), learners.bayes(x, y, q, noise_var=0.0)) <= 1e-5
    assert torch.equal(learners.bayes(x, y, q, noise_var=0.0), learners.least_squares(x, y, q))


def test_bayes_is_the_best_linear_predictor():
    """On tasks from its prior its mean squared error is the smallest, and the posterior variance it should be."""
    w, x, q = normal(4000, 2, 3), normal(4000, 5, 3, seed=1), normal(4000, 1, 3, seed=2)
    y = x @ w.mT + 0.7 * normal(4000, 5, 2, seed=3)
    goal = q @ w.mT

    def error(prediction):
        return float((prediction - goal).square().mean())

    best = error(learners.bayes(x, y, q, noise_var=0.49))
    covariance = torch.linalg.inv(x.mT @ x / 0.49 + torch.eye(3, dtype=DOUBLE))
    assert best == pytest.approx(float((q @ covariance @ q.mT).mean()), rel=0.05)
    for noise_var in (0.1, 2.0):
        assert error(learners.bayes(x, y, q, noise_var=noise_var)) > 1.05 * best


def test_one_step_is_a_sum_over_examples():
    x, y, q = problem()
    wanted = each(lambda x, y, q: np.array([sum(y[i] * (x[i] @ p) for i in range(9)) for p in q]) * 0.7 / 9, x, y, q)
    assert ratio(learners.gradient_descent(x, y, q, lr=0.7), wanted) <= 1e-13


def by_autograd(x, y, q, *, lr, steps, w0, momentum=0.0, nesterov=False, weight_decay=0.0, forgetting=1.0, loss="squared"):
    """torch.optim.SGD on the loss of all tasks. Its Nesterov parameters are the points looked ahead to: the last step is plain."""
    n = x.shape[1]
    w = (torch.zeros(len(x), y.shape[2], x.shape[2], dtype=DOUBLE) if w0 is None else w0.expand(len(x), -1, -1)).clone()
    w.requires_grad_()
    weight = forgetting ** torch.arange(n - 1, -1, -1, dtype=DOUBLE)
    optimiser = torch.optim.SGD([w], lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    for t in range(steps):
        if nesterov and t == steps - 1:
            optimiser = torch.optim.SGD([w], lr=lr, weight_decay=weight_decay)
        optimiser.zero_grad()
        out = x @ w.mT
        if loss == "cross_entropy":
            each_loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), y.flatten(0, 1), reduction="none").view(len(x), n)
        else:
            each_loss = 0.5 * (out - y).square().sum(-1)
        (each_loss * weight).sum().div(n).backward()
        optimiser.step()
    return q @ w.detach().mT


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.8},
        {"momentum": 0.8, "nesterov": True},
        {"weight_decay": 0.3, "forgetting": 0.7},
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.3, "forgetting": 0.7},
    ],
)
def test_gradient_descent_is_torchs_optimiser(options, start, steps):
    x, y, q = problem()
    options = {**options, "lr": 0.2, "steps": steps, "w0": normal(3, 4, seed=7) if start else None}
    assert ratio(learners.gradient_descent(x, y, q, **options), by_autograd(x, y, q, **options)) <= 1e-12


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8, "weight_decay": 0.2, "forgetting": 0.7}])
@pytest.mark.parametrize("steps", [1, 5])
def test_cross_entropy_is_autograds(steps, options):
    x, _, q = problem()
    y = torch.eye(3, dtype=DOUBLE)[torch.randint(0, 3, (3, 9), generator=torch.Generator().manual_seed(0))]
    options = {**options, "lr": 0.5, "steps": steps, "w0": normal(3, 4, seed=7), "loss": "cross_entropy"}
    assert ratio(learners.gradient_descent(x, y, q, **options), by_autograd(x, y, q, **options)) <= 1e-12


def test_gradient_descent_converges():
    """To least squares, and with weight decay to ridge with alpha = N * weight_decay, from any start."""
    x, y, q = problem()
    lr = 9 / float(torch.linalg.eigvalsh(x.mT @ x).max())
    for momentum, nesterov in ((0.0, False), (0.5, False), (0.5, True)):
        options = {"lr": lr, "steps": 600, "w0": normal(3, 4, seed=7), "momentum": momentum, "nesterov": nesterov}
        assert ratio(learners.gradient_descent(x, y, q, **options), learners.least_squares(x, y, q)) <= 1e-9
        got = learners.gradient_descent(x, y, q, weight_decay=0.2, **{**options, "lr": 0.5 * lr})
        assert ratio(got, learners.ridge(x, y, q, alpha=9 * 0.2)) <= 1e-9


def test_polynomial_multiplies_the_residual():
    """W_k = W* + (W0 - W*) prod (I - c_t B)."""
    x, y, q = problem()
    rates, w0 = [0.02, 0.11, -0.01], normal(3, 4, seed=7)

    def closed_form(x, y, q):
        optimum = np.linalg.lstsq(x, y, rcond=None)[0].T
        residual = np.eye(4)
        for c in rates:
            residual = residual @ (np.eye(4) - c * x.T @ x)
        return q @ (optimum + (w0.numpy() - optimum) @ residual).T

    assert ratio(learners.polynomial(x, y, q, rates=rates, w0=w0), each(closed_form, x, y, q)) <= 1e-12


@pytest.mark.parametrize("name", ["ridge", "polynomial", "newton", "conjugate_gradient"])
def test_forgetting_weighs_example_i_by_its_age(name):
    """forgetting^(N-i) in every sum: 1/4 of an example is an example of half its size; ridge also by scikit-learn's weights."""
    x, y, q = problem()
    learner, options = getattr(learners, name), EVERY[name]
    half = 0.5 ** torch.arange(8, -1, -1, dtype=DOUBLE)[:, None]
    got = learner(x, y, q, forgetting=0.25, **options)
    assert ratio(got, learner(half * x, half * y, q, **options)) <= 1e-12
    if name == "ridge":
        weights = (half**2).flatten().numpy()
        wanted = each(lambda x, y, q: Ridge(0.5, fit_intercept=False).fit(x, y, weights).predict(q), x, y, q)
        assert ratio(got, wanted) <= 1e-10


@pytest.mark.parametrize("batch", [1, 2, 4, 9, 12])
def test_minibatches_are_steps_on_parts(batch):
    x, y, q = problem()

    def loop(x, y, q):
        w = np.ones((3, 4))
        for start in range(0, 9, batch):
            part = range(start, min(start + batch, 9))
            w = w - 0.2 / len(part) * sum(np.outer(w @ x[i] - y[i], x[i]) for i in part)
        return q @ w.T

    got = learners.minibatch(x, y, q, lr=0.2, batch=batch, w0=torch.ones(3, 4))
    assert ratio(got, each(loop, x, y, q)) <= 1e-12


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_newton_squares_its_residual(steps, alpha):
    """I - G X_k = (I - G X_0)^(2^k), with X_0 = G / (|G|_1 |G|_inf)."""
    x, y, q = problem()

    def closed_form(x, y, q):
        g = x.T @ x + alpha * np.eye(4)
        start = g / (np.linalg.norm(g, 1) * np.linalg.norm(g, np.inf))
        residual = np.linalg.matrix_power(np.eye(4) - g @ start, 2**steps)
        return q @ (y.T @ x @ np.linalg.inv(g) @ (np.eye(4) - residual)).T

    assert ratio(learners.newton(x, y, q, steps=steps, alpha=alpha), each(closed_form, x, y, q)) <= 1e-11


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_conjugate_gradient_is_optimal_in_its_krylov_space(steps, alpha):
    """v minimises the G-norm of the error over span(q, G q, ..), by projection; after d steps it is ridge."""
    x, y, q = problem()

    def projected(x, y, q):
        g = x.T @ x + alpha * np.eye(4)
        rows = []
        for b in q:
            basis, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(g, j) @ b for j in range(steps)], axis=1))
            rows.append(y.T @ x @ basis @ np.linalg.solve(basis.T @ g @ basis, basis.T @ b))
        return np.stack(rows)

    got = learners.conjugate_gradient(x, y, q, alpha=alpha, steps=steps)
    assert ratio(got, each(projected, x, y, q)) <= 1e-10
    if steps == 4:
        assert ratio(got, learners.ridge(x, y, q, alpha=alpha)) <= 1e-10
        more = learners.conjugate_gradient(x, y, q, alpha=alpha, steps=40)
        assert ratio(more, learners.ridge(x, y, q, alpha=alpha)) <= 1e-10


def test_chebyshev_of_one_step_is_gradient_descent():
    """And two steps with eigenvalues in [l, h] are the polynomial whose rates are the inverse Chebyshev nodes."""
    x, y, q = problem()
    low, high = 0.3, 2.0
    one = learners.chebyshev(x, y, q, steps=1, lambda_min=low, lambda_max=high)
    assert ratio(one, learners.gradient_descent(x, y, q, lr=2 / (low + high))) <= 1e-13
    nodes = [(high + low) / 2 + (high - low) / 2 * np.cos(np.pi * (2 * i + 1) / 4) for i in range(2)]
    two = learners.chebyshev(x, y, q, steps=2, lambda_min=low, lambda_max=high, w0=torch.ones(3, 4))
    assert ratio(two, learners.polynomial(x, y, q, rates=[1 / (9 * z) for z in nodes], w0=torch.ones(3, 4))) <= 1e-12


EVERY = {
    "gradient_descent": {"lr": 0.1, "steps": 3, "momentum": 0.5},
    "polynomial": {"rates": [0.1, 0.05]},
    "minibatch": {"lr": 0.1, "batch": 2},
    "chebyshev": {"steps": 3, "lambda_min": 0.1, "lambda_max": 3.0},
    "least_squares": {},
    "ridge": {"alpha": 0.5},
    "bayes": {"noise_var": 0.5},
    "newton": {"steps": 5},
    "conjugate_gradient": {"alpha": 0.5, "steps": 3},
}


@pytest.mark.parametrize("name", EVERY)
def test_one_query_or_several_or_a_context(name):
    x, y, q = problem()
    learner, options = getattr(learners, name), EVERY[name]
    several = learner(x, y, q, **options)
    assert several.shape == (3, 5, 3)
    for m in range(5):
        assert ratio(learner(x, y, q[:, m], **options), several[:, m]) <= 1e-13
    assert torch.equal(learners.predictor(learner, **options)(Context(x, y, q)), several)


@pytest.mark.parametrize("name", EVERY)
def test_predictions_can_be_differentiated(name):
    """In the examples and the queries; once a linear function of the query is exact, its Jacobian is the weights."""
    inputs = [t.requires_grad_() for t in problem(d_x=2, d_y=2, n=3, batch=2, queries=2)]
    assert torch.autograd.gradcheck(lambda x, y, q: getattr(learners, name)(x, y, q, **EVERY[name]), inputs)


def test_conjugate_gradient_can_be_differentiated_once_exact():
    """x = I: one step is exact, the residual is zero, and the Jacobian in the query is W = y^T / (1 + alpha)."""
    y, q = normal(1, 3, 2), normal(1, 3, seed=1)
    x = torch.eye(3, dtype=DOUBLE)[None]
    jacobian = torch.autograd.functional.jacobian(lambda q: learners.conjugate_gradient(x, y, q, alpha=1.0, steps=6)[0], q)
    assert ratio(jacobian[:, 0], y[0].T / 2) <= 1e-12


@pytest.mark.parametrize("name", ["gradient_descent", "polynomial", "minibatch", "chebyshev"])
def test_a_start_for_each_task(name):
    x, y, q = problem()
    w0 = normal(3, 3, 4, seed=7)
    together = getattr(learners, name)(x, y, q, w0=w0, **EVERY[name])
    for b in range(3):
        alone = getattr(learners, name)(x[b : b + 1], y[b : b + 1], q[b : b + 1], w0=w0[b], **EVERY[name])
        assert ratio(together[b], alone[0]) <= 1e-13
    with pytest.raises(ValueError, match=r"w0 must be \(3, 4\) or \(3, 3, 4\), got shape \(4, 3\)"):
        getattr(learners, name)(x, y, q, w0=torch.ones(4, 3), **EVERY[name])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gradient_descent", {"lr": 0.1, "steps": 0}, "steps must be >= 1, got 0"),
        ("gradient_descent", {"lr": 0.1, "loss": "hinge"}, "loss is 'hinge'; allowed: squared, cross_entropy"),
        ("minibatch", {"lr": 0.1, "batch": 0}, "batch must be >= 1, got 0"),
        ("chebyshev", {"steps": 2, "lambda_min": 0, "lambda_max": 1}, "lambda_min and lambda_max must .* got 0 and 1"),
        ("chebyshev", {"steps": 2, "lambda_min": 2, "lambda_max": 1}, "lambda_min and lambda_max must .* got 2 and 1"),
        ("ridge", {"alpha": -1.0}, r"alpha must be > 0.*got alpha = -1\.0"),
        ("ridge", {"alpha": 0.0}, r"alpha must be > 0, or 0 with at least 4 examples; got alpha = 0\.0 with 3"),
        ("conjugate_gradient", {"alpha": 0.0, "steps": 2}, r"alpha must be > 0, or 0 with at least 4 .* with 3"),
        ("bayes", {"noise_var": -1.0}, r"noise_var must be >= 0 .* got -1\.0"),
        ("bayes", {"noise_var": 1.0, "weight_var": 0.0}, r"weight_var > 0, got 1\.0 and 0\.0"),
    ],
)
def test_wrong_arguments_are_named(name, options, message):
    x, y, q = problem(n=3)
    with pytest.raises(ValueError, match=message):
        getattr(learners, name)(x, y, q, **options)
