"""GDSSM against the definition, its weights from arrays, and what its state can do without the streams."""

import math

import numpy as np
import pytest
import torch

import plain
from gdssm import GDSSM, TwoStepBlock, ops
from gdssm.tokens import interleave
from plain import ratio

DECAYS = ("full", "row", "head", "none")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_layer(decay="none", *, d_model=3, seed=0, **options):
    layer = GDSSM(d_model, decay=decay, dtype=torch.float64, **options)
    with torch.no_grad():
        for i, (name, p) in enumerate(layer.named_parameters()):
            p.copy_(normal(*p.shape, seed=seed + i) - (1.0 if name == "decay.log_rate" else 0.0))
            if name == "count_offset":
                p.abs_()
    return layer


def example_layer(d_model=3, n_heads=2, **options):
    """Lambda = 1, w_q reads x and y of each window only, d = e3: what merge and forget want."""
    layer = random_layer("none", d_model=d_model, n_heads=n_heads, **options)
    with torch.no_grad():
        layer.w_q[:, 2, :] = 0
        layer.w_q[:, :, 2] = 0
        layer.d.copy_(torch.tensor([0.0, 0.0, 1.0]))
    return layer


def first_token_layer():
    """Stride 1, and w_q reads the first token of each window only."""
    layer = random_layer("none", stride=1)
    with torch.no_grad():
        layer.w_q[:, 1:, :] = 0
        layer.w_q[:, :, 1:] = 0
    return layer


def in_plain(layer, tokens):
    """(outputs, Z) of one sequence from the definition."""
    p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    lam = layer.decay_matrix.detach().numpy()
    options = {"key_map": p.get("key_map"), "feedthrough": p.get("feedthrough"), "offset": p.get("count_offset")}
    return plain.layer(tokens.numpy(), p["w_q"], lam, p["d"], p["c"], stride=layer.stride, **options)


@pytest.mark.parametrize("options", [{}, {"key_map": True, "feedthrough": True, "normalize": True}])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("decay", DECAYS)
def test_the_layer_is_its_equations(decay, stride, options):
    layer, tokens = random_layer(decay, stride=stride, n_heads=2, **options), normal(2, 11, 3)
    out, state = layer(tokens)
    for b in range(2):
        wanted, z = in_plain(layer, tokens[b])
        assert ratio(out[b], wanted) <= 1e-12
        assert ratio(state.z[b], z) <= 1e-12


@pytest.mark.parametrize("decay", DECAYS)
def test_the_two_step_block_is_its_equations(decay):
    """y_k = P_1 q + P_1 P_2 q + P_3 q with P_i = C_i Z_i^T, at every window."""
    block = random_block(decay)
    tokens = normal(2, 11, 3)
    out, state = block(tokens)
    w_q, d, c = (p.detach().numpy() for p in (block.w_q, block.d, block.c))
    lam = block.decay.matrix(block.c).detach().numpy()
    for b in range(2):
        z, wanted = np.zeros((3, 3, 3)), []
        for start in range(0, 9, 2):
            s = tokens[b, start : start + 3].numpy()
            for i in range(3):
                z[i] = lam[i] * z[i] + s.T @ w_q[i] @ s
            p1, p2, p3 = (c[i] @ z[i].T for i in range(3))
            q = s.T @ d
            wanted.append(p1 @ q + p1 @ p2 @ q + p3 @ q)
        assert ratio(out[b], np.stack(wanted)) <= 1e-12
        assert ratio(state.z[b], z) <= 1e-12


