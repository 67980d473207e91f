"""Every construction against the explicit learner it claims to be, and both against closed forms where there is one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdssm import (
    ConjugateGradientReadout,
    ConstructedTokenLayer,
    Context,
    FeatureModel,
    IteratedReadout,
    MinibatchReadout,
    NewtonReadout,
    RandomFourierFeatures,
    TwoStepBlock,
    as_predictor,
    construct,
    learners,
)
from gdssm.tokens import constructed, interleave
from plain import ratio

DOUBLE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def problem(d_x, d_y, n, *, queries=3, batch=2, seed=0):
    return Context(
        normal(batch, n, d_x, seed=seed), normal(batch, n, d_y, seed=seed + 1), normal(batch, queries, d_x, seed=seed + 2)
    )


def largest(context):
    """The largest eigenvalue of B = sum x x^T over the batch."""
    return float(torch.linalg.eigvalsh(context.x.mT @ context.x).max())


def agree(model, learner, context, tolerance=1e-11, layout="interleaved", **options):
    """Several queries through as_predictor, and the first one through module(tokens)."""
    wanted = learner(context.x, context.y, context.x_query, **options)
    assert ratio(as_predictor(model, layout)(context), wanted) <= tolerance
    tokens = {"interleaved": interleave, "constructed": constructed}[layout](context.x, context.y, context.x_query[:, 0])
    single = model(tokens)
    assert single.shape == (len(context), context.y.shape[2])
    assert ratio(single, wanted[:, 0]) <= tolerance


SIZES = {"d_x": st.integers(1, 6), "d_y": st.integers(1, 6), "n": st.integers(1, 12), "seed": st.integers(0, 2**20)}
FRACTION = st.floats(0.05, 1.9)


@settings(max_examples=120)
@given(
    **SIZES,
    steps=st.one_of(st.integers(1, 3), st.integers(1, 50)),
    fraction=FRACTION,
    start=st.booleans(),
    momentum=st.sampled_from([0.0, 0.3, 0.9]),
    nesterov=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.05, 1.0]),
    forgetting=st.sampled_from([1.0, 0.9, 0.3]),
    counted=st.booleans(),
)
def test_gradient_descent(d_x, d_y, n, seed, steps, fraction, start, momentum, nesterov, weight_decay, forgetting, counted):
    """Up to 50 steps with everything that can be combined, at rates up to 0.95 of the stable ones."""
    context = problem(d_x, d_y, n, seed=seed)
    options = {
        "lr": fraction / (largest(context) / n + weight_decay),
        "steps": steps,
        "w0": normal(d_y, d_x, seed=seed + 3) if start else None,
        "momentum": momentum,
        "nesterov": nesterov and fraction * (1 + 2 * momentum) < 2 * (1 + momentum),  # Nesterov's own limit of stability
        "weight_decay": weight_decay,
        "forgetting": forgetting,
    }
    model = construct.gradient_descent(d_x, d_y, n_context=None if counted else n, dtype=DOUBLE, **options)
    agree(model, learners.gradient_descent, context, **options)


@settings(max_examples=30)
@given(
    **SIZES,
    rates=st.lists(st.floats(0.01, 1.9), min_size=1, max_size=8),
    start=st.booleans(),
    forgetting=st.sampled_from([1.0, 0.7]),
)
def test_polynomial(d_x, d_y, n, seed, rates, start, forgetting):
    context = problem(d_x, d_y, n, seed=seed)
    w0 = normal(d_y, d_x, seed=seed + 3) if start else None
    options = {"rates": [c / largest(context) for c in rates], "w0": w0, "forgetting": forgetting}
    agree(construct.polynomial(d_x, d_y, dtype=DOUBLE, **options), learners.polynomial, context, **options)


@settings(max_examples=30)
@given(**SIZES, batch=st.integers(1, 14), fraction=FRACTION, start=st.booleans())
def test_minibatch(d_x, d_y, n, seed, batch, fraction, start):
    """Also where the last minibatch is smaller, and where one holds everything."""
    context = problem(d_x, d_y, n, seed=seed)
    lr = fraction / float(context.x.square().sum(-1).max())
    options = {"lr": lr, "batch": batch, "w0": normal(d_y, d_x, seed=seed + 3) if start else None}
    model = construct.minibatch(d_x, d_y, dtype=DOUBLE, **options)
    agree(model, learners.minibatch, context, **options)
    if batch >= n:
        agree(model, learners.gradient_descent, context, lr=lr, w0=options["w0"])


@settings(max_examples=30)
@given(**SIZES, fraction=FRACTION, forgetting=st.sampled_from([1.0, 0.9]), counted=st.booleans())
def test_cross_entropy(d_x, d_y, n, seed, fraction, forgetting, counted):
    """Fewer inputs than classes and more; one-hot targets."""
    context = problem(d_x, d_y, n, seed=seed)
    classes = torch.randint(0, d_y, (2, n), generator=torch.Generator().manual_seed(seed))
    context = Context(context.x, torch.eye(d_y, dtype=DOUBLE)[classes], context.x_query)
    options = {"lr": fraction, "loss": "cross_entropy", "forgetting": forgetting}
    model = construct.gradient_descent(d_x, d_y, n_context=None if counted else n, dtype=DOUBLE, **options)
    wanted = learners.gradient_descent(context.x, context.y, context.x_query, **options)
    error = (as_predictor(model)(context) - wanted).detach().abs().max()
    assert float(error) <= 1e-13 * n * d_x  # not relative: with one class all logits are 0


@settings(max_examples=30)
@given(d_x=SIZES["d_x"], n=SIZES["n"], seed=SIZES["seed"], fraction=FRACTION, forgetting=st.sampled_from([1.0, 0.9, 0.3]))
def test_constructed_tokens(d_x, n, seed, fraction, forgetting):
    context = problem(d_x, 1, n, seed=seed)
    options = {"lr": fraction, "forgetting": forgetting}
    model = construct.constructed_tokens(d_x, n_context=n, dtype=DOUBLE, **options)
    agree(model, learners.gradient_descent, context, layout="constructed", **options)


def well_conditioned(d_x, d_y, n, condition, seed=0):
    """Examples whose B has this condition number exactly, eigenvalues from 1 to `condition`."""
    context = problem(d_x, d_y, n, seed=seed)
    u, _, v = torch.linalg.svd(context.x, full_matrices=False)
    scale = torch.logspace(0, math.log10(condition), d_x, dtype=DOUBLE).sqrt()
    return Context((u * scale) @ v, context.y, context.x_query)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(("d_x", "d_y", "n"), [(5, 3, 9), (4, 6, 4), (1, 1, 3)])
def test_conjugate_gradient(d_x, d_y, n, steps, alpha):
    context = well_conditioned(d_x, d_y, n, 10)
    model = construct.ridge(d_x, d_y, alpha=alpha, steps=steps, n_context=n, dtype=DOUBLE)
    agree(model, learners.conjugate_gradient, context, alpha=alpha, steps=steps)


@pytest.mark.parametrize(("condition", "factor"), [(10, 1), (1000, 2)])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("d_x", [3, 8, 16])
def test_conjugate_gradient_reaches_ridge(d_x, alpha, condition, factor):
    """d steps for condition 10, 2 d for 1000."""
    context = well_conditioned(d_x, 4, 2 * d_x, condition, seed=d_x)
    model = construct.ridge(d_x, 4, alpha=alpha, steps=factor * d_x, n_context=2 * d_x, dtype=DOUBLE)
    agree(model, learners.ridge, context, tolerance=1e-10, alpha=alpha)


def test_conjugate_gradient_with_fewer_examples_than_inputs():
    """Three examples, six inputs: B + alpha I has four different eigenvalues, so four steps are exact."""
    context = problem(6, 2, 3)
    model = construct.ridge(6, 2, alpha=1.0, steps=4, dtype=DOUBLE)
    agree(model, learners.ridge, context, tolerance=1e-9, alpha=1.0)


def test_forgetting_weighs_the_squares():
    """Conjugate gradient and Newton against each learner, and against weighted ridge once they have converged."""
    context, shared = problem(3, 2, 7), {"alpha": 0.3, "forgetting": 0.8}
    for steps in (1, 2, 3, 30):
        model = construct.ridge(3, 2, steps=steps, dtype=DOUBLE, **shared)
        agree(model, learners.conjugate_gradient, context, steps=steps, **shared)
        model = construct.newton(3, 2, steps=steps, dtype=DOUBLE, **shared)
        agree(model, learners.newton, context, steps=steps, **shared)
    agree(model, learners.ridge, context, 1e-10, **shared)
    agree(construct.ridge(3, 2, steps=12, dtype=DOUBLE, **shared), learners.ridge, context, 1e-10, **shared)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize(("d_x", "d_y", "n"), [(5, 3, 9), (4, 6, 4), (1, 1, 3)])
def test_newton(d_x, d_y, n, steps, alpha):
    context = well_conditioned(d_x, d_y, n, 10)
    model = construct.newton(d_x, d_y, steps=steps, alpha=alpha, dtype=DOUBLE)
    agree(model, learners.newton, context, steps=steps, alpha=alpha)


def test_newton_reaches_least_squares():
    """Condition 1000, 5 inputs: the residual starts at 1 - 1e-6 / 5 at worst and squares in each step, so 32 steps do."""
    context = well_conditioned(5, 3, 9, 1000)
    agree(construct.newton(5, 3, steps=32, dtype=DOUBLE), learners.least_squares, context, tolerance=1e-10)
    agree(construct.newton(5, 3, steps=32, alpha=2.0, dtype=DOUBLE), learners.ridge, context, tolerance=1e-10, alpha=2.0)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_chebyshev(steps, start, counted):
    """Against the learner, and against W* + (W0 - W*) T_k((c - B/N) / h) / T_k(c / h) by eigen-decomposition."""
    n, d_x, d_y = 9, 5, 3
    context = well_conditioned(d_x, d_y, n, 30)
    w0 = normal(d_y, d_x, seed=5) if start else None
    low, high = 0.8 / n, 33 / n
    options = {"steps": steps, "lambda_min": low, "lambda_max": high, "w0": w0}
    model = construct.chebyshev(d_x, d_y, n_context=None if counted else n, dtype=DOUBLE, **options)
    agree(model, learners.chebyshev, context, **options)

    def t(z):
        return np.cosh(steps * np.arccosh(z + 0j)).real

    centre, half = (high + low) / 2, (high - low) / 2
    got = as_predictor(model)(context)
    for b in range(2):
        x, y = context.x[b].numpy(), context.y[b].numpy()
        optimum = np.linalg.lstsq(x, y, rcond=None)[0].T
        values, vectors = np.linalg.eigh(x.T @ x / n)
        residual = vectors @ np.diag(t((centre - values) / half) / t(centre / half)) @ vectors.T
        w = optimum + ((0 if w0 is None else w0.numpy()) - optimum) @ residual
        assert ratio(got[b], context.x_query[b].numpy() @ w.T) <= 1e-11


def test_chebyshev_is_faster_than_gradient_descent():
    """Condition 100, 20 steps: GD at its best rate keeps (99/101)^20 = 0.67 of the worst error, Chebyshev 0.036 of any."""
    n = 12
    context = well_conditioned(6, 2, n, 100)
    goal = learners.least_squares(context.x, context.y, context.x_query)
    shared = {"n_context": n, "steps": 20, "dtype": DOUBLE}
    chebyshev = construct.chebyshev(6, 2, lambda_min=1 / n, lambda_max=100 / n, **shared)
    descent = construct.gradient_descent(6, 2, lr=2 / (101 / n), **shared)
    errors = [ratio(as_predictor(model)(context), goal) for model in (chebyshev, descent)]
    assert errors[0] < 0.2 * errors[1]


def test_chebyshev_on_one_eigenvalue_is_exact_at_once():
    context = well_conditioned(4, 2, 8, 1)
    for steps in (1, 5):
        options = {"steps": steps, "lambda_min": 1 / 8, "lambda_max": 1 / 8}
        model = construct.chebyshev(4, 2, n_context=8, dtype=DOUBLE, **options)
        agree(model, learners.chebyshev, context, **options)
        agree(model, learners.least_squares, context)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_running_mean_is_right_for_every_length(steps):
    """One model, whatever the number of examples; the fixed one is right for its own only."""
    counted = construct.gradient_descent(3, 2, lr=0.4, n_context=None, steps=steps, dtype=DOUBLE)
    fixed = construct.gradient_descent(3, 2, lr=0.4, n_context=10, steps=steps, dtype=DOUBLE)
    for n in (1, 3, 10, 40):
        context = problem(3, 2, n, seed=n)
        agree(counted, learners.gradient_descent, context, lr=0.4, steps=steps)
        wanted = learners.gradient_descent(context.x, context.y, context.x_query, lr=0.4, steps=steps)
        error = ratio(as_predictor(fixed)(context), wanted)
        assert error <= 1e-11 if n == 10 else error > 0.1


EVERY_WINDOW = {
    "one step": (construct.gradient_descent, learners.gradient_descent, {"lr": 0.3, "n_context": None, "w0": normal(2, 3)}),
    "four steps": (
        construct.gradient_descent,
        learners.gradient_descent,
        {"lr": 0.3, "n_context": None, "steps": 4, "momentum": 0.5, "weight_decay": 0.1, "forgetting": 0.8, "w0": normal(2, 3)},
    ),
    "polynomial": (construct.polynomial, learners.polynomial, {"rates": [0.1, 0.02, 0.05]}),
    "conjugate gradient": (construct.ridge, learners.conjugate_gradient, {"alpha": 0.5, "steps": 3}),
    "newton": (construct.newton, learners.newton, {"alpha": 0.5, "steps": 7}),
}


@pytest.mark.parametrize("name", EVERY_WINDOW)
def test_every_window_predicts_from_the_examples_so_far(name):
    """Output k is the learner's on the first k + 1 examples, at the input that follows; also past a state and with lengths."""
    make, learner, options = EVERY_WINDOW[name]
    layer = make(3, 2, dtype=DOUBLE, **options).layer
    context = problem(3, 2, 6, queries=1)
    tokens = interleave(context.x, context.y, context.x_query)
    given = {name: value for name, value in options.items() if name != "n_context"}
    following = torch.cat([context.x[:, 1:], context.x_query], dim=1)
    wanted = torch.stack([learner(context.x[:, :k], context.y[:, :k], following[:, k - 1], **given) for k in range(1, 7)], dim=1)
    first, state = layer(tokens[:, :6])
    assert ratio(torch.cat([first, layer(tokens[:, 6:], state)[0]], dim=1)[..., :2], wanted) <= 1e-11
    assert ratio(layer.last(tokens[:, 6:], state)[:, :2], wanted[:, -1]) <= 1e-11
    lengths = torch.tensor([5, 11])
    ends = torch.stack([wanted[0, 1], wanted[1, 4]])
    padded = tokens.masked_fill((torch.arange(13) >= lengths[:, None])[..., None], math.nan)
    assert ratio(layer.last(padded, lengths=lengths)[:, :2], ends) <= 1e-11
    out = layer(padded, None, lengths)[0][..., :2]
    assert ratio(torch.stack([out[0, 1], out[1, 4]]), ends) <= 1e-11


