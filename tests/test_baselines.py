"""The baselines against loops in NumPy, closed forms, dense matrices and other programs."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from baseline_loops import gated_attention_loop, gated_rnn_loop, linear_attention_loop, rg_lru_loop, s5_loop, weights
from gdssm import GDSSM, LinearRegression, as_predictor, baselines, construct, learners, theory
from gdssm.baselines import (
    RGLRU,
    S5,
    GatedLinearAttention,
    GatedRNN,
    LinearAttention,
    Stack,
    WindowFront,
    build,
    from_gdssm,
    recurrences,
)
from gdssm.baselines.s5 import hippo_normal
from gdssm.config import ConfigError
from gdssm.ensemble import Ensemble
from gdssm.tokens import concatenated, interleave
from plain import array, ratio

DOUBLE = torch.float64


def noisy(layer, seed=0, size=0.5):
    """The layer in float64, its parameters moderate noise."""
    g = torch.Generator().manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(size * torch.randn(p.shape, generator=g, dtype=DOUBLE))
    return layer


def stream(batch, length, features, seed=1):
    return torch.randn(batch, length, features, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


CASES = {
    "linear attention": (lambda: LinearAttention(4, n_heads=2, d_key=3, d_value=2, d_out=5), linear_attention_loop),
    "S5": (lambda: S5(4, n_state=6), s5_loop),
    "S5 glu": (lambda: S5(4, gate="glu"), s5_loop),
    "S5 input": (lambda: S5(4, gate="input"), s5_loop),
    "RG-LRU": (lambda: RGLRU(4), rg_lru_loop),
    "RG-LRU gated": (lambda: RGLRU(4, output_gate=True, c=3.0), rg_lru_loop),
    "GLA": (lambda: GatedLinearAttention(4, n_heads=2, d_key=3, tau=2.0), gated_attention_loop),
    "GLA head": (lambda: GatedLinearAttention(4, n_heads=2, gate="head", tau=1.0), gated_attention_loop),
    "DeltaNet": (lambda: GatedLinearAttention(4, n_heads=2, d_value=3, gate="none", delta=True), gated_attention_loop),
    "gated DeltaNet": (lambda: GatedLinearAttention(4, gate="head", delta=True), gated_attention_loop),
    "gated DeltaNet by row": (lambda: GatedLinearAttention(4, gate="row", delta=True, tau=1.0), gated_attention_loop),
    "gated RNN": (lambda: GatedRNN(4, n_state=5, n_products=6, d_out=3), gated_rnn_loop),
    "gated RNN input": (lambda: GatedRNN(4, readout="input", feedthrough=True), gated_rnn_loop),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 21, 150])
def test_layers_are_their_definitions(name, length):
    """Outputs and the last state, over lengths of several chunks."""
    make, loop = CASES[name]
    layer, tokens = noisy(make()), stream(2, length, 4)
    out, state = layer(tokens)
    wanted = [loop(layer, array(tokens[b])) for b in range(2)]
    assert ratio(out, np.stack([o for o, _ in wanted])) <= 1e-12
    assert ratio(state, np.stack([z for _, z in wanted])) <= 1e-12


@pytest.mark.parametrize("name", CASES)
def test_float32_is_close(name):
    make, loop = CASES[name]
    single = noisy(make()).float()
    tokens = stream(1, 150, 4).float()
    assert ratio(single(tokens)[0][0], loop(single, array(tokens[0]))[0]) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_random_weights_depend_on_the_generator_alone(name):
    """And give finite outputs over a long stream."""
    a, b = CASES[name][0](), CASES[name][0]()
    for layer in (a, b):
        layer.reset_parameters(torch.Generator().manual_seed(3))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)
    b.reset_parameters(torch.Generator().manual_seed(4))
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert bool(torch.isfinite(a(stream(1, 1000, 4).float())[0]).all())


# Recurrences


def test_diagonal_is_safe_for_tiny_and_zero_decays():
    """Cumulative products and quotients of them would overflow or divide by zero."""
    a = torch.tensor([0.0, 1e-30, 1e-3, 1.0]).expand(2, 200, 4)
    m = stream(2, 200, 4).float()
    got, last = recurrences.diagonal(a, m, torch.ones(2, 4))
    z, wanted = np.ones((2, 4)), []
    for t in range(200):
        z = array(a)[:, t] * z + array(m)[:, t]
        wanted.append(z)
    assert ratio(got, np.stack(wanted, 1)) <= 1e-6
    assert torch.equal(got[:, -1], last)


@pytest.mark.parametrize("per_row", [True, False])
def test_attention_is_safe_for_tiny_decays(per_row):
    """log Lambda = -100 at every token: 40 of them are e^-4000, and gradients stay finite."""
    q, k, v = (stream(2, 40, 3, seed).float()[:, None].requires_grad_() for seed in (1, 2, 3))
    log = torch.full((2, 1, 40, 3 if per_row else 1), -100.0, requires_grad=True)
    z = torch.zeros(2, 1, 3, 3)
    out, _ = recurrences.attention(q, k, v, z, log)
    assert ratio(out, (q * k).sum(-1, keepdim=True) * v) <= 1e-6  # nothing but the last token is left
    for gradient in torch.autograd.grad(out.sum(), [q, k, v, log]):
        assert bool(torch.isfinite(gradient).all())


def test_shut_gates_have_finite_gradients():
    """A recurrence gate that underflows to 0 leaves Lambda = 1 and takes nothing in."""
    layer = RGLRU(2)
    with torch.no_grad():
        layer.b_r.fill_(-1e4)
    tokens = torch.ones(1, 5, 2, requires_grad=True)
    out, _ = layer(tokens, torch.full((1, 2), 3.0))
    assert torch.equal(out, torch.full((1, 5, 2), 3.0))
    for gradient in torch.autograd.grad(out.sum(), [tokens, *layer.parameters()]):
        assert bool(torch.isfinite(gradient).all())


# S5: HiPPO and the hold


def legs(n):
    """The matrix of HiPPO-LegS as its paper has it."""
    a = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            a[i, j] = -math.sqrt((2 * i + 1) * (2 * j + 1)) if i > j else -(i + 1) if i == j else 0
    return a


@pytest.mark.parametrize("n", [2, 8, 40])
def test_hippo_is_its_dense_matrix(n):
    p = np.sqrt(np.arange(n) + 0.5)
    normal = legs(n) + np.outer(p, p)
    assert np.allclose(normal @ normal.T, normal.T @ normal, atol=1e-10 * n**2)
    rates, angles, vectors = hippo_normal(n)
    wanted = np.linalg.eigvals(normal)
    wanted = wanted[wanted.imag > 0]
    wanted = wanted[np.argsort(wanted.imag)]
    assert ratio(angles, wanted.imag) <= 1e-12
    assert ratio(-rates, wanted.real) <= 1e-12
    v = vectors.numpy()
    assert np.abs(normal @ v - v * (array(-rates) + 1j * array(angles))).max() <= 1e-11 * n
    assert np.abs(v.conj().T @ v - np.eye(n // 2)).max() <= 1e-12


def test_zero_order_hold_is_the_matrix_exponential():
    """exp([[l, 1], [0, 0]] step) holds Lambda and (Lambda - 1)/l; in float32 small steps keep their digits."""
    rate, angle = torch.tensor([0.5, 0.5, 2.0]).double(), torch.tensor([0.0, 3.0, 1e3]).double()
    for step in (1e-6, 1e-3, 0.1, 3.0):
        steps = torch.full((3,), step, dtype=DOUBLE)
        decay, gain = recurrences.zero_order_hold(rate, angle, steps)
        decay32, gain32 = recurrences.zero_order_hold(rate.float(), angle.float(), steps.float())
        for n in range(3):
            dense = scipy.linalg.expm(np.array([[-rate[n] + 1j * angle[n], 1], [0, 0]]) * step)
            assert abs(dense[0, 0] - complex(decay[n])) <= 1e-12
            assert abs(dense[0, 1] - complex(gain[n])) <= 1e-12 * abs(dense[0, 1])
            if angle[n] * step <= 10:  # float32 cannot hold larger angles to 1e-6
                assert abs(dense[0, 0] - complex(decay32[n])) <= 2e-6
                assert abs(dense[0, 1] - complex(gain32[n])) <= 2e-6 * abs(dense[0, 1])


def test_s5_is_the_dense_system_at_the_start():
    """z' = A z + B s with the normal part of HiPPO as A, held over one step: the same outputs, for one step size."""
    layer = S5(3, n_state=8, step_min=0.05, step_max=0.05, dtype=DOUBLE)
    _, _, vectors = hippo_normal(8)
    v = np.concatenate([vectors.numpy(), vectors.numpy().conj()], axis=1)
    p = weights(layer)
    half_b, half_c = p["b"][0] + 1j * p["b"][1], p["c"][0] + 1j * p["c"][1]
    b = v @ np.concatenate([half_b, half_b.conj()])
    c = np.concatenate([half_c, half_c.conj()], axis=1) @ v.conj().T
    assert max(np.abs(b.imag).max(), np.abs(c.imag).max()) <= 1e-12  # a real system
    root = np.sqrt(np.arange(8) + 0.5)
    a = legs(8) + np.outer(root, root)
    a_bar = scipy.linalg.expm(0.05 * a)
    b_bar = np.linalg.solve(a, a_bar - np.eye(8)) @ b.real
    tokens, z, wanted = stream(1, 60, 3), np.zeros(8), []
    for s in array(tokens[0]):
        z = a_bar @ z + b_bar @ s
        wanted.append(c.real @ z + p["f"] * s)
    assert ratio(layer(tokens)[0][0], np.array(wanted)) <= 1e-11


