"""gd_scan: every backend against the definition, the fast one against the reference with all gradients, and its edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdssm.ops import BACKENDS, ScanState, chunk_steps, chunked, gd_scan, linear, linear_scan
from gdssm.ops.chunk_products import Chunks
from plain import STRUCTURES, lambda_grid, log_decay_shape, ratio, scan

FAST = [name for name in BACKENDS if name != "reference"]


def count(tokens, width, stride):
    return max(0, (tokens - width) // stride + 1)


def draw(structure, *, batch=2, tokens=17, heads=2, features=3, width=3, stride=1, low=0.5, dtype=torch.float64, seed=0):
    """Random inputs of gd_scan with decays in [low, 1], every number representable in `dtype`; z is in float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    shape = log_decay_shape(structure, batch, count(tokens, width, stride), heads, features)
    return {
        "tokens": normal(batch, tokens, heads, features),
        "w_q": normal(heads, width, width),
        "d": normal(heads, width),
        "log_decay": None if shape is None else (torch.rand(shape, generator=g, dtype=torch.float64) * math.log(low)).to(dtype),
        "z": torch.randn(batch, heads, features, features, generator=g, dtype=torch.float64),
        "tail": normal(batch, width - 1, heads, features),
    }


def fresh_state(case):
    """Z_0 = z before any token."""
    return ScanState(case["z"], torch.zeros_like(case["tail"]), torch.zeros(len(case["z"]), dtype=torch.int64))


def expected(case, structure, *, stride, lengths=None):
    """Per sequence, from its own z and only its own tokens: a list of (outputs, z)."""
    answers = []
    for b, tokens in enumerate(case["tokens"].double().numpy()):
        tokens = tokens if lengths is None else tokens[: lengths[b]]
        windows = count(len(tokens), case["w_q"].shape[1], stride)
        log = case["log_decay"]
        if log is not None:
            log = (log[b, :windows] if structure == "input" else log).double().numpy()
        lam = lambda_grid(structure, log, windows, *tokens.shape[1:])
        w_q, d = case["w_q"].double().numpy(), case["d"].double().numpy()
        answers.append(scan(tokens, w_q, lam, d, stride=stride, z=case["z"][b].numpy()))
    return answers


def run(case, structure, *, stride, backend, state="z", lengths=None):
    state = fresh_state(case) if state == "z" else state
    return gd_scan(
        case["tokens"],
        case["w_q"],
        case["log_decay"],
        case["d"],
        stride=stride,
        state=state,
        lengths=lengths,
        backend=backend,
        structure=structure,
    )


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_state_are_the_definition(backend, structure, stride):
    case = draw(structure, tokens=70, stride=stride, seed=stride)
    out, state = run(case, structure, stride=stride, backend=backend)
    wanted = expected(case, structure, stride=stride)
    assert ratio(out, np.stack([o for o, _ in wanted])) <= 1e-12
    assert ratio(state.z, np.stack([z for _, z in wanted])) <= 1e-12
    assert torch.equal(state.tail, case["tokens"][:, -2:])
    assert state.seen.tolist() == [70, 70]