def test_the_constructed_layer_goes_on_from_its_state():
    """z_k = Lambda z_{k-1} + x_k y_k and rate z_k . x_{k+1}, at every token, whole and in pieces."""
    for decay in (1.0, 0.7):
        layer = ConstructedTokenLayer(3, rate=0.4, decay=decay, dtype=DOUBLE)
        tokens = normal(2, 150, 6)
        out, state = layer(tokens)
        pieces, z = [], None
        for piece in tokens.split([3, 0, 1, 146], dim=1):
            part, z = layer(piece, z)
            pieces.append(part)
        for b in range(2):
            z_b, wanted = np.zeros(3), []
            for token in tokens[b].numpy():
                z_b = decay * z_b + token[:3]
                wanted.append([0.4 * z_b @ token[3:]])
            assert ratio(out[b], wanted) <= 1e-12
            assert ratio(torch.cat(pieces, dim=1)[b], wanted) <= 1e-12
            assert ratio(state[b], z_b) <= 1e-12
            assert ratio(z[b], z_b) <= 1e-12
    with pytest.raises(ValueError, match=r"tokens must be \(B, K, 6\) in the constructed layout, got shape \(2, 8, 5\)"):
        layer(normal(2, 8, 5))
    with pytest.raises(ValueError, match=r"decay must lie in \(0, 1\], got 0"):
        ConstructedTokenLayer(3, decay=0)