def random_block(decay):
    block = TwoStepBlock(3, decay=decay, dtype=torch.float64)
    with torch.no_grad():
        for i, (name, p) in enumerate(block.named_parameters()):
            p.copy_(normal(*p.shape, seed=40 + i) - (1.0 if name == "decay.log_rate" else 0.0))
    return block


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wq4": np.eye(3)}, "arrays: wq4 missing or unknown; wanted: wq1, wq2, wq3, lam1"),
        ({"C2": None}, "arrays: C2 missing or unknown"),
        ({"D3": np.ones(2)}, r"D3 has shape \(2,\), this layer needs \(3,\)"),
        ({"C3": np.ones((2, 2))}, r"C3 has shape \(2, 2\), this layer needs \(1, 3, 3\)"),
        ({"lam2": np.full((3, 3), 1.5)}, r"lam1..3 must lie in \(0, 1\], got values from .* to 1\.5"),
        ({"wq1": np.full((3, 3), math.nan)}, "wq1 has values that are not finite"),
    ],
)
def test_wrong_arrays_of_the_block_are_named_and_nothing_is_written(changes, message):
    block = random_block("full")
    before = weights_of(block)
    arrays = {f"{name}{i}": 0.5 * np.ones((3, 3)) for name in ("wq", "lam", "C") for i in (1, 2, 3)} | {"D3": np.ones(3)}
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        block.load_arrays(**arrays)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(block).items())


def weights_of(layer):
    return {name: p.detach().clone() for name, p in layer.named_parameters()}