@st.composite
def split_cases(draw_value):
    """Shapes, a decay structure, and a stream in pieces: per piece its length and how much shorter each sequence is."""
    batch, heads, features, width = (draw_value(st.integers(1, n)) for n in (3, 3, 4, 5))
    stride = draw_value(st.integers(1, 4))
    sizes = draw_value(st.lists(st.one_of(st.integers(0, 2), st.integers(0, 25)), min_size=1, max_size=4))
    pieces = []
    for i, n in enumerate(sizes):
        unit = 1 if i == len(sizes) - 1 else stride  # sequences that go on keep the same phase of the stride
        short = draw_value(st.lists(st.integers(0, n // unit), min_size=batch, max_size=batch))
        pieces.append((n, [n - unit * s for s in short] if draw_value(st.booleans()) else None))
    options = {name: draw_value(st.sampled_from(values)) for name, values in (("structure", STRUCTURES), ("backend", [*BACKENDS]))}
    return batch, heads, features, width, stride, pieces, options, draw_value(st.integers(0, 2**32 - 1))


@settings(max_examples=150)
@given(split_cases())
def test_pieces_of_any_lengths_are_the_definition(drawn):
    """Every sequence gets what the plain loop gives for its own tokens, wherever the stream is cut and padded."""
    batch, heads, features, width, stride, pieces, options, seed = drawn
    structure, backend = options["structure"], options["backend"]
    case = draw(structure, batch=batch, tokens=1, heads=heads, features=features, width=width, low=0.3, seed=seed)
    rng = np.random.default_rng(seed)
    streams = [np.zeros((0, heads, features)) for _ in range(batch)]  # what each sequence has really read
    rates = [np.zeros((0, heads)) for _ in range(batch)]  # its input-dependent log decays
    state, w_q, d = fresh_state(case), case["w_q"].numpy(), case["d"].numpy()
    for n, lengths in pieces:
        before = [len(s) for s in streams]
        longest = max(before)
        ends = [e for e in range(n) if longest + e + 1 >= width and (longest + e + 1 - width) % stride == 0]
        read = [n] * batch if lengths is None else lengths
        tokens = rng.normal(size=(batch, n, heads, features))
        given_log = case["log_decay"]
        if structure == "input":
            given_log = torch.from_numpy(-rng.uniform(0, 1, size=(batch, len(ends), heads)))
        out, state = gd_scan(
            torch.from_numpy(tokens),
            case["w_q"],
            given_log,
            case["d"],
            stride=stride,
            state=state,
            lengths=None if lengths is None else torch.tensor(lengths),
            backend=backend,
            structure=structure,
        )
        wanted = np.zeros((batch, len(ends), heads, features))
        for b in range(batch):
            streams[b] = np.concatenate([streams[b], tokens[b, : read[b]]])
            own = [k for k, e in enumerate(ends) if e < read[b] and before[b] + e + 1 >= width]
            log = given_log
            if structure == "input":
                rates[b] = np.concatenate([rates[b], given_log[b, own].numpy()])
                log = rates[b]
            windows = count(len(streams[b]), width, stride)
            answers, z = scan(
                streams[b], w_q, lambda_grid(structure, log, windows, heads, features), d, stride=stride, z=case["z"][b].numpy()
            )
            wanted[b, own] = answers[windows - len(own) :]
            assert ratio(state.z[b], z) <= 1e-12
            last = np.concatenate([np.zeros((width - 1, heads, features)), streams[b]])[len(streams[b]) :]
            assert ratio(state.tail[b], last) == 0
        assert ratio(out, wanted) <= 1e-12
        assert state.seen.tolist() == [len(s) for s in streams]


def with_gradients(case, structure, *, stride, backend, upstream):
    """Outputs, last z and the gradient of every input, for sum(out * g) + sum(z * g_z)."""
    leaves = {name: t.clone().requires_grad_() for name, t in case.items() if name != "tail" and t is not None}
    inputs = {**case, **leaves}
    out, state = run(inputs, structure, stride=stride, backend=backend)
    g, g_z = upstream
    loss = (out * g.to(out.dtype)).sum() + (state.z * g_z).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"out": out, "state": state.z} | {f"d_{name}": value for name, value in zip(leaves, gradients, strict=True)}


LONG = [3, 5, 17, 64]
COMPARED = [
    *[(torch.float64, 1e-12, n, stride) for n in LONG for stride in (1, 2)],
    (torch.float64, 1e-12, 257, 1),  # several chunks of every backend
    *[(torch.float32, 1e-5, n, stride) for n, stride in ((5, 2), (64, 1), (1001, 2))],
    *[(torch.bfloat16, 8e-3, n, stride) for n, stride in ((5, 2), (64, 1), (257, 2))],
]


@pytest.mark.parametrize(("dtype", "tolerance", "tokens", "stride"), COMPARED)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", FAST)
def test_outputs_state_and_gradients_are_the_reference(backend, structure, dtype, tolerance, tokens, stride):
    """The reference runs in float64 on the same numbers; upstream gradients are representable in the outputs' dtype."""
    case = draw(structure, tokens=tokens, stride=stride, dtype=dtype, seed=tokens)
    g = torch.Generator().manual_seed(tokens + 1)
    upstream = (
        torch.randn(2, count(tokens, 3, stride), 2, 3, generator=g, dtype=torch.float64).to(dtype),
        torch.randn(2, 2, 3, 3, generator=g, dtype=torch.float64),
    )
    exact = {name: None if t is None else t.double() for name, t in case.items()}
    wanted = with_gradients(exact, structure, stride=stride, backend="reference", upstream=upstream)
    got = with_gradients(case, structure, stride=stride, backend=backend, upstream=upstream)
    assert got["out"].dtype == got["d_tokens"].dtype == dtype
    assert got["state"].dtype == torch.float64
    errors = {name: ratio(value, wanted[name]) for name, value in got.items()}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 1])])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, structure, lengths):
    """Tokens, weights, decays, and the Z and tail of an initial state."""
    names = ["tokens", "w_q", "d", "z", "tail"] + ["log_decay"] * (structure != "none")
    case = draw(structure, tokens=3, heads=1, features=2, width=2, seed=3)
    if structure == "input":  # a state with a tail: one window for each of the 3 tokens
        case["log_decay"] = draw(structure, tokens=4, heads=1, width=2, seed=4)["log_decay"]
    seen = torch.tensor([5, 5])

    def function(*inputs):
        given = dict(zip(names, inputs, strict=True))
        state = ScanState(given["z"], given["tail"], seen)
        out, after = run({**case, **given}, structure, stride=1, backend=backend, state=state, lengths=lengths)
        return out, after.z, after.tail

    assert torch.autograd.gradcheck(function, [case[name].clone().requires_grad_() for name in names])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_tokens(backend, structure):
    """Computed in float32 and rounded once: half a unit in the last place of float16, 2^-11."""
    case = draw(structure, tokens=65, dtype=torch.float16, seed=8)
    case = {**case, **{name: case[name] * 0.25 for name in ("tokens", "z")}}
    out, state = run(case, structure, stride=1, backend=backend)
    wanted = expected(case, structure, stride=1)
    assert out.dtype == torch.float16
    assert ratio(out, np.stack([o for o, _ in wanted])) <= 2**-11
    assert ratio(state.z, np.stack([z for _, z in wanted])) <= 1e-6