# RG-LRU


def test_rg_lru_starts_as_published():
    layer = RGLRU(2000)
    at_open_gate = torch.exp(-8 * torch.nn.functional.softplus(layer.theta.detach().double()))
    squares = np.sort(array(at_open_gate**2))
    assert 0.81 <= squares[0] <= 0.811
    assert 0.9975 <= squares[-1] <= 0.998002
    assert abs(squares.mean() - (0.81 + 0.998001) / 2) <= 5 * (0.188 / math.sqrt(12 * 2000))  # uniform


def test_rg_lru_is_that_of_transformers():
    """Their unit as it is after the first token, whose input they do not scale; one head makes the gates full matrices."""
    module = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    config = module.RecurrentGemmaConfig(hidden_size=6, lru_width=6, num_attention_heads=1)
    theirs, ours = module.RecurrentGemmaRglru(config), noisy(RGLRU(6)).float()
    with torch.no_grad():
        theirs.recurrent_param.copy_(ours.theta)
        theirs.input_gate_weight.copy_(ours.w_i.T)
        theirs.input_gate_bias.copy_(ours.b_i)
        theirs.recurrent_gate_weight.copy_(ours.w_r.T)
        theirs.recurrent_gate_bias.copy_(ours.b_r)
        tokens = stream(2, 30, 6).float()
        wanted = theirs(tokens, 1 + torch.arange(30).expand(2, -1))
    assert ratio(ours(tokens)[0], wanted) <= 1e-6