@pytest.mark.parametrize("kind", [IteratedReadout, ConjugateGradientReadout, NewtonReadout, MinibatchReadout])
def test_readouts_name_what_is_wrong(kind):
    name = "batch" if kind is MinibatchReadout else "k"
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got {wrong}"):
            kind(wrong)
    layer = kind(2)
    with pytest.raises(ValueError, match=r"tokens must be \(B, T, D\), got shape \(5, 3\)"):
        layer.last(torch.ones(5, 3))
    with pytest.raises(TypeError, match=r"tokens must be a floating-point tensor, got torch\.int64"):
        layer.last(torch.ones(1, 5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="no window of 3 tokens ends in sequence 0"):
        layer.last(torch.ones(1, 2, 3))
    if kind is IteratedReadout or kind is MinibatchReadout:
        with pytest.raises(ValueError, match="d_model must be an integer >= 1, got None"):
            kind(2, skip=True)
    if kind is not MinibatchReadout:
        with pytest.raises(ValueError, match="decay is 'row'; allowed: head, none"):
            kind(2, decay="row")
        with pytest.raises(ValueError, match="window must be an integer >= 1, got 0"):
            kind(2, window=0)


def test_two_steps_are_the_papers_block_of_three_recurrences():
    """W_2 = 2 c A - c^2 A B = P_1 + P_1 P_2 + P_3 with P_1 = P_3 = c A and P_2 = -c B."""
    c, context = 0.05, problem(4, 4, 7, queries=1)
    gates = {f"wq{i}": np.zeros((3, 3)) for i in (1, 2, 3)}
    gates["wq1"][0, 1] = gates["wq3"][0, 1] = gates["wq2"][0, 0] = 1
    signs = {"C1": c * np.eye(4), "C2": -c * np.eye(4), "C3": c * np.eye(4)}
    decays = {f"lam{i}": np.ones((4, 4)) for i in (1, 2, 3)}
    wanted = learners.gradient_descent(context.x, context.y, context.x_query, lr=7 * c, steps=2)[:, 0]
    for decay in ("none", "full"):
        block = TwoStepBlock(4, decay=decay, dtype=DOUBLE).load_arrays(**gates, **signs, **decays, D3=[0, 0, 1])
        assert ratio(block.last(interleave(context.x, context.y, context.x_query)), wanted) <= 1e-13
        assert ratio(as_predictor(block)(context)[:, 0], wanted) <= 1e-13


@pytest.mark.parametrize(
    "model",
    [
        construct.ridge(3, 2, alpha=1.0, steps=6, dtype=DOUBLE),
        construct.newton(3, 2, alpha=1.0, steps=20, dtype=DOUBLE),
        construct.gradient_descent(3, 2, lr=0.75, steps=200, n_context=3, weight_decay=1 / 3, dtype=DOUBLE),
    ],
)
def test_the_sensitivity_is_the_weights(model):
    """x = I: all of these are ridge with alpha = 1 exactly, whose Jacobian in the query is y^T / 2; CG has no residual left."""
    y = normal(1, 3, 2)
    context = torch.eye(3, dtype=DOUBLE)[None]
    jacobian = torch.autograd.functional.jacobian(lambda q: model(interleave(context, y, q))[0], normal(1, 3, seed=1))
    assert ratio(jacobian[:, 0], y[0].T / 2) <= 1e-12


@pytest.mark.parametrize("steps", range(1, 11))
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"w0": normal(10, 10, seed=3), "weight_decay": 0.1}])
def test_float32(steps, options):
    """64 queries, up to ten steps: the norm of the error over that of the prediction, at a rate near the stable limit."""
    context = problem(10, 10, 10, queries=64)
    single = Context(context.x.float(), context.y.float(), context.x_query.float())
    exact = Context(single.x.double(), single.y.double(), single.x_query.double())
    options = {**options, "steps": steps, "lr": 1.9 / (largest(exact) / 10 + options.get("weight_decay", 0.0))}
    model = construct.gradient_descent(10, 10, n_context=10, **options)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    wanted = learners.gradient_descent(exact.x, exact.y, exact.x_query, **options)
    assert ratio(as_predictor(model)(single), wanted) <= 1e-5