ARRAYS = {
    "w_q": normal(1, 3, 3, seed=1),
    "lambda_bar": torch.rand(1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.9 + 0.1,
    "c": normal(1, 2, 2, seed=3),
    "d": normal(1, 3, seed=4),
}


@pytest.mark.parametrize("head_axis", [True, False])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(("bits", "tolerance"), [(16, 2e-3), (32, 1e-6), (64, 1e-14)])
def test_arrays_become_weights(bits, tolerance, kind, head_axis):
    """Values of the given precision, also where the layer's own is lower or higher."""
    given = {name: value.to(getattr(torch, f"float{bits}")) for name, value in ARRAYS.items()}
    given = {name: value if head_axis else value[0] for name, value in given.items()}
    if kind == "numpy":
        given = {name: value.numpy() for name, value in given.items()}
    layer = GDSSM(2, dtype=torch.float64)
    assert layer.load_arrays(**given) is layer
    got = {"w_q": layer.w_q, "lambda_bar": layer.decay_matrix, "c": layer.c, "d": layer.d}
    for name, value in got.items():
        assert value.dtype == torch.float64
        assert ratio(value, ARRAYS[name]) <= tolerance
        if name != "lambda_bar":
            assert torch.equal(value[0], torch.as_tensor(given[name]).double().reshape(value.shape[1:]))


def test_lists_and_parts():
    layer = GDSSM(2, dtype=torch.float64)
    before = weights_of(layer)
    layer.load_arrays(d=[0, 0, 1])
    assert layer.d.tolist() == [[0, 0, 1]]
    assert all(torch.equal(value, before[name]) for name, value in weights_of(layer).items() if name != "d")


@pytest.mark.parametrize(
    ("decay", "own"),
    [
        ("row", torch.tensor([[0.5, 0.25]])),
        ("head", torch.tensor([0.5])),
        ("head", torch.tensor(0.5)),
        ("none", torch.ones(1, 2, 2)),
    ],
)
def test_a_decay_in_the_shape_of_its_structure_or_in_full(decay, own):
    """Row i decays Z[i, :], so lambda_bar[h, i, j] is the row's number for every j."""
    wanted = {"row": [[0.5, 0.5], [0.25, 0.25]], "head": [[0.5, 0.5], [0.5, 0.5]], "none": [[1, 1], [1, 1]]}[decay]
    wanted = torch.tensor([wanted], dtype=torch.float64)
    for value in (own, wanted, wanted[0]):
        layer = GDSSM(2, decay=decay, dtype=torch.float64).load_arrays(lambda_bar=value)
        assert ratio(layer.decay_matrix, wanted) <= 1e-15


@pytest.mark.parametrize(
    ("decay", "changes", "message"),
    [
        ("full", {"w_q": torch.ones(1, 2, 2)}, r"w_q has shape \(1, 2, 2\), this layer needs \(1, 3, 3\)"),
        ("full", {"w_q": torch.ones(2, 3, 3)}, r"w_q has shape \(2, 3, 3\)"),
        ("full", {"c": torch.ones(2)}, r"c has shape \(2,\), this layer needs \(1, 2, 2\)"),
        ("full", {"d": torch.ones(3, 1)}, r"d has shape \(3, 1\), this layer needs \(1, 3\)"),
        ("full", {"c": torch.tensor([[1.0, math.inf], [0, 0]])}, "c has values that are not finite"),
        ("full", {"d": np.array([0, 0, math.nan])}, "d has values that are not finite"),
        ("full", {"lambda_bar": torch.full((2, 2), 1.5)}, r"lambda_bar must lie in \(0, 1\], got values from 1\.5 to 1\.5"),
        ("full", {"lambda_bar": torch.eye(2)}, r"lambda_bar must lie in \(0, 1\], got values from 0\.0 to 1\.0"),
        ("full", {"lambda_bar": torch.full((2, 2), -0.5)}, r"lambda_bar must lie in \(0, 1\], got values from -0\.5"),
        ("full", {"lambda_bar": torch.full((2, 2), math.nan)}, "lambda_bar has values that are not finite"),
        ("full", {"lambda_bar": torch.full((2,), 0.5)}, r"lambda_bar has shape \(2,\)"),
        ("row", {"lambda_bar": torch.tensor([[0.5, 0.6], [0.5, 0.5]])}, "lambda_bar has different entries where decay 'row'"),
        ("head", {"lambda_bar": torch.tensor([[0.5, 0.5], [0.6, 0.6]])}, "lambda_bar has different entries where decay 'head'"),
        ("none", {"lambda_bar": torch.full((2, 2), 0.5)}, r"lambda_bar must be 1 everywhere for decay 'none'.*0\.5"),
    ],
)
def test_wrong_arrays_are_named_and_nothing_is_written(decay, changes, message):
    layer = GDSSM(2, decay=decay)
    before = weights_of(layer)
    given = {name: value for name, value in ARRAYS.items() if decay == "full" or name != "lambda_bar"}
    with pytest.raises(ValueError, match=message):
        layer.load_arrays(**{**given, **changes})
    assert all(torch.equal(value, before[name]) for name, value in weights_of(layer).items())


@pytest.mark.parametrize("decay", DECAYS)
def test_decays_start_between_95_percent_and_1(decay):
    lam = GDSSM(3, decay=decay, n_heads=2000).decay_matrix.detach()
    assert lam.shape == (2000, 3, 3)
    if decay == "none":
        assert bool((lam == 1).all())
        return
    assert 0.9512 <= float(lam.min()) < 0.96  # exp(-0.05) to exp(-0.0005): 2,000 draws come near both ends
    assert 0.9993 < float(lam.max()) <= 0.9995002
    assert abs(float((-lam.log()).log().mean()) - (math.log(0.05) + math.log(0.0005)) / 2) < 0.15  # log-uniform in between


@pytest.mark.parametrize("decay", ["full", "row", "head"])
def test_decays_stay_in_the_unit_interval(decay):
    """Whatever is learned, Lambda = exp(-exp(log_rate)) is at most 1, and above 0 while float64 can tell."""
    layer = GDSSM(4, decay=decay, n_heads=3, dtype=torch.float64)
    with torch.no_grad():
        layer.decay.log_rate.copy_(torch.linspace(-50, 6.5, layer.decay.log_rate.numel()).view_as(layer.decay.log_rate))
    lam = layer.decay_matrix
    assert bool(((lam > 0) & (lam <= 1)).all())
    rate = layer.decay.log_rate.reshape(3, *{"full": (4, 4), "row": (4, 1), "head": (1, 1)}[decay])
    assert ratio(lam, torch.exp(-torch.exp(rate)).expand(3, 4, 4)) <= 1e-14


@pytest.mark.parametrize("decay", ["full", "row", "head"])
@pytest.mark.parametrize("cheap", [True, False])
def test_a_stored_one_stays_one(decay, cheap):
    """Lambda = 1 exactly has gradient 0, not NaN; decays beside it learn."""
    layer = random_layer(decay, n_heads=2)
    lam = layer.decay_matrix.detach().clone()
    lam[0] = 1.0
    layer.load_arrays(lambda_bar=lam)
    assert bool((layer.decay_matrix[0] == 1).all())
    tokens = normal(2, 9, 3)
    out = layer.last(tokens) if cheap else layer(tokens)[0]
    (out.square().sum() + layer.decay_matrix.sum()).backward()
    gradient = layer.decay.log_rate.grad
    assert torch.count_nonzero(gradient[0]) == 0
    assert bool((gradient[1] != 0).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 0}, "d_model must be an integer >= 1, got 0"),
        ({"d_model": 2.0}, r"d_model must be an integer >= 1, got 2\.0"),
        ({"window": 0}, "window must be an integer >= 1, got 0"),
        ({"window": True}, "window must be an integer >= 1, got True"),
        ({"stride": -1}, "stride must be an integer >= 1, got -1"),
        ({"n_heads": 0}, "n_heads must be an integer >= 1, got 0"),
        ({"decay": "diagonal"}, "decay is 'diagonal'; allowed: full, row, head, none"),
        ({"backend": "fast"}, "backend is 'fast'; allowed: auto, reference, chunked"),
    ],
)
def test_constructor_errors_name_argument_and_value(arguments, message):
    kinds = [GDSSM] if "n_heads" in arguments else [GDSSM, TwoStepBlock]  # the block has always three parts
    for kind in kinds:
        with pytest.raises(ValueError, match=message):
            kind(**{"d_model": 3, **arguments})


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (torch.ones(2, 5), ValueError, r"tokens must be \(B, T, 3\), got shape \(2, 5\)"),
        (torch.ones(2, 5, 4), ValueError, r"tokens must be \(B, T, 3\), got shape \(2, 5, 4\)"),
        (torch.ones(2, 5, 3, dtype=torch.int64), TypeError, "tokens must be a floating-point tensor, got torch.int64"),
        ([[0.0]], TypeError, "tokens must be a floating-point tensor, got list"),
    ],
)
def test_wrong_tokens_are_named(tokens, error, message):
    layer = GDSSM(3)
    for call in (layer, layer.last):
        with pytest.raises(error, match=message):
            call(tokens)