# Attention as gradient descent


def one_step_attention(d_x, d_y, rate):
    """Von Oswald et al.: keys and queries are the inputs, values rate times the targets; outputs begin with the prediction."""
    layer = LinearAttention(d_x + d_y, d_key=d_x, d_value=d_y, d_out=d_y, dtype=DOUBLE)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.w_q[0, :, :d_x] = layer.w_k[0, :, :d_x] = torch.eye(d_x)
        layer.w_v[0, :, d_x:] = rate * torch.eye(d_y, dtype=DOUBLE)
        layer.c[0] = torch.eye(d_y)
    return layer


@pytest.mark.parametrize(("d_x", "d_y"), [(5, 3), (3, 5), (10, 10), (4, 1)])
def test_linear_attention_can_be_one_gradient_step(d_x, d_y):
    context = LinearRegression(d_x=d_x, d_y=d_y, n_examples=12, n_queries=2).sample(16, seed=0, dtype=DOUBLE)
    expected = learners.predictor(learners.gradient_descent, lr=2.0)(context)
    got = as_predictor(one_step_attention(d_x, d_y, 2.0 / 12), "concatenated")(context)
    assert ratio(got, expected) <= 1e-12


def delta_of_pairs(d, lr):
    """On windows (x_k, y_k, x_{k+1}): key g x_k, value g y_k, query x_{k+1}, beta = 1/2; g^2 = 2 lr makes the rate lr."""
    layer = GatedLinearAttention(3 * d, d_key=d, d_value=d, d_out=d, gate="none", delta=True, normalize_keys=False, dtype=DOUBLE)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        root = math.sqrt(2 * lr)
        layer.w_k[0, :, :d] = root * torch.eye(d, dtype=DOUBLE)
        layer.w_v[0, :, d : 2 * d] = root * torch.eye(d, dtype=DOUBLE)
        layer.w_q[0, :, 2 * d :] = torch.eye(d)
        layer.c[0] = torch.eye(d)
    return Stack([layer], front=WindowFront(d, window=3, stride=2))


