"""The sampler's statistics and purity, Context, token layouts on small arrays, and predictors made of modules."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gdssm import (
    GDSSM,
    Context,
    InContextModel,
    IteratedReadout,
    LinearRegression,
    MinibatchReadout,
    as_predictor,
    construct,
    learners,
)
from gdssm.tasks.linear import generator
from gdssm.tokens import LAYOUTS, concatenated, constructed, interleave
from plain import ratio

DOUBLE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_shapes_and_dtype():
    context = LinearRegression(d_x=3, d_y=2, n_examples=5, n_queries=4).sample(7, seed=0, dtype=DOUBLE)
    assert [tuple(t.shape) for t in (context.x, context.y, context.x_query, context.y_query)] == [
        (7, 5, 3),
        (7, 5, 2),
        (7, 4, 3),
        (7, 4, 2),
    ]
    assert {t.dtype for t in (context.x, context.y, context.x_query, context.y_query)} == {DOUBLE}
    assert LinearRegression().sample(1, seed=0).x.dtype == torch.float32


@pytest.mark.parametrize(("inputs", "kurtosis"), [("uniform", 144 / 80), ("gaussian", 3.0)])
def test_inputs_have_the_moments_they_say(inputs, kurtosis):
    """480,000 numbers of range 2: zero mean, variance r^2 / 12, the fourth moment of the law; queries like examples."""
    task = LinearRegression(d_x=6, d_y=1, n_examples=16, n_queries=4, inputs=inputs, input_range=2.0)
    context = task.sample(4000, seed=0, dtype=DOUBLE)
    variance = 4 / 12
    assert task.input_variance == pytest.approx(variance)
    assert task.input_fourth_moment == pytest.approx(kurtosis * variance**2)
    for x in (context.x, context.x_query):
        assert abs(float(x.mean())) < 5 * math.sqrt(variance / x.numel())
        assert float(x.square().mean()) == pytest.approx(variance, rel=0.03)
        assert float(x.pow(4).mean()) == pytest.approx(kurtosis * variance**2, rel=0.05)
    assert (float(context.x.abs().max()) <= 1.0) == (inputs == "uniform")
    flat = context.x.flatten(0, 1)
    assert float((flat.T @ flat / len(flat) - variance * torch.eye(6)).abs().max()) < 0.01  # independent entries


@pytest.mark.parametrize("inputs", ["uniform", "gaussian"])
def test_the_spectrum_scales_variances(inputs):
    spectrum = (1.0, 0.25, 0.0, 4.0)
    x = LinearRegression(d_x=4, n_examples=20, inputs=inputs, spectrum=spectrum).sample(5000, seed=0, dtype=DOUBLE).x
    assert x.square().mean((0, 1)).tolist() == pytest.approx([value / 12 for value in spectrum], rel=0.03)


def weights_of(context):
    """W of every task, from noise-free queries of which there are at least d_x."""
    return torch.linalg.lstsq(context.x_query, context.y_query).solution.mT


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_targets_are_linear_with_the_noise_they_say(noise):
    """y = W x + noise for the W that the queries, without noise, are exact for; W ~ N(0, scale^2), new in every task."""
    task = LinearRegression(d_x=4, d_y=3, n_examples=12, n_queries=6, weight_scale=1.5, noise_std=noise)
    context = task.sample(4000, seed=0, dtype=DOUBLE)
    w = weights_of(context)
    assert ratio(context.x_query @ w.mT, context.y_query) <= 1e-10
    residual = context.y - context.x @ w.mT
    if noise:
        assert float(residual.std()) == pytest.approx(noise, rel=0.01)
        assert abs(float(residual.mean())) < 5 * noise / math.sqrt(residual.numel())
    else:
        assert float(residual.abs().max()) <= 1e-10
    assert float(w.std()) == pytest.approx(1.5, rel=0.02)
    assert abs(float((w[:-1] * w[1:]).mean())) < 0.05  # neighbouring tasks have nothing in common


def numbers(context):
    return torch.cat([t.flatten() for t in (context.x, context.y, context.x_query, context.y_query)])


@pytest.mark.parametrize("inputs", ["uniform", "gaussian"])
def test_a_batch_depends_on_seed_and_step_alone(inputs):
    task = LinearRegression(d_x=3, n_examples=4, inputs=inputs, noise_std=0.1)
    first = numbers(task.sample(5, seed=3, step=7))
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for step in range(3):
        task.sample(2, seed=0, step=step)
    again = numbers(LinearRegression(d_x=3, n_examples=4, inputs=inputs, noise_std=0.1).sample(5, seed=3, step=7))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    for seed, step in ((3, 8), (4, 7), (7, 3), (10, 0), (3 + 2**32, 7)):
        other = numbers(task.sample(5, seed=seed, step=step))
        assert torch.count_nonzero(other == first) <= 1


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_true_weights_are_those_of_the_sample(noise):
    task = LinearRegression(d_x=3, d_y=2, n_queries=5, weight_scale=2.0, noise_std=noise)
    context = task.sample(4, seed=1, step=2, dtype=DOUBLE)
    w = task.true_weights(4, seed=1, step=2, dtype=DOUBLE)
    assert w.shape == (4, 2, 3)
    assert ratio(context.x_query @ w.transpose(1, 2), context.y_query) < 1e-14
    assert not torch.equal(w, task.true_weights(4, seed=1, step=3, dtype=DOUBLE))


def test_neighbouring_steps_are_uncorrelated():
    task = LinearRegression(d_x=4, n_examples=8)
    draws = torch.stack([numbers(task.sample(50, seed=0, step=step)) for step in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert float(correlation.abs().max()) < 5 / math.sqrt(draws.shape[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_x": 0}, "d_x must be an integer >= 1, got 0"),
        ({"d_y": 1.0}, r"d_y must be an integer >= 1, got 1\.0"),
        ({"n_examples": True}, "n_examples must be an integer >= 1, got True"),
        ({"n_queries": 0}, "n_queries must be an integer >= 1, got 0"),
        ({"inputs": "unifrm"}, r"inputs is 'unifrm' \(did you mean 'uniform'\?\); allowed: uniform, gaussian"),
        ({"input_range": 0}, "input_range must be a finite number > 0, got 0"),
        ({"weight_scale": -1}, "weight_scale must be a finite number >= 0, got -1"),
        ({"noise_std": math.nan}, "noise_std must be a finite number >= 0, got nan"),
        ({"spectrum": (1.0, 2.0)}, "spectrum has 2 entries, d_x is 10"),
        ({"d_x": 2, "spectrum": (1.0, -2.0)}, r"spectrum must be a finite number >= 0, got -2\.0"),
    ],
)
def test_wrong_tasks_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LinearRegression(**options)


def test_wrong_draws_are_named():
    task = LinearRegression()
    for options, message in (
        ({"batch": 0, "seed": 0}, "batch must be an integer >= 1, got 0"),
        ({"batch": 1, "seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"batch": 1, "seed": 1.5}, r"seed must be an integer >= 0, got 1\.5"),
        ({"batch": 1, "seed": 0, "step": -3}, "step must be an integer >= 0, got -3"),
    ):
        with pytest.raises(ValueError, match=message):
            task.sample(**options)
    with pytest.raises(ValueError, match="step must be an integer >= 0, got True"):
        generator(0, True)


def test_a_context_holds_one_query_as_several():
    context = Context(normal(2, 3, 4), normal(2, 3, 1), normal(2, 4, seed=1), normal(2, 1, seed=2))
    assert torch.equal(context.x_query, normal(2, 4, seed=1)[:, None])
    assert torch.equal(context.y_query, normal(2, 1, seed=2)[:, None])
    assert len(context) == 2
    assert Context(context.x, context.y, context.x_query).y_query is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(2, 3)}, ValueError, r"x must be \(B, N, d_x\) and y \(B, N, d_y\), got \(2, 3\) and \(2, 3, 2\)"),
        ({"y": torch.ones(2, 4, 2)}, ValueError, r"x must be .* got \(2, 3, 4\) and \(2, 4, 2\)"),
        ({"x_query": torch.ones(2, 5)}, ValueError, r"x_query must be \(2, M, 4\) or \(2, 4\), got \(2, 1, 5\)"),
        ({"x_query": torch.ones(3, 1, 4)}, ValueError, r"x_query must be .* got \(3, 1, 4\)"),
        ({"y_query": torch.ones(2, 3, 2)}, ValueError, r"y_query must be \(2, 1, 2\), got \(2, 3, 2\)"),
        ({"x": torch.ones(2, 3, 4, dtype=torch.int64)}, TypeError, "x must be a floating-point tensor, got torch.int64"),
        ({"y": np.ones((2, 3, 2))}, TypeError, "y must be a floating-point tensor, got float64"),
        ({"y_query": [1.0]}, TypeError, "y_query must be a floating-point tensor, got list"),
    ],
)
def test_wrong_contexts_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        Context(**{"x": torch.ones(2, 3, 4), "y": torch.ones(2, 3, 2), "x_query": torch.ones(2, 4), **changes})


X = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
Y3 = torch.tensor([[[5.0, 6.0, 7.0], [8.0, 9.0, 10.0]]])
Y1 = torch.tensor([[[5.0], [6.0]]])
Q = torch.tensor([[11.0, 12.0]])


def test_interleaved_tokens():
    """Zeros at the end of the narrower kind."""
    assert interleave(X, Y3, Q).tolist() == [[[1, 2, 0], [5, 6, 7], [3, 4, 0], [8, 9, 10], [11, 12, 0]]]
    assert interleave(X, Y3).tolist() == [[[1, 2, 0], [5, 6, 7], [3, 4, 0], [8, 9, 10]]]
    assert interleave(X, Y1, Q[:, None]).tolist() == [[[1, 2], [5, 0], [3, 4], [6, 0], [11, 12]]]
    assert interleave(X[:, :0], Y1[:, :0], Q).tolist() == [[[11, 12]]]


def test_constructed_tokens():
    """[x_k y_k, x_{k+1}]."""
    assert constructed(X, Y1, Q).tolist() == [[[5, 10, 3, 4], [18, 24, 11, 12]]]
    with pytest.raises(ValueError, match="y has 3 targets; the constructed layout takes one"):
        constructed(X, Y3, Q)


def test_concatenated_tokens():
    assert concatenated(X, Y3, Q).tolist() == [[[1, 2, 5, 6, 7], [3, 4, 8, 9, 10], [11, 12, 0, 0, 0]]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_wrong_shapes_are_named(name):
    with pytest.raises(ValueError, match=r"x must be \(B, N, d_x\) and y \(B, N, d_y\), got \(1, 2, 2\) and \(1, 1, 1\)"):
        LAYOUTS[name](X, Y1[:, :1], Q)
    with pytest.raises(ValueError, match=r"x_query must be \(1, 2\), one query per context, got \(1, 3, 2\); .*as_predictor"):
        LAYOUTS[name](X, Y1, torch.ones(1, 3, 2))
    with pytest.raises(ValueError, match=r"x_query must be \(1, 2\).* got \(1, 3\)"):
        LAYOUTS[name](X, Y1, torch.ones(1, 3))


class Attention(nn.Module):
    """Linear attention by hand on concatenated tokens [x, y]: outputs y-weighted sums at every token, perhaps with a state."""

    def __init__(self, d_x, shape):
        super().__init__()
        self.d_x, self.shape = d_x, shape

    def forward(self, tokens):
        x, y = tokens[..., : self.d_x], tokens[..., self.d_x :]
        out = torch.tril(x @ x.mT) @ y / (tokens.shape[1] - 1)
        return {
            "(B, d_y)": out[:, -1],
            "(B, K, d_y)": out,
            "with a state": (out, None),
            "wider": (out.repeat(1, 1, 2), None),
        }[self.shape]


@pytest.mark.parametrize("shape", ["(B, d_y)", "(B, K, d_y)", "with a state", "wider"])
def test_modules_of_any_output_shape_become_predictors(shape):
    context = Context(normal(3, 6, 4), normal(3, 6, 2, seed=1), normal(3, 5, 4, seed=2))
    wanted = learners.gradient_descent(context.x, context.y, context.x_query, lr=1.0)
    for layout in ("concatenated", concatenated):
        assert ratio(as_predictor(Attention(4, shape), layout)(context), wanted) <= 1e-13


def random_gdssm(d, **options):
    layer = GDSSM(d, n_heads=2, dtype=DOUBLE, **options)
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(normal(*p.shape, seed=20 + i) - 1.0 * (p is layer.decay.log_rate))
    return layer


def readout(d_y):
    torch.manual_seed(0)
    return IteratedReadout(3, decay="head", normalize=True, skip=True, d_model=max(4, d_y), dtype=DOUBLE)


@pytest.mark.parametrize("d_y", [2, 6])
@pytest.mark.parametrize("name", ["gdssm", "no key map", "iterated", "in context", "minibatch", "construction", "function"])
def test_several_queries_are_each_query_alone(name, d_y):
    """One prediction (B, M, d_y) whether the module can answer from a state or the context is repeated; queries share nothing."""
    d = max(4, d_y)
    module = {
        "gdssm": lambda: random_gdssm(d, key_map=True, feedthrough=True, normalize=True),
        "no key map": lambda: random_gdssm(d, decay="row"),
        "iterated": lambda: readout(d_y),
        "in context": lambda: InContextModel(random_gdssm(d), 4, d_y),
        "minibatch": lambda: construct.minibatch(4, d_y, lr=0.1, batch=2, dtype=DOUBLE),
        "construction": lambda: construct.gradient_descent(4, d_y, lr=0.1, n_context=6, steps=3, w0=normal(d_y, 4), dtype=DOUBLE),
        "function": lambda: nn.Linear(d, d, dtype=DOUBLE),
    }[name]()
    context = Context(normal(3, 6, 4), normal(3, 6, d_y, seed=1), normal(3, 5, 4, seed=2))
    predictor = as_predictor(module)
    several = predictor(context)
    assert several.shape == (3, 5, d_y)
    for m in range(5):
        alone = predictor(Context(context.x, context.y, context.x_query[:, m]))
        assert ratio(several[:, m : m + 1], alone) <= 1e-12
        tokens = interleave(context.x, context.y, context.x_query[:, m])
        out = module.last(tokens) if hasattr(module, "last") else module(tokens)
        out = out[:, -1] if out.ndim == 3 else out
        assert ratio(alone[:, 0], out[:, :d_y]) <= 1e-12


def test_several_queries_in_the_constructed_layout():
    context = Context(normal(3, 6, 4), normal(3, 6, 1, seed=1), normal(3, 5, 4, seed=2))
    module = construct.constructed_tokens(4, lr=0.5, n_context=6, dtype=DOUBLE)
    wanted = learners.gradient_descent(context.x, context.y, context.x_query, lr=0.5)
    assert ratio(as_predictor(module, "constructed")(context), wanted) <= 1e-13


@pytest.mark.parametrize(("queries", "message"), [(1, "no window of 3 tokens ends in sequence 0"), (3, "completes no window")])
def test_a_context_without_examples_is_an_error(queries, message):
    model = construct.gradient_descent(4, 2, lr=0.1, n_context=None, dtype=DOUBLE)
    with pytest.raises(ValueError, match=message):
        as_predictor(model)(Context(normal(3, 0, 4), normal(3, 0, 2), normal(3, queries, 4)))


def test_wrong_predictors_are_named():
    with pytest.raises(ValueError, match="layout is 'interleave'; allowed: interleaved, constructed, concatenated, or a function"):
        as_predictor(nn.Identity(), "interleave")
    context = Context(normal(2, 3, 4), normal(2, 3, 6), normal(2, 4))
    with pytest.raises(ValueError, match=r"module gave an output of shape \(2, 5\); it must be \(2, 6\)"):
        as_predictor(lambda tokens: torch.ones(2, 5))(context)
    with pytest.raises(ValueError, match=r"module gave an output of shape \(3, 6\)"):
        as_predictor(lambda tokens: torch.ones(3, 6))(context)
    with pytest.raises(ValueError, match=r"module gave an output of shape \(2,\)"):
        as_predictor(lambda tokens: torch.ones(2))(context)
    with pytest.raises(ValueError, match="layer has d_model 3; d_x = 4 and d_y = 6 need at least 6"):
        as_predictor(GDSSM(3))(context)
    with pytest.raises(TypeError, match="a MinibatchReadout reads one query per context"):
        InContextModel(MinibatchReadout(2), 4, 2).answer(torch.ones(1, 4, 4), torch.ones(1, 2, 4))