def test_random_fourier_features_are_the_gaussian_kernel():
    """Products of 20,000 features have a standard deviation of at most 1 / sqrt(20,000) around the kernel."""
    features = RandomFourierFeatures(2, 20_000, lengthscale=0.7, seed=3, dtype=DOUBLE)
    x = normal(12, 2)
    kernel = torch.exp(-(torch.cdist(x, x) ** 2) / (2 * 0.7**2))
    assert float((features(x) @ features(x).T - kernel).abs().max()) <= 5 / math.sqrt(20_000)
    again = RandomFourierFeatures(2, 20_000, lengthscale=0.7, seed=3, dtype=DOUBLE)
    assert torch.equal(features(x), again(x))
    assert not torch.allclose(features(x), RandomFourierFeatures(2, 20_000, lengthscale=0.7, seed=4, dtype=DOUBLE)(x))


@pytest.mark.parametrize(("d_y", "n_features"), [(2, 7), (9, 4)])
@pytest.mark.parametrize("kind", ["fourier", "network", "function"])
def test_gradient_descent_on_features(kind, d_y, n_features):
    """The learner on phi(x), phi(x_query); the features may be learned, so gradients reach them."""
    features = {
        "fourier": RandomFourierFeatures(3, n_features, dtype=DOUBLE),
        "network": torch.nn.Sequential(torch.nn.Linear(3, n_features, dtype=DOUBLE), torch.nn.Tanh()),
        "function": lambda x: (x @ normal(3, n_features, seed=8)).sin(),
    }[kind]
    context = problem(3, d_y, 6)
    inner = construct.gradient_descent(n_features, d_y, lr=0.7, n_context=6, steps=5, dtype=DOUBLE)
    model = construct.on_features(features, 3, inner)
    agree(model, lambda x, y, q, **o: learners.gradient_descent(features(x), y, features(q), **o), context, 1e-10, lr=0.7, steps=5)
    if kind == "network":
        as_predictor(model)(context).sum().backward()
        assert bool((features[0].weight.grad != 0).any())