def test_a_block_without_a_window_has_no_last_output():
    with pytest.raises(ValueError, match="no window of 3 tokens ends in sequence 0"):
        TwoStepBlock(3).last(torch.ones(2, 2, 3))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_an_initial_state_is_no_state(dtype):
    layer, tokens = random_layer("row", n_heads=2), normal(2, 7, 3)
    state = layer.init_state(2, dtype=dtype)
    assert state.z.dtype == torch.float64
    assert torch.count_nonzero(state.z) == torch.count_nonzero(state.tail) == torch.count_nonzero(state.seen) == 0
    assert torch.equal(layer(tokens, state)[0], layer(tokens)[0])
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match=f"batch_size must be an integer >= 1, got {wrong}"):
            layer.init_state(wrong)


def test_a_state_of_another_batch_is_an_error():
    layer = GDSSM(3)
    with pytest.raises(ValueError, match="state is for 2 sequences, tokens have 3"):
        layer(torch.ones(3, 5, 3), layer.init_state(2))


@pytest.mark.parametrize("options", [{}, {"key_map": True, "feedthrough": True, "normalize": True}])
@pytest.mark.parametrize("decay", DECAYS)
def test_answers_are_last_outputs_of_the_stream_with_the_query(decay, options):
    """Several queries from one state, which stays what it was."""
    layer, context, queries = random_layer(decay, n_heads=2, **options), normal(3, 8, 3), normal(3, 5, 3, seed=1)
    _, state = layer(context)
    before = [t.clone() for t in (state.z, state.tail, state.seen)]
    answers = layer.answer(state, queries)
    for m in range(5):
        whole = torch.cat([context, queries[:, m : m + 1]], dim=1)
        assert ratio(answers[:, m], layer.last(whole)) <= 1e-12
        for b in range(3):
            assert ratio(answers[b, m], in_plain(layer, whole[b])[0][-1]) <= 1e-12
    assert all(torch.equal(a, b) for a, b in zip(before, (state.z, state.tail, state.seen), strict=True))