@pytest.mark.parametrize("value", [-50.0, -800.0, -math.inf])
@pytest.mark.parametrize("structure", STRUCTURES[1:])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_decays(backend, structure, value):
    """Every other entry forgets at once; nothing overflows, and gradients stay finite."""
    case = draw(structure, tokens=70, seed=9)
    case["log_decay"].view(-1)[::2] = value
    out, state = run(case, structure, stride=1, backend=backend)
    wanted = expected(case, structure, stride=1)
    assert ratio(out, np.stack([o for o, _ in wanted])) <= 1e-11
    assert ratio(state.z, np.stack([z for _, z in wanted])) <= 1e-11
    upstream = torch.ones_like(out), torch.ones_like(state.z)
    gradients = with_gradients(case, structure, stride=1, backend=backend, upstream=upstream)
    reference = with_gradients(case, structure, stride=1, backend="reference", upstream=upstream)
    assert max(ratio(gradients[name], reference[name]) for name in reference) <= 1e-11


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_streams_at_half_decay_stay_finite_in_float32(backend, structure):
    """0.5^-128 overflows float32, so no form may divide by a power of Lambda."""
    case = draw(structure, batch=1, tokens=400, seed=10, dtype=torch.float32)
    if case["log_decay"] is not None:
        case["log_decay"].fill_(math.log(0.5))
    out, state = run(case, structure, stride=1, backend=backend)
    ((wanted, z),) = expected(case, structure, stride=1)
    assert ratio(out[0], wanted) <= 1e-5
    assert ratio(state.z[0], z) <= 1e-5


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_never_read(backend, structure):
    """NaN past the lengths changes no output, state or gradient, and gets no gradient itself."""
    lengths = torch.tensor([20, 9, 1, 0])
    case = draw(structure, batch=4, tokens=20, seed=11)
    padding = torch.arange(20) >= lengths[:, None]
    dirty = {**case, "tokens": case["tokens"].masked_fill(padding[:, :, None, None], math.nan)}
    results = []
    for c in (case, dirty):
        tokens, w_q = c["tokens"].clone().requires_grad_(), c["w_q"].clone().requires_grad_()
        out, state = run({**c, "tokens": tokens, "w_q": w_q}, structure, stride=1, backend=backend, lengths=lengths)
        gradients = torch.autograd.grad((out**2).sum() + (state.z**2).sum() + (state.tail**2).sum(), (tokens, w_q))
        results.append([out, state.z, state.tail, *gradients])
    for clean, with_nan in zip(*results, strict=True):
        assert torch.equal(clean, with_nan)
    assert bool((results[1][3][padding] == 0).all())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_give_each_sequence_its_own_outputs_and_state(backend, structure):
    lengths = [21, 8, 3, 2]
    case = draw(structure, batch=4, tokens=21, stride=2, seed=12)
    out, state = run(case, structure, stride=2, backend=backend, lengths=torch.tensor(lengths))
    for b, (wanted, z) in enumerate(expected(case, structure, stride=2, lengths=lengths)):
        assert ratio(out[b, : len(wanted)], wanted) <= 1e-12
        assert torch.count_nonzero(out[b, len(wanted) :]) == 0
        assert ratio(state.z[b], z) <= 1e-12
        assert torch.equal(state.tail[b], case["tokens"][b, lengths[b] - 2 : lengths[b]])
    assert state.seen.tolist() == lengths


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_of_a_batch_of_one(backend, structure):
    """A single sequence with padding: no decay is applied after its end."""
    case = draw(structure, batch=1, tokens=40, seed=21)
    out, state = run(case, structure, stride=1, backend=backend, lengths=torch.tensor([23]))
    ((wanted, z),) = expected(case, structure, stride=1, lengths=[23])
    assert ratio(out[0, :21], wanted) <= 1e-12
    assert ratio(state.z[0], z) <= 1e-12


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_too_short_for_a_window_then_on(backend, structure):
    """K = 0 twice, then the window that all three pieces make up, with a log_decay of no windows at first."""
    case = draw(structure, batch=1, tokens=3, seed=13)
    state = fresh_state(case)
    for piece in (slice(0, 1), slice(1, 1), slice(1, 2)):
        part = {**case, "tokens": case["tokens"][:, piece]}
        if structure == "input":
            part["log_decay"] = case["log_decay"][:, :0]
        out, state = run(part, structure, stride=1, backend=backend, state=state)
        assert out.shape == (1, 0, 2, 3)
        assert torch.equal(state.z, case["z"])
    out, state = run({**case, "tokens": case["tokens"][:, 2:]}, structure, stride=1, backend=backend, state=state)
    ((wanted, z),) = expected(case, structure, stride=1)
    assert ratio(out[0], wanted) <= 1e-12
    assert ratio(state.z[0], z) <= 1e-12