@pytest.mark.parametrize("n_examples", [1, 7, 100])
def test_the_delta_rule_is_gradient_descent_one_example_at_a_time(n_examples):
    """Over lengths of several chunks; and at every window, for the examples so far."""
    context = LinearRegression(d_x=4, d_y=4, n_examples=n_examples).sample(16, seed=0, dtype=DOUBLE)
    tokens = interleave(context.x, context.y, context.x_query[:, 0])
    model = delta_of_pairs(4, lr=1.5)
    out, _ = model(tokens)
    assert out.shape[1] == n_examples
    for n in {1, n_examples // 2 or 1, n_examples}:
        query = context.x_query[:, 0] if n == n_examples else context.x[:, n]
        expected = learners.minibatch(context.x[:, :n], context.y[:, :n], query, lr=1.5, batch=1)
        assert ratio(out[:, n - 1], expected) <= 1e-12
    expected = learners.predictor(learners.minibatch, lr=1.5, batch=1)(context)
    assert ratio(as_predictor(model)(context), expected) <= 1e-12


# The gated RNN as GDSSM


LAYERS = {
    "published": {"decay": "full"},
    "no decay": {"decay": "none"},
    "two heads, all matrices": {"decay": "row", "n_heads": 2, "key_map": True, "feedthrough": True},
    "four taps, stride 1": {"decay": "head", "n_heads": 2, "window": 4, "stride": 1},
}


@pytest.mark.parametrize("readout", ["state", "input"])
@pytest.mark.parametrize("case", LAYERS)
def test_a_gated_rnn_can_be_gdssm(case, readout):
    """Every window's output, for noise as weights, whole and in two pieces."""
    ours = noisy(GDSSM(3, **LAYERS[case]))
    rnn = from_gdssm(ours, readout=readout)
    front = WindowFront(3, window=ours.window, stride=ours.stride)
    tokens = stream(4, 21, 3)
    wanted = ours(tokens)[0]
    padded = torch.cat([torch.zeros(4, ours.window - 1, 3).double(), tokens], dim=1)
    wanted = ours(padded)[0] if ours.stride == 1 else wanted  # with stride 1 the front starts with zeros
    model = Stack([rnn], front=front)
    first, state = model(tokens[:, :8])
    second, _ = model(tokens[:, 8:], state)
    assert ratio(model(tokens)[0], wanted) <= 1e-10
    assert ratio(torch.cat([first, second], dim=1), wanted) <= 1e-10


@pytest.mark.parametrize("readout", ["state", "input"])
def test_a_gated_rnn_can_be_one_gradient_step(readout):
    """Through the construction of GDSSM, against the explicit learner; its size beside ours."""
    d = 5
    ours = construct.gradient_descent(d, d, lr=2.0, n_context=10, dtype=DOUBLE)
    rnn = from_gdssm(ours.layer, readout=readout)
    context = LinearRegression(d_x=d, d_y=d, n_examples=10, n_queries=2).sample(16, seed=0, dtype=DOUBLE)
    expected = learners.predictor(learners.gradient_descent, lr=2.0)(context)
    got = as_predictor(Stack([rnn], front=WindowFront(d, stride=2)))(context)
    assert ratio(got, expected) <= 1e-12
    n, g, reads = (d * d + d, d * d, d * d + d) if readout == "state" else (d * d, d * d, 3 * d)
    assert rnn.state_size == n
    assert baselines.parameter_count(rnn) == 2 * n * 3 * d + 3 * n + g * (n + reads) + d * g
    assert baselines.parameter_count(ours) == 9 + 3 + d * d


def test_a_layer_that_holds_nothing_has_a_gated_rnn():
    ours = noisy(GDSSM(2, feedthrough=True))
    with torch.no_grad():
        ours.w_q.zero_()
    tokens = stream(2, 9, 2)
    got = Stack([from_gdssm(ours)], front=WindowFront(2, stride=2))(tokens)[0]
    assert ratio(got, ours(tokens)[0]) <= 1e-12


def test_from_gdssm_says_what_it_cannot():
    with pytest.raises(ValueError, match="normalize divides by a count"):
        from_gdssm(GDSSM(2, normalize=True))
    with pytest.raises(ValueError, match="readout is 'token'; allowed: state, input"):
        from_gdssm(GDSSM(2), readout="token")


# The front and stacks


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("filters", [None, 0, 2])
def test_the_front_is_its_definition(stride, filters):
    front = noisy(WindowFront(3, window=3, stride=stride, filters=filters, products=2))
    tokens = stream(2, 11, 3)
    u = np.eye(3) if filters is None else array(front.u)
    for b in range(2):
        s = array(tokens[b])
        s = np.concatenate([np.zeros((2, 3)), s]) if stride == 1 else s
        wanted = []
        for start in range(0, len(s) - 2, stride):
            window = s[start : start + 3]
            rows = [window.T @ taps for taps in u]
            rows += [(window.T @ w @ window).flatten() for w in array(front.w)]
            wanted.append(np.concatenate(rows))
        assert ratio(front(tokens)[0][b], np.array(wanted)) <= 1e-12
        assert front.d_out == len(wanted[0])


def test_window_products_are_the_input_gate_of_gdssm():
    """What Z of a layer without decay adds up is the sum of the front's products."""
    ours = noisy(GDSSM(3, decay="none"))
    front = WindowFront(3, stride=2, filters=0, products=1, dtype=DOUBLE)
    with torch.no_grad():
        front.w.copy_(ours.w_q)
    tokens = stream(2, 11, 3)
    assert ratio(front(tokens)[0].sum(1).view(2, 1, 3, 3), ours(tokens)[1].z) <= 1e-12


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", baselines.BASELINES)
def test_stacks_are_their_parts(name, residual):
    """Front, projection, two layers with or without residual, projection; init_state and sizes."""
    front = noisy(WindowFront(4, stride=2, filters=2))
    stack = build(name, 4, 3, d_model=5, n_layers=2, front=front, residual=residual, dtype=DOUBLE)
    tokens = 0.5 * stream(2, 9, 4)
    h = front(tokens)[0] @ stack.w_in.T
    for layer in stack.layers:
        h = layer(h)[0] + (h if residual else 0)
    wanted = h @ stack.w_out.T
    assert ratio(stack(tokens)[0], wanted) <= 1e-12
    assert ratio(stack(tokens, stack.init_state(2))[0], wanted) <= 1e-12
    assert ratio(stack.last(tokens), stack(tokens)[0][:, -1]) <= 1e-12
    assert torch.equal(baselines.LastOutput(stack, 2)(tokens), stack.last(tokens)[:, :2])
    assert stack.state_size == 2 * 4 + 2 * stack.layers[0].state_size
    assert sum(t.numel() for t in stack.init_state(1)[1:]) == 2 * stack.layers[0].state_size


def test_a_stack_is_reproducible_from_a_generator():
    a, b = (build("s5", 3, 2, front=WindowFront(3, filters=2)) for _ in range(2))
    for stack in (a, b):
        stack.reset_parameters(torch.Generator().manual_seed(0))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


SIZES = {  # layer of D features: parameters, state (docs/baselines.md)
    "linear_attention": (LinearAttention, {}, lambda d: 4 * d * d, lambda d: d * d),
    "two heads": (LinearAttention, {"n_heads": 2}, lambda d: 8 * d * d, lambda d: 2 * d * d),
    "s5": (S5, {"n_state": 8}, lambda d: 12 + 16 * d + d, lambda d: 8),
    "s5 gate": (S5, {"n_state": 8, "gate": "glu"}, lambda d: 12 + 16 * d + d + d * d, lambda d: 8),
    "rg_lru": (RGLRU, {}, lambda d: 2 * d * d + 3 * d, lambda d: d),
    "rg_lru gate": (RGLRU, {"output_gate": True}, lambda d: 3 * d * d + 3 * d, lambda d: d),
    "row": (GatedLinearAttention, {}, lambda d: 5 * d * d + d, lambda d: d * d),
    "head": (GatedLinearAttention, {"gate": "head"}, lambda d: 4 * d * d + d + 1, lambda d: d * d),
    "delta": (GatedLinearAttention, {"gate": "none", "delta": True}, lambda d: 4 * d * d + d + 1, lambda d: d * d),
    "gated_rnn": (
        GatedRNN,
        {"n_state": 7, "n_products": 6},
        lambda d: 2 * 7 * d + 3 * 7 + 2 * 6 * 7 + 6 * d,
        lambda d: 7,
    ),
    "gated_rnn input": (
        GatedRNN,
        {"n_state": 7, "n_products": 6, "readout": "input"},
        lambda d: 2 * 7 * d + 3 * 7 + 6 * 7 + 6 * d + 6 * d,
        lambda d: 7,
    ),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("d", [3, 10])
def test_sizes_are_those_of_the_docs(name, d):
    make, options, parameters, state = SIZES[name]
    layer = make(d, **options)
    assert baselines.parameter_count(layer) == parameters(d)
    assert layer.state_size == state(d) == layer.init_state(1).numel()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearAttention(0), "d_model must be an integer >= 1, got 0"),
        (lambda: LinearAttention(3, n_heads=0), "n_heads must be an integer >= 1, got 0"),
        (lambda: LinearAttention(3, d_out=0), "d_out must be an integer >= 1, got 0"),
        (lambda: GatedLinearAttention(3, gate="rows"), "gate is 'rows'; allowed: row, head, none"),
        (lambda: GatedLinearAttention(3, tau=0.0), "tau must be > 0, got 0.0"),
        (lambda: S5(3, n_state=5), "n_state must be even, got 5"),
        (lambda: S5(3, gate="swish"), "gate is 'swish'; allowed: none, glu, input"),
        (lambda: S5(3, step_min=0.2), "step_min and step_max must satisfy .* got 0.2 and 0.1"),
        (lambda: RGLRU(3, c=-1), "c must be > 0, got -1"),
        (lambda: GatedRNN(3, readout="token"), "readout is 'token'; allowed: state, input"),
        (lambda: GatedRNN(3, n_state=0), "n_state must be an integer >= 1, got 0"),
        (lambda: WindowFront(3, filters=0), "filters and products must not both be 0"),
        (lambda: WindowFront(3, products=-1), "products must be an integer >= 0, got -1"),
        (lambda: WindowFront(3, window=0), "window must be an integer >= 1, got 0"),
        (lambda: Stack([]), "layers must hold at least one layer"),
        (lambda: Stack([RGLRU(3)], front=WindowFront(3)), "layers read 3 features, the front gives 9"),
        (lambda: Stack([RGLRU(9)], front=WindowFront(3), d_in=4), "d_in is 4, the front reads 3 features"),
        (lambda: Stack([RGLRU(3), RGLRU(4)]), "one of 4 -> 4 features cannot follow 3 features"),
        (lambda: Stack([LinearAttention(3, d_out=2)], residual=True), "one of 3 -> 2 features cannot follow 3 features"),
        (lambda: build("s5", 3, 3, n_layers=0), "n_layers must be an integer >= 1, got 0"),
        (lambda: baselines.LastOutput(RGLRU(3), 4), "layer has 3 outputs, d_y = 4"),
        (lambda: RGLRU(3).init_state(0), "batch_size must be an integer >= 1, got 0"),
        (lambda: RGLRU(3)(torch.ones(2, 5, 4)), r"tokens must be \(B, T, 3\), got shape \(2, 5, 4\)"),
        (lambda: RGLRU(3)(torch.ones(2, 5, 3), torch.ones(1, 3)), r"state must be \(2, 3\), got shape \(1, 3\)"),
        (lambda: RGLRU(3).last(torch.ones(2, 0, 3)), "no output ends in them"),
        (lambda: build("s5", 3, 3)(torch.ones(2, 5, 3), ()), "state has 0 parts, this stack has 1"),
        (lambda: WindowFront(3)(torch.ones(2, 5, 3), WindowFront(3).init_state(1)), "state is for 1 sequences, tokens have 2"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_names_and_other_types():
    with pytest.raises(ConfigError, match=r"name is 'rglru' \(did you mean 'rg_lru'\?\); allowed: linear_attention, s5"):
        build("rglru", 3, 3)
    with pytest.raises(TypeError, match="layers must be baselines' sequence layers, got GDSSM"):
        Stack([GDSSM(3)])
    for module in (RGLRU(3), WindowFront(3), build("s5", 3, 3)):
        with pytest.raises(TypeError, match=r"tokens must be a floating-point tensor, got torch.int64"):
            module(torch.ones(1, 2, 3, dtype=torch.int64))


# Training


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_many_copies_train_as_one_program(name):
    """Two copies behind a front in an ensemble: the predictions and gradients of each alone."""
    models = [
        baselines.LastOutput(build(name, 3, 3, n_layers=2, front=WindowFront(3, stride=2, products=1)), d_y=2) for _ in range(2)
    ]
    for seed, model in enumerate(models):
        model.layer.reset_parameters(torch.Generator().manual_seed(seed))
    copies = Ensemble([model.double() for model in models])
    tokens = stream(4, 9, 3)
    prediction = copies(tokens)
    copies.differentiate(prediction.square().sum())
    for s, model in enumerate(models):
        own = model(tokens)
        assert ratio(prediction[s], own) <= 1e-12
        gradients = torch.autograd.grad(own.square().sum(), list(model.parameters()))
        assert ratio(copies.gradient[s], torch.cat([g.flatten() for g in gradients])) <= 1e-10


def test_linear_attention_learns_gradient_descent():
    """From random weights on concatenated tokens: within 5 % of the best that one step can reach, on fresh tasks."""
    d, n, steps = 3, 8, 250
    task = LinearRegression(d_x=d, d_y=1, n_examples=n)
    model = baselines.LastOutput(LinearAttention(d + 1, d_out=1), d_y=1)
    model.layer.reset_parameters(torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def loss(context):
        prediction = model(concatenated(context.x, context.y, context.x_query[:, 0]))
        return 0.5 * (prediction - context.y_query[:, 0]).square().mean()

    for step in range(steps):
        optimizer.zero_grad()
        loss(task.sample(128, seed=0, step=step)).backward()
        optimizer.step()
        schedule.step()
    test = task.sample(20_000, seed=1)
    rate, _ = theory.one_step_optimum(n, d, x_var=1 / 12, x_fourth_moment=1 / 80)
    step_of_gd = learners.gradient_descent(test.x, test.y, test.x_query, lr=rate)
    best = 0.5 * (step_of_gd - test.y_query).square().mean()
    zero = 0.5 * test.y_query.square().mean()
    with torch.no_grad():
        found = loss(test)
    assert best < 0.6 * zero
    assert found <= 1.05 * best