def test_answers_need_a_query_that_completes_a_window():
    layer = random_layer()
    for seen in (0, 1, 3):
        _, state = layer(normal(2, seen, 3))
        with pytest.raises(ValueError, match=rf"state: after \[{seen}, {seen}\] tokens the next one completes no window"):
            layer.answer(state, normal(2, 1, 3))


def test_gradients_go_through_answers():
    """d answer / d query is the same as through the whole stream, parameters included."""
    layer, context, query = random_layer("row", n_heads=2, key_map=True), normal(2, 8, 3), normal(2, 1, 3, seed=1).requires_grad_()
    leaves = [query, *layer.parameters()]
    got = torch.autograd.grad(layer.answer(layer(context)[1], query).square().sum(), leaves)
    wanted = torch.autograd.grad(layer.last(torch.cat([context, query], dim=1)).square().sum(), leaves)
    assert max(ratio(a, b) for a, b in zip(got, wanted, strict=True)) <= 1e-10


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("key_map", [False, True])
def test_weights_are_the_implicit_linear_model(key_map, normalize):
    """With d = e3 the last output is sum_h W_h x, and W_h = C Z^T P / (n + n0)."""
    layer = random_layer("row", n_heads=2, key_map=key_map, normalize=normalize)
    layer.load_arrays(d=torch.tensor([[0.0, 0, 1]] * 2))
    tokens = normal(2, 9, 3)
    out, state = layer(tokens)
    w = state.weights()
    assert w.shape == (2, 2, 3, 3)
    assert ratio(torch.einsum("bhij,bj->bi", w, tokens[:, -1]), out[:, -1]) <= 1e-12
    for b in range(2):
        _, z = in_plain(layer, tokens[b])
        for h in range(2):
            p = layer.key_map[h].detach().numpy() if key_map else np.eye(3)
            n = 4 + float(layer.count_offset[h].detach()) if normalize else 1.0
            assert ratio(w[b, h], layer.c[h].detach().numpy() @ z[h].T @ p / n) <= 1e-12


def same_in_effect(layer, state, stream):
    """The state answers queries, and goes on reading, like the state of the stream."""
    _, wanted = layer(stream)
    if stream.shape[1] % 2 == 0 and stream.shape[1]:
        queries = normal(len(stream), 3, 3, seed=70)
        assert ratio(layer.answer(state, queries), layer.answer(wanted, queries)) <= 1e-11
    more = normal(len(stream), 6, 3, seed=71)
    got, end = layer(more, state)
    want, wanted_end = layer(more, wanted)
    assert ratio(got, want) <= 1e-11
    assert ratio(end.z, wanted_end.z) <= 1e-11
    assert torch.equal(end.tail, wanted_end.tail)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("tokens", [(8, 6), (9, 7), (8, 7), (9, 6), (2, 2), (3, 2), (0, 8), (8, 0), (1, 4), (2, 1), (0, 0)])
def test_merged_states_are_the_state_of_both_streams(tokens, normalize):
    """Odd lengths end in a query, which belongs to no example: self's is dropped, other's goes on."""
    first, second = tokens
    layer = example_layer(normalize=normalize)
    a, b = normal(2, first, 3), normal(2, second, 3, seed=1)
    merged = layer(a)[1].merge(layer(b)[1])
    stream = torch.cat([a[:, : first - first % 2], b], dim=1)
    assert merged.seen.tolist() == [stream.shape[1]] * 2
    if second >= 2:  # the window across the seam is complete
        assert ratio(merged.z, layer(stream)[1].z) <= 1e-12
    same_in_effect(layer, merged, stream)