@pytest.mark.parametrize("structure", ["none", "head", "row", "full"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_short_and_long_histories_go_on_together(backend, structure):
    """One sequence has seen 1 token, the other 7: in one batch each gets what it gets alone."""
    case = draw(structure, tokens=12, seed=14)
    lengths = torch.tensor([1, 7])
    _, state = run(case, structure, stride=1, backend=backend, lengths=lengths)
    more = draw(structure, tokens=5, seed=15)["tokens"]
    out, after = run({**case, "tokens": more}, structure, stride=1, backend=backend, state=state)
    assert after.seen.tolist() == [6, 12]
    for b, n in enumerate(lengths.tolist()):
        alone = {**case, "tokens": torch.cat([case["tokens"][b : b + 1, :n], more[b : b + 1]], dim=1), "z": case["z"][b : b + 1]}
        ((wanted, z),) = expected(alone, structure, stride=1)
        assert ratio(out[b, -min(5, len(wanted)) :], wanted[-5:]) <= 1e-12
        assert ratio(after.z[b], z) <= 1e-12
    assert torch.count_nonzero(out[0, 0]) == 0  # its second token completes no window


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_stream_shared_by_all_heads(backend):
    case = draw("head", seed=16)
    shared = {**case, "tokens": case["tokens"][:, :, :1]}
    copied = {**case, "tokens": case["tokens"][:, :, :1].expand(-1, -1, 2, -1)}
    out, state = run(shared, "head", stride=1, backend=backend)
    wanted = expected(copied, "head", stride=1)
    assert ratio(out, np.stack([o for o, _ in wanted])) <= 1e-12
    assert torch.equal(state.tail, copied["tokens"][:, -2:])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_replace_the_taps(backend, structure):
    case = draw(structure, tokens=40, stride=2, seed=17)
    queries = torch.randn(2, 19, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out, _ = gd_scan(
        case["tokens"], case["w_q"], case["log_decay"], None, stride=2, queries=queries, backend=backend, structure=structure
    )
    for b in range(2):
        log = case["log_decay"] if structure != "input" else case["log_decay"][b]
        grid = lambda_grid(structure, None if log is None else log.numpy(), 19, 2, 3)
        wanted, _ = scan(case["tokens"][b].numpy(), case["w_q"].numpy(), grid, None, stride=2, queries=queries[b].numpy())
        assert ratio(out[b], wanted) <= 1e-12


FACTORED = [
    (torch.float64, 1e-12, 5, 1, None),
    (torch.float64, 1e-12, 5, 2, [5, 3]),
    (torch.float64, 1e-12, 70, 2, None),
    (torch.float64, 1e-12, 70, 1, [67, 3]),
    (torch.float32, 1e-5, 70, 2, None),
]


@pytest.mark.parametrize(("dtype", "tolerance", "tokens", "stride", "lengths"), FACTORED)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_factors_of_the_gate_are_their_product(backend, structure, dtype, tolerance, tokens, stride, lengths):
    """Outputs, state and every gradient of w_q = (u, v) against w_q = u v^T in the float64 reference, after a state."""
    case = draw(structure, tokens=tokens, stride=stride, width=4, dtype=dtype, seed=tokens)
    begun = tokens < 70 and structure != "input"  # else as many windows as log_decay has
    state = ScanState(case["z"], case["tail"], torch.tensor([4, 4])) if begun else fresh_state(case)
    g = torch.Generator().manual_seed(1)
    case |= {name: torch.randn(2, 4, generator=g, dtype=torch.float64).to(dtype) for name in ("u", "v")}
    lengths = None if lengths is None else torch.tensor(lengths)

    def found(exact):
        leaves = {
            name: (t.double() if exact else t).clone().requires_grad_()
            for name, t in case.items()
            if t is not None and name not in ("w_q", "tail", "z")
        }
        given = {"log_decay": None, **leaves, "w_q": (leaves["u"], leaves["v"])}
        if exact:
            given["w_q"] = leaves["u"][:, :, None] * leaves["v"][:, None]
        out, after = run(given, structure, stride=stride, backend="reference" if exact else backend, state=state, lengths=lengths)
        g_out, g_z = (torch.randn(t.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) for t in (out, after.z))
        gradients = torch.autograd.grad((out * g_out.to(dtype)).sum() + (after.z * g_z).sum(), list(leaves.values()))
        return {"out": out, "z": after.z, "tail": after.tail} | dict(zip(leaves, gradients, strict=True))

    got, wanted = found(exact=False), found(exact=True)
    assert {name: ratio(value, wanted[name]) for name, value in got.items() if ratio(value, wanted[name]) > tolerance} == {}


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("structure", ["none", "head", "input"])
def test_small_blocks_of_the_chunked_form(structure, stride, monkeypatch):
    """Heads and sequences in several parts, many blocks per part, a short last chunk: as if in one block, with gradients."""
    case = draw(structure, batch=3, tokens=101, heads=3, stride=stride, seed=5)
    k = count(101, 3, stride)
    g = torch.Generator().manual_seed(6)
    upstream = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((3, k, 3, 3), (3, 3, 3, 3))]
    wanted = with_gradients(case, structure, stride=stride, backend="reference", upstream=upstream)
    monkeypatch.setattr(chunk_steps, "CHUNK", 9)
    for size in (1, 60, 200):
        monkeypatch.setattr(chunk_steps, "_STEP", size)
        monkeypatch.setattr(chunk_steps, "_CHUNKS", 2)
        got = with_gradients(case, structure, stride=stride, backend="chunked", upstream=upstream)
        assert {name: ratio(value, wanted[name]) for name, value in got.items() if ratio(value, wanted[name]) > 1e-12} == {}


@pytest.mark.parametrize("tokens", [21, 22, 40])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("given", ["taps", "queries", "factors"])
@pytest.mark.parametrize("structure", ["none", "head", "input"])
def test_chunks_that_are_filled_up_change_nothing(structure, given, stride, tokens, monkeypatch):
    """Without a state, windows are put before the first ones; some of them see real tokens. Outputs, Z, gradients."""
    case = draw(structure, tokens=tokens, stride=stride, low=0.3, seed=tokens)
    k = count(tokens, 3, stride)
    g = torch.Generator().manual_seed(7)
    case["u"], case["v"] = torch.randn(2, 2, 3, generator=g, dtype=torch.float64)
    case["queries"] = torch.randn(2, k, 2, 3, generator=g, dtype=torch.float64)
    g_out, g_z = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((2, k, 2, 3), (2, 2, 3, 3)))

    def found(backend):
        leaves = {name: t.clone().requires_grad_() for name, t in case.items() if t is not None and name not in ("z", "tail")}
        gate = (leaves["u"], leaves["v"]) if given == "factors" else leaves["w_q"]
        if backend == "reference" and given == "factors":
            gate = leaves["u"][:, :, None] * leaves["v"][:, None]
        asked = {"d": None, "queries": leaves["queries"]} if given == "queries" else {"d": leaves["d"]}
        log = leaves.get("log_decay")
        out, state = gd_scan(leaves["tokens"], gate, log, **asked, stride=stride, backend=backend, structure=structure)
        gradients = torch.autograd.grad((out * g_out).sum() + (state.z * g_z).sum(), list(leaves.values()), allow_unused=True)
        return {"out": out, "z": state.z} | {name: x for name, x in zip(leaves, gradients, strict=True) if x is not None}

    wanted = found("reference")
    monkeypatch.setattr(chunk_steps, "CHUNK", 8)
    filled = []
    monkeypatch.setattr(chunked, "filling", lambda *sizes: filled.append(chunk_steps.filling(*sizes)) or filled[-1])
    monkeypatch.setattr(chunk_steps, "_STEP", 60)
    monkeypatch.setattr(chunk_steps, "_CHUNKS", 2)
    got = found("chunked")
    assert {name: ratio(value, wanted[name]) for name, value in got.items() if ratio(value, wanted[name]) > 1e-12} == {}
    c = 4 if structure == "input" or given != "factors" else 8
    assert filled == [-k % c if k > c else 0]


@pytest.mark.parametrize("ndim", [0, 1, 3])
def test_linear_scan_without_a_state_is_the_one_from_zero(ndim, monkeypatch):
    """Chunks that are filled up against chunks that are not."""
    g = torch.Generator().manual_seed(8)
    keys, values, queries = (torch.randn(2, 21, 3, n, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 5, 4))
    log = None if ndim == 0 else -torch.rand((3,) if ndim == 1 else (2, 21, 3), generator=g, dtype=torch.float64)
    leaves = [keys, values, queries] + ([] if log is None else [log.requires_grad_()])
    g_out, g_z = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((2, 21, 3, 5), (2, 3, 4, 5)))
    monkeypatch.setattr(chunk_steps, "CHUNK", 8)
    filled = []
    monkeypatch.setattr(linear, "filling", lambda *sizes: filled.append(chunk_steps.filling(*sizes)) or filled[-1])

    def found(z):
        out, last = linear_scan(keys, values, queries, log, z=z)
        return [out, last, *torch.autograd.grad((out * g_out).sum() + (last * g_z).sum(), leaves)]

    for one, other in zip(found(None), found(torch.zeros(2, 3, 4, 5, dtype=torch.float64)), strict=True):
        assert ratio(one, other) <= 1e-12
    assert filled == [3]