def test_features_of_another_size_are_an_error():
    model = FeatureModel(lambda x: x, construct.gradient_descent(5, 2, lr=0.1, n_context=4), 3)
    with pytest.raises(ValueError, match="features gave 3 features, the model reads 5"):
        model(torch.ones(1, 9, 5))
    for arguments, message in (((0, 4), "d_x"), ((2, 0), "n_features")):
        with pytest.raises(ValueError, match=f"{message} must be an integer >= 1, got 0"):
            RandomFourierFeatures(*arguments)
    with pytest.raises(ValueError, match=r"lengthscale must be > 0, got 0\.0"):
        RandomFourierFeatures(2, 4, lengthscale=0.0)


GD = {"lr": 0.1, "n_context": 5}


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("gradient_descent", {**GD, "lr": math.nan}, "lr must be a finite number, got nan"),
        ("gradient_descent", {**GD, "lr": math.inf}, "lr must be a finite number, got inf"),
        ("gradient_descent", {**GD, "lr": "0.1"}, "lr must be a finite number, got '0.1'"),
        ("gradient_descent", {**GD, "steps": 0}, "steps must be an integer >= 1, got 0"),
        ("gradient_descent", {**GD, "steps": 1.5}, r"steps must be an integer >= 1, got 1\.5"),
        ("gradient_descent", {**GD, "n_context": 0}, "n_context must be an integer >= 1, got 0"),
        ("gradient_descent", {**GD, "momentum": -0.1}, r"momentum must be a finite number >= 0, got -0\.1"),
        ("gradient_descent", {**GD, "weight_decay": -1}, "weight_decay must be a finite number >= 0, got -1"),
        ("gradient_descent", {**GD, "forgetting": 0}, "forgetting must be a finite number > 0 and <= 1, got 0"),
        ("gradient_descent", {**GD, "forgetting": 1.1, "steps": 2}, r"forgetting must be .* <= 1, got 1\.1"),
        ("gradient_descent", {**GD, "loss": "hinge"}, "loss is 'hinge'; allowed: squared, cross_entropy"),
        ("gradient_descent", {**GD, "loss": "cross_entropy", "steps": 2}, "'cross_entropy' .* one step from 0 only, got steps = 2"),
        ("gradient_descent", {**GD, "loss": "cross_entropy", "w0": torch.ones(2, 3)}, "'cross_entropy' .* got steps = 1, w0"),
        ("gradient_descent", {**GD, "w0": torch.ones(3, 2)}, r"w0 must be \(d_y, d_x\) = \(2, 3\), got shape \(3, 2\)"),
        ("gradient_descent", {**GD, "w0": torch.full((2, 3), math.nan)}, "w0 has values that are not finite"),
        ("gradient_descent", {**GD, "d_x": 0}, "d_x must be an integer >= 1, got 0"),
        ("gradient_descent", {**GD, "d_y": True}, "d_y must be an integer >= 1, got True"),
        ("polynomial", {"rates": []}, r"rates must hold at least one rate, got \[\]"),
        ("polynomial", {"rates": [0.1, math.nan]}, "rates must be a finite number, got nan"),
        ("polynomial", {"rates": [0.1], "w0": torch.ones(2)}, r"w0 must be .* got shape \(2,\)"),
        ("polynomial", {"rates": [0.1], "forgetting": 0}, "forgetting must be .* got 0"),
        ("ridge", {"alpha": 0, "steps": 3}, "alpha must be > 0, or 0 with n_context >= d_x = 3; .* n_context = None"),
        ("ridge", {"alpha": 0, "steps": 3, "n_context": 2}, "alpha must be > 0, or 0 with n_context >= d_x = 3; .* n_context = 2"),
        ("ridge", {"alpha": -0.1, "steps": 3}, r"alpha must be a finite number >= 0, got -0\.1"),
        ("ridge", {"alpha": 1.0, "steps": 0}, "steps must be an integer >= 1, got 0"),
        ("newton", {"steps": 0}, "steps must be an integer >= 1, got 0"),
        ("newton", {"steps": 3, "alpha": math.nan}, "alpha must be a finite number >= 0, got nan"),
        ("chebyshev", {"n_context": 5, "steps": 3, "lambda_min": 0, "lambda_max": 1}, "lambda_min must be .* > 0, got 0"),
        ("chebyshev", {"n_context": 5, "steps": 3, "lambda_min": 2, "lambda_max": 1}, "lambda_max must be .* >= 2, got 1"),
        ("chebyshev", {"n_context": 5, "steps": 0, "lambda_min": 1, "lambda_max": 2}, "steps must be an integer >= 1, got 0"),
        ("minibatch", {"lr": 0.1, "batch": 0}, "batch must be an integer >= 1, got 0"),
        ("minibatch", {"lr": math.nan, "batch": 2}, "lr must be a finite number, got nan"),
        ("constructed_tokens", {**GD}, "d_y must be 1 in the constructed layout, got 2"),
        ("constructed_tokens", {**GD, "d_y": 1, "forgetting": 1.1}, r"forgetting must be .* got 1\.1"),
    ],
)
def test_wrong_arguments_are_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(construct, function)(**{"d_x": 3, "d_y": 2, **options})