def test_merged_states_of_several_pieces_and_lengths():
    """Map and reduce: four pieces of a stream read apart; then two sequences of different lengths."""
    layer, stream = example_layer(), normal(2, 32, 3)
    states = [layer(piece)[1] for piece in stream.split(8, dim=1)]
    merged = states[0].merge(states[1]).merge(states[2].merge(states[3]))
    assert ratio(merged.z, layer(stream)[1].z) <= 1e-12
    same_in_effect(layer, merged, stream)
    lengths = torch.tensor([6, 2])
    _, short = layer(stream[:, :8], lengths=lengths)
    both = short.merge(layer(stream[:, 8:16])[1])
    for b, n in enumerate(lengths.tolist()):
        whole = torch.cat([stream[b : b + 1, :n], stream[b : b + 1, 8:16]], dim=1)
        assert ratio(both.z[b], layer(whole)[1].z[0]) <= 1e-12


def test_merging_with_an_empty_state_changes_nothing():
    """Whatever tokens the query taps read."""
    layer, context, queries = example_layer(), normal(2, 8, 3), normal(2, 3, 3, seed=1)
    layer.load_arrays(d=normal(2, 3, seed=2))
    state, empty = layer(context)[1], layer.init_state(2)
    wanted = layer.answer(state, queries)
    assert ratio(layer.answer(empty.merge(state), queries), wanted) <= 1e-12
    assert ratio(layer.answer(state.merge(empty), queries), wanted) <= 1e-12


def test_merging_at_stride_one():
    """Two windows are unfinished at the seam; w_q reads the first token of each only."""
    layer = first_token_layer()
    a, b = normal(2, 5, 3), normal(2, 4, 3, seed=1)
    merged, wanted = layer(a)[1].merge(layer(b)[1]), layer(torch.cat([a, b], dim=1))[1]
    assert ratio(merged.z, wanted.z) <= 1e-12
    assert torch.equal(merged.seen, wanted.seen)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("query", [True, False])
@pytest.mark.parametrize("which", [0, 2, 4])
def test_a_forgotten_example_was_never_read(which, query, normalize):
    """The first, a middle and the last of five examples, with and without a query after them."""
    layer, x, y = example_layer(normalize=normalize), normal(2, 5, 3), normal(2, 5, 2, seed=1)
    last = normal(2, 3, seed=2) if query else None
    _, state = layer(interleave(x, y, last))
    forgot = state.forget(x[:, which], y[:, which])
    rest = [i for i in range(5) if i != which]
    stream = interleave(x[:, rest], y[:, rest], last)
    assert forgot.seen.tolist() == [stream.shape[1]] * 2
    if query:
        assert ratio(forgot.z, layer(stream)[1].z) <= 1e-11
        assert ratio(forgot.weights(), layer(stream)[1].weights()) <= 1e-11
    if which < 4 or query:  # else the tail still holds the forgotten example, which no w_q or d here reads
        same_in_effect(layer, forgot, stream)
    queries = normal(2, 3, 3, seed=3)
    if not query:
        assert ratio(layer.answer(forgot, queries), layer.answer(layer(stream)[1], queries)) <= 1e-11


@pytest.mark.parametrize("query", [True, False])
def test_the_only_example_can_be_forgotten(query):
    """What is left is a stream without examples."""
    layer, x, y, last = example_layer(), normal(2, 1, 3), normal(2, 1, 2, seed=1), normal(2, 3, seed=2)
    _, state = layer(interleave(x, y, last if query else None))
    forgot = state.forget(x[:, 0], y[:, 0])
    same_in_effect(layer, forgot, last[:, None] if query else x[:, :0])