def test_queries_of_one_head_are_not_changed():
    """With one head and one chunk they have the layout of the working copy."""
    case = draw("head", heads=1, tokens=9, seed=23)
    queries = torch.randn(2, 7, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = queries.clone()
    for lengths in (None, torch.tensor([9, 4])):
        gd_scan(case["tokens"], case["w_q"], case["log_decay"], None, queries=queries, lengths=lengths)
        assert torch.equal(queries, before)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_accumulation(backend, structure):
    case = draw(structure, tokens=300, dtype=torch.float32, seed=18)
    plain_out, plain_state = run(case, structure, stride=1, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = run(case, structure, stride=1, backend=backend)
    assert torch.equal(out, plain_out)
    assert torch.equal(state.z, plain_state.z)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_sums_do_not_stall(backend):
    """A running sum of ones in bfloat16 stays at 256."""
    state, one = None, torch.ones(1, 1, 1)
    for _ in range(4):
        _, state = gd_scan(torch.ones(1, 500, 1, 1, dtype=torch.bfloat16), one, None, one[0], state=state, backend=backend)
    assert float(state.z) == 2000


def test_inputs_and_state_are_not_changed():
    for structure in STRUCTURES:
        for backend in BACKENDS:
            case = draw(structure, seed=19)
            before = {name: None if t is None else t.clone() for name, t in case.items()}
            state = ScanState(case["z"], case["tail"], torch.tensor([2, 2]))
            piece = {**case, "tokens": case["tokens"][:, 2:]}
            run(piece, structure, stride=1, backend=backend, state=state, lengths=torch.tensor([15, 4]))
            assert all(t is None or torch.equal(t, before[name]) for name, t in case.items())
            assert state.seen.tolist() == [2, 2]


def test_auto_is_a_known_backend():
    case = draw("head", seed=20)
    out, _ = run(case, "head", stride=1, backend="auto")
    assert ratio(out, np.stack([o for o, _ in expected(case, "head", stride=1)])) <= 1e-12


GOOD = {"tokens": torch.ones(2, 5, 2, 3), "w_q": torch.ones(2, 3, 3), "log_decay": None, "d": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": torch.ones(2, 5, 3)}, ValueError, r"tokens must be \(B, T, H, D\), got shape \(2, 5, 3\)"),
        ({"tokens": torch.ones(2, 5, 2, 3, dtype=torch.int64)}, TypeError, "tokens must be floating point, got torch.int64"),
        ({"tokens": torch.ones(2, 5, 3, 3)}, ValueError, "tokens have 3 heads, w_q has 2"),
        ({"w_q": torch.ones(3, 3)}, ValueError, r"w_q must be \(H, W, W\).* got shape \(3, 3\)"),
        ({"w_q": torch.ones(2, 3, 2)}, ValueError, r"w_q must be \(H, W, W\).* got shape \(2, 3, 2\)"),
        ({"w_q": torch.ones(2, 0, 0)}, ValueError, r"w_q must be .*W >= 1, got shape \(2, 0, 0\)"),
        ({"w_q": (torch.ones(2, 3),)}, ValueError, r"w_q in factors must be two tensors \(u, v\).*got shapes \[\(2, 3\)\]"),
        ({"w_q": (torch.ones(2, 3), torch.ones(2, 4))}, ValueError, r"w_q .*both \(H, W\).*\[\(2, 3\), \(2, 4\)\]"),
        ({"w_q": (torch.ones(2, 0), torch.ones(2, 0))}, ValueError, "w_q in factors .*W >= 1"),
        ({"d": torch.ones(2, 4)}, ValueError, r"d must be \(H, W\) = \(2, 3\) like w_q, got shape \(2, 4\)"),
        ({"d": torch.ones(3)}, ValueError, r"d must be .* got shape \(3,\)"),
        ({"d": None}, ValueError, "exactly one of d and queries"),
        ({"queries": torch.ones(2, 3, 2, 3)}, ValueError, "exactly one of d and queries"),
        ({"d": None, "queries": torch.ones(2, 4, 2, 3)}, ValueError, r"queries has shape \(2, 4, 2, 3\).*\(2, 3, 2, 3\)"),
        ({"stride": 0}, ValueError, "stride must be an integer >= 1, got 0"),
        ({"stride": True}, ValueError, "stride must be an integer >= 1, got True"),
        ({"stride": 1.5}, ValueError, r"stride must be an integer >= 1, got 1\.5"),
        ({"log_decay": torch.tensor([-0.5, 0.25])}, ValueError, r"log_decay must be <= 0 .*largest value is 0\.25"),
        ({"log_decay": torch.tensor([-0.5, math.nan])}, ValueError, "log_decay must be <= 0 .*nan"),
        ({"log_decay": torch.zeros(3)}, ValueError, r"log_decay has shape \(3,\); allowed: None, \(2,\) \(head\)"),
        ({"log_decay": torch.zeros(2), "structure": "row"}, ValueError, r"log_decay has shape \(2,\).*'row' needs \(2, 3\)"),
        ({"log_decay": torch.zeros(2), "structure": "none"}, ValueError, r"log_decay has shape \(2,\).*'none' needs None"),
        ({"structure": "head"}, ValueError, r"log_decay has shape None.*'head' needs \(2,\)"),
        ({"log_decay": torch.zeros(2), "structure": "diagonal"}, ValueError, "structure is 'diagonal'; allowed: none, head, row"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'; allowed: auto, reference, chunked"),
        ({"lengths": torch.tensor([6, 5])}, ValueError, r"lengths must lie in 0\.\.5 .*\[6, 5\]"),
        ({"lengths": torch.tensor([-1, 5])}, ValueError, r"lengths must lie in 0\.\.5 .*\[-1, 5\]"),
        ({"lengths": torch.tensor([4.0, 5.0])}, ValueError, "lengths must be 2 integers.*torch.float32"),
        ({"lengths": torch.tensor([4])}, ValueError, r"lengths must be 2 integers.*\(1,\)"),
        ({"lengths": torch.tensor(4)}, ValueError, r"lengths must be 2 integers.*\(\)"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    arguments = {**GOOD, **changes}
    positional = [arguments.pop(name) for name in ("tokens", "w_q", "log_decay", "d")]
    with pytest.raises(error, match=message):
        gd_scan(*positional, **arguments)


def test_a_shape_of_two_structures_needs_a_name():
    ones = torch.ones(2, 4, 2, 2, dtype=torch.float64)  # B = K = H = D = 2
    log = torch.rand(2, 2, 2, dtype=torch.float64).neg()
    with pytest.raises(ValueError, match=r"log_decay of shape \(2, 2, 2\) fits full and input: say which with structure="):
        gd_scan(ones, torch.ones(2, 3, 3), log, torch.ones(2, 3))
    for structure in ("full", "input"):
        out, _ = gd_scan(ones, torch.ones(2, 3, 3), log, torch.ones(2, 3), structure=structure)
        for b in range(2):
            grid = lambda_grid(structure, log if structure == "full" else log[b], 2, 2, 2)
            assert ratio(out[b], scan(ones[b].numpy(), np.ones((2, 3, 3)), grid, np.ones((2, 3)))[0]) <= 1e-12


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("z", torch.zeros(2, 2, 3, 4), r"state.z has shape \(2, 2, 3, 4\).*\(2, 2, 3, 3\)"),
        ("tail", torch.zeros(2, 3, 2, 3), r"state.tail has shape \(2, 3, 2, 3\).*\(2, 2, 2, 3\)"),
        ("seen", torch.zeros(3, dtype=torch.int64), r"state.seen has shape \(3,\).*\(2,\)"),
    ],
)
def test_a_state_of_other_shapes_is_named(field, value, message):
    state = gd_scan(**GOOD)[1]._replace(**{field: value})
    with pytest.raises(ValueError, match=message):
        gd_scan(**GOOD, state=state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_out_of_phase_are_an_error(backend):
    """At stride 2, sequences that have seen 4 and 5 tokens have no common windows; 3 and 5 have."""
    for lengths, fits in ((torch.tensor([4, 5]), False), (torch.tensor([3, 5]), True)):
        _, state = gd_scan(**GOOD, stride=2, lengths=lengths, backend=backend)
        if fits:
            assert gd_scan(**GOOD, stride=2, state=state, backend=backend)[0].shape[1] == 2
            continue
        with pytest.raises(ValueError, match=r"state: the sequences have seen \[4, 5\] tokens.*stride 2"):
            gd_scan(**GOOD, stride=2, state=state, backend=backend)


@pytest.mark.parametrize("given", ["taps", "queries"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_are_each_alone(backend, structure, given):
    """Sequences of 9, 0, 1 and 13 tokens in one, then 4 more of each: what every one gets by itself."""
    seen = [0] * 4
    case = draw(structure, batch=4, tokens=1, seed=22)
    streams = [torch.zeros(0, 2, 3, dtype=torch.float64)] * 4
    rates = [torch.zeros(0, 2, dtype=torch.float64)] * 4
    asked = [torch.zeros(0, 2, 3, dtype=torch.float64)] * 4
    state = fresh_state(case)
    g = torch.Generator().manual_seed(23)
    for sizes in ([9, 0, 1, 13], [4, 4, 4, 4]):
        tokens = torch.randn(1, sum(sizes), 2, 3, generator=g, dtype=torch.float64)
        new = [count(n + m, 3, 1) - count(n, 3, 1) for n, m in zip(seen, sizes, strict=True)]
        log, queries = case["log_decay"], torch.randn(1, sum(new), 2, 3, generator=g, dtype=torch.float64)
        if structure == "input":
            log = -torch.rand(1, sum(new), 2, generator=g, dtype=torch.float64)
            rates = [torch.cat(pair) for pair in zip(rates, log[0].split(new), strict=True)]
        streams = [torch.cat(pair) for pair in zip(streams, tokens[0].split(sizes), strict=True)]
        asked = [torch.cat(pair) for pair in zip(asked, queries[0].split(new), strict=True)]
        out, state = gd_scan(
            tokens,
            case["w_q"],
            log,
            case["d"] if given == "taps" else None,
            queries=None if given == "taps" else queries,
            state=state,
            cu_seqlens=torch.tensor([0, *np.cumsum(sizes).tolist()]),
            backend=backend,
            structure=structure,
        )
        parts = out[0].split(new)
        seen = [n + m for n, m in zip(seen, sizes, strict=True)]
        assert state.seen.tolist() == seen
        for b, stream in enumerate(streams):
            windows = count(len(stream), 3, 1)
            own = rates[b].numpy() if structure == "input" else None if log is None else log.numpy()
            wanted, z = scan(
                stream.numpy(),
                case["w_q"].numpy(),
                lambda_grid(structure, own, windows, 2, 3),
                case["d"].numpy(),
                z=case["z"][b].numpy(),
                queries=None if given == "taps" else asked[b].numpy(),
            )
            assert ratio(parts[b], wanted[windows - new[b] :]) <= 1e-12
            assert ratio(state.z[b], z) <= 1e-12
            assert torch.equal(state.tail[b], torch.cat([torch.zeros(2, 2, 3), stream])[-2:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokens": torch.ones(2, 5, 2, 3)},
            r"cu_seqlens packs .*: tokens must be \(1, T, H, D\), got a batch of 2",
        ),
        ({"lengths": torch.tensor([5])}, "give one of lengths .* and cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0.0, 5.0])}, r"cu_seqlens must be N \+ 1 >= 2 integers, got torch.float32"),
        ({"cu_seqlens": torch.tensor([5])}, r"cu_seqlens must be N \+ 1 >= 2 integers, got torch.int64 of shape \(1,\)"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 5])}, r"cu_seqlens must go from 0 to 5 .* got \[0, 3, 2, 5\]"),
        ({"cu_seqlens": torch.tensor([0, 4])}, r"cu_seqlens must go from 0 to 5 .* got \[0, 4\]"),
        ({"queries": torch.ones(1, 3, 2, 3), "d": None}, r"queries has shape \(1, 3, 2, 3\); these tokens need \(1, 1, 2, 3\)"),
    ],
)
def test_wrong_packing_is_named(changes, message):
    arguments = {**GOOD, "tokens": torch.ones(1, 5, 2, 3), "cu_seqlens": torch.tensor([0, 2, 5]), **changes}
    with pytest.raises(ValueError, match=message):
        gd_scan(**arguments)


def test_nothing_is_kept_where_no_gradients_are_recorded(monkeypatch):
    """Also where the inputs are parameters: memory of a forward pass is that of its output."""
    kept, forward = [], Chunks.forward

    def spy(self, z, out, states):
        kept.append(states is not None)
        return forward(self, z, out, states)

    monkeypatch.setattr(Chunks, "forward", spy)
    x = torch.randn(1, 9, 1, 2, requires_grad=True)
    taps = torch.randn(1, 3, requires_grad=True)
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            gd_scan(x, (taps, taps), None, taps, backend="chunked")
            linear_scan(x, x, x, None)
    assert kept == [False, False, True, True]