@pytest.mark.parametrize("what", ["merge", "forget"])
def test_what_merging_and_forgetting_need(what):
    def act(layer, tokens=4):
        _, state = layer(normal(2, tokens, 3))
        return state.merge(state) if what == "merge" else state.forget(normal(2, 3), normal(2, 3))

    with pytest.raises(ValueError, match=rf"{what}: Lambda must be 1, its smallest entry is 0\.5"):
        act(example_layer_with_decay(0.5))
    for entry in ((1, 2, 0), (1, 0, 2)):
        third = example_layer()
        with torch.no_grad():
            third.w_q[entry] = 0.25
        with pytest.raises(ValueError, match=rf"{what}: w_q must read only the first 2 tokens of a window.*0\.25"):
            act(third)
    act(example_layer_with_decay(1.0))  # a stored 1 will do


def example_layer_with_decay(value):
    layer = random_layer("head", n_heads=2)
    layer.load_arrays(w_q=example_layer().w_q, lambda_bar=torch.full((2,), value, dtype=torch.float64))
    return layer


def test_other_errors_of_states():
    layer = example_layer()
    _, state = layer(normal(2, 4, 3))
    with pytest.raises(ValueError, match="other: the states to merge come from two different layers"):
        state.merge(example_layer()(normal(2, 4, 3))[1])
    with pytest.raises(ValueError, match=r"other has Z of shape \(3, 2, 3, 3\), this state \(2, 2, 3, 3\)"):
        state.merge(layer(normal(3, 4, 3))[1])
    with pytest.raises(ValueError, match=r"forget: no example has been read \(tokens seen: \[1, 1\]\)"):
        layer(normal(2, 1, 3))[1].forget(normal(2, 3), normal(2, 3))
    with pytest.raises(ValueError, match=r"x must be \(2, at most 3\), got shape \(2, 4\)"):
        state.forget(normal(2, 4), normal(2, 3))
    with pytest.raises(ValueError, match=r"y must be \(2, at most 3\), got shape \(1, 3\)"):
        state.forget(normal(2, 3), normal(1, 3))
    _, state = first_token_layer()(normal(2, 4, 3))
    with pytest.raises(ValueError, match="forget: an example is two tokens, this layer's stride is 1"):
        state.forget(normal(2, 3), normal(2, 3))


GATES = torch.zeros(2, 3, 3)  # x y^T and x x^T
GATES[0, 0, 1] = GATES[1, 0, 0] = 1


def layer_state(tokens, pieces):
    layer, state = GDSSM(4, decay="none", n_heads=2, stride=2).load_arrays(w_q=GATES), None
    with torch.no_grad():
        for piece in tokens.split(pieces, dim=1):
            _, state = layer(piece, state)
    return state


def check_drift(state, tokens):
    """Z of both heads in float32 with Lambda = 1 against float64 sums: the error over the largest entry."""
    s = tokens[0].double().numpy()
    n = (len(s) - 3) // 2 + 1
    x, y = s[0 : 2 * n : 2], s[1 : 2 * n : 2]
    for head, wanted in enumerate((x.T @ y, x.T @ x)):
        assert np.abs(state.z[0, head].numpy() - wanted).max() / np.abs(wanted).max() <= 1e-6


def uniform_stream(n):
    return torch.rand(1, n, 4, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.parametrize(("n", "pieces"), [(100_000, 1_000), (1_000, 1)])
def test_long_streams_do_not_drift(n, pieces):
    tokens = uniform_stream(n)
    check_drift(layer_state(tokens, pieces), tokens)


@pytest.mark.slow
def test_a_million_tokens_in_pieces_do_not_drift():
    tokens = uniform_stream(1_000_000)
    check_drift(layer_state(tokens, 1_000), tokens)


@pytest.mark.slow
def test_a_million_tokens_one_at_a_time_do_not_drift():
    """Through the layer's own scan, without the readout: ten minutes instead of thirty."""
    tokens, state, d = uniform_stream(1_000_000), None, torch.ones(2, 3)
    with torch.no_grad():
        for token in tokens.unsqueeze(2).split(1, dim=1):
            _, state = ops.gd_scan(token, GATES, None, d, stride=2, state=state)
    check_drift(state, tokens)
