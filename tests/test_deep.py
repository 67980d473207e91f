"""Deep models: the contract of sequence layers, an independent loop, masks, options drawn at random."""

import dataclasses
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gdssm
from contract import SequenceLayerContract
from gdssm import ops
from gdssm.config import ConfigError
from gdssm.deep import DeepConfig, GDSSMBlock, GDSSMForSequenceModeling, GDSSMModel, Mixer
from plain import array, ratio

DOUBLE = torch.float64
SMALL = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_mlp": 8, "window": 3}


def make(seed=0, dtype=DOUBLE, **options):
    """A small model, every parameter moved by moderate noise, so that none keeps a special value such as a weight of 1."""
    model = GDSSMForSequenceModeling(**(SMALL | options), dtype=dtype)
    g = torch.Generator().manual_seed(seed)
    model.reset_parameters(g)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=DOUBLE))
    return model


def words(batch=3, length=13, seed=0, vocab=7):
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


class DeepContract(SequenceLayerContract):
    """The contract for a stack of two blocks; vectors in and out."""

    options: ClassVar[dict] = {}
    stride = 1
    window = 1  # a fresh state has read W-1 zero tokens: one output for every token

    def make(self):
        return GDSSMForSequenceModeling(d_input=3, n_outputs=2, **(SMALL | self.options), dtype=DOUBLE)

    def test_gradcheck(self):
        """Tokens and every parameter, through a state in the middle, along a random direction of all of them together."""
        module, tokens = self.layer(), self.tokens(batch=1, length=5)
        names = [name for name, _ in module.named_parameters()]
        given = [tokens, *(p.detach() for p in module.parameters())]

        def function(everything):
            parts = everything.split([t.numel() for t in given])
            stream, *values = (part.view(t.shape) for part, t in zip(parts, given, strict=True))
            parameters = dict(zip(names, values, strict=True))
            out, state = torch.func.functional_call(module, parameters, (stream[:, :3],))
            return out, torch.func.functional_call(module, parameters, (stream[:, 3:], state))[0]

        everything = torch.cat([t.flatten() for t in given]).requires_grad_()
        assert torch.autograd.gradcheck(function, everything, fast_mode=True)


class TestSharedStream(DeepContract):
    pass


class TestSharedStreamWithAll(DeepContract):
    options: ClassVar = {
        "key_map": True,
        "decay": "input",
        "taps": "channel",
        "activation": "silu",
        "gate": "sigmoid",
        "skip": True,
    }


class TestSeparateStreams(DeepContract):
    options: ClassVar = {"form": "separate", "decay": "none", "window": 4, "normalize": "none"}


class TestWindows(DeepContract):
    options: ClassVar = {"normalize": "stream", "key_map": True, "skip": True}


class TestFullInputGate(DeepContract):
    options: ClassVar = {"normalize": "none", "input_gate": "full", "decay": "input", "gate": "none", "window": 1}


# What a model computes, in NumPy loops over one sequence


def normed(x, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def silu(x):
    return x / (1 + np.exp(-x))


def mixer_loop(p, c, x):
    """x (T, d_model) -> y (T, d_model), from the equations of gdssm.deep.mixer."""
    heads, size, width, steps = c.n_heads, c.head_size, c.window, len(x)
    n_streams = 3 if c.form == "separate" else 1
    rows = x @ p["w_in"].T
    cut = n_streams * heads * size
    streams = rows[:, :cut].reshape(steps, n_streams, heads, size)
    gate = rows[:, cut : cut + heads * size]
    read, skipped = np.zeros((2, steps, heads, size))
    for h in range(heads):
        backward = c.bidirectional and h >= heads // 2
        s = streams[::-1, :, h] if backward else streams[:, :, h]
        if c.normalize == "stream":
            s = normed(s, c.norm_eps) / size**0.5
        s = np.concatenate([np.zeros((width - 1, n_streams, size)), s])
        z = np.zeros((size, size))
        for t in range(steps):
            window = s[t : t + width]

            def filtered(name, stream, window=window, h=h):
                taps = p[name][h] if c.taps == "channel" else np.tile(p[name][h], (size, 1))
                y = (taps.T * window[:, stream % n_streams]).sum(0)
                return silu(y) if c.activation == "silu" else y

            query = filtered("d", 2)
            query = p["key_map"][h] @ query if c.key_map else query
            if c.input_gate == "full":
                gained = window[:, 0].T @ p["w_q"][h] @ window[:, 0]
            else:
                key = filtered("u", 0)
                key = normed(key, c.norm_eps) / size**0.5 if c.normalize == "keys" else key
                gained = np.outer(key, filtered("v", 1))
            query = normed(query, c.norm_eps) / size**0.5 if c.normalize == "keys" else query
            if c.decay == "head":
                lam = np.exp(-np.exp(p["log_rate"][h]))
            elif c.decay == "input":
                token = steps - 1 - t if backward else t
                lam = 1 / (1 + np.exp(rows[token, -heads + h] + p["decay_bias"][h]))  # exp(-softplus(x)) = sigmoid(-x)
            else:
                lam = 1.0
            z = lam * z + gained
            token = steps - 1 - t if backward else t
            read[token, h] = z.T @ query
            if c.skip:
                skipped[token, h] = p["skip"].reshape(heads, size)[h] * filtered("v", 1)
    read = ((normed(read, c.norm_eps) if c.readout_norm else read) + skipped).reshape(steps, -1)
    if c.gate != "none":
        read = read * (silu(gate) if c.gate == "silu" else 1 / (1 + np.exp(-gate)))
    return read @ p["w_out"].T


def model_loop(model, tokens):
    """Outputs for one sequence: tokens (T,) or (T, d_input) -> (T, V), or (V,) with pooling."""
    c, p = model.config, {name: array(value) for name, value in model.state_dict().items()}
    table = p["model.embedding.weight"]
    h = table[array(tokens).astype(int)] if c.vocab_size else array(tokens) @ table.T
    for i in range(c.n_layers):
        own = {name.split(f"blocks.{i}.")[1]: value for name, value in p.items() if f"blocks.{i}." in name}
        mixer = {name.removeprefix("mixer."): value for name, value in own.items()}
        h = h + mixer_loop(mixer, c, normed(h, c.norm_eps))
        if c.mlp_size:
            gate, up = np.split(normed(h, c.norm_eps) @ own["mlp.w_in"].T, 2, axis=1)
            h = h + silu(gate) * up @ own["mlp.w_out"].T
    h = normed(h, c.norm_eps) * p["model.norm.weight"]
    h = {"none": h, "mean": h.mean(0), "last": h[-1]}[c.pooling]
    return h @ (table if c.tied else p["head.weight"]).T


@pytest.mark.parametrize("options", [
    {},
    {"key_map": True, "decay": "input", "taps": "channel", "activation": "silu", "d_mlp": 0},
    {"form": "separate", "gate": "sigmoid", "tie_embeddings": False},
    {"form": "separate", "taps": "channel", "activation": "silu", "decay": "none", "normalize": "none", "d_head": 3},
    {"normalize": "stream", "key_map": True, "gate": "none"},
    {"normalize": "stream", "skip": True, "gate": "none"},
    {"skip": True, "taps": "channel", "activation": "silu", "decay": "input", "d_mlp": 0},
    {"skip": True, "form": "separate", "bidirectional": True, "pooling": "mean", "n_outputs": 5, "gate": "none"},
    {"normalize": "none", "input_gate": "full", "decay": "input", "readout_norm": False},
    {"normalize": "stream", "input_gate": "full", "key_map": True, "backend": "reference"},
    {"bidirectional": True, "pooling": "mean", "n_outputs": 5, "decay": "input"},
    {"bidirectional": True, "form": "separate", "n_outputs": 7, "window": 1},
    {"normalize": "stream", "bidirectional": True, "pooling": "last", "n_outputs": 5},
    {"pooling": "last", "n_outputs": 5},
])  # fmt: skip
def test_models_are_their_equations(options):
    model, tokens = make(vocab_size=7, **options), words(batch=2, length=9)
    outputs, _ = model(tokens)
    assert ratio(outputs, np.stack([model_loop(model, row) for row in tokens])) <= 1e-12


def test_long_sequences_are_their_equations():
    """Several chunks of the scan, of both sizes."""
    for decay in ("head", "input"):
        model, tokens = make(vocab_size=7, n_layers=1, decay=decay), words(batch=1, length=150)
        assert ratio(model(tokens)[0][0], model_loop(model, tokens[0])) <= 1e-11


def test_a_block_is_one_of_the_models():
    model, tokens = make(d_input=3, n_outputs=2, n_layers=1), torch.randn(2, 6, 3, dtype=DOUBLE)
    block = GDSSMBlock(model.config, dtype=DOUBLE)
    block.load_state_dict(model.model.blocks[0].state_dict())
    h, state = block(model.model.embed(tokens), block.init_state(2))
    assert torch.equal(model.outputs(model.model.norm(h)), model(tokens)[0])
    assert torch.equal(state.z, model(tokens)[1].blocks[0].z)
    assert GDSSMBlock(d_model=6, n_heads=3).config.head_size == 2


# Any options, any splits, any padding


@st.composite
def any_options(draw):
    """Options that fit together, without those that need whole sequences."""
    normalize = draw(st.sampled_from(["keys", "none", "stream"]))
    separate = normalize != "stream" and draw(st.booleans())
    taps, activation = draw(st.sampled_from(["head", "channel"])), draw(st.sampled_from(["none", "silu"]))
    windowed = not separate and taps == "head" and activation == "none" and normalize != "keys"
    input_gate = draw(st.sampled_from(["rank1", "full"])) if windowed else "rank1"
    return {
        "normalize": normalize,
        "form": "separate" if separate else "shared",
        "taps": taps,
        "activation": activation,
        "input_gate": input_gate,
        "skip": input_gate == "rank1" and draw(st.booleans()),
        "decay": draw(st.sampled_from(["none", "head", "input"])),
        "gate": draw(st.sampled_from(["none", "silu", "sigmoid"])),
        "key_map": draw(st.booleans()),
        "readout_norm": draw(st.booleans()),
        "window": draw(st.integers(1, 4)),
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": draw(st.sampled_from([1, 2])),
        "d_mlp": draw(st.sampled_from([0, 8])),
        "vocab_size": 7,
    }


def streamed(model, tokens, cuts, mask=None):
    """Outputs in pieces that end at these places, and the last state."""
    state, outputs = None, []
    for start, end in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        out, state = model(tokens[:, start:end], state, mask=None if mask is None else mask[:, start:end])
        outputs.append(out)
    return torch.cat(outputs, dim=1), state


@settings(max_examples=25)
@given(any_options(), st.integers(0, 99), st.data())
def test_streamed_in_pieces_and_padded_anywhere(options, seed, data):
    """Whole sequences alone, against one batch with gaps of any place and length, read in pieces, in the same precision.

    A draw can amplify rounding, where a readout nearly cancels before it is normed: there float32 must be as good in pieces as it
    is in one pass, by the answer in float64.
    """
    model = make(seed=seed, **options)
    tokens = words(batch=3, length=20, seed=seed)
    mask = torch.rand(3, 20, generator=torch.Generator().manual_seed(seed)) < data.draw(st.sampled_from([0.4, 0.9, 1.1]))
    cuts = sorted(data.draw(st.lists(st.integers(0, 20), max_size=4)))
    single = GDSSMForSequenceModeling(model.config)
    single.load_state_dict(model.state_dict())
    exact, wanted = ([m(row[read][None]) for row, read in zip(tokens, mask, strict=True)] for m in (model, single))
    for m, whole, least in ((model, exact, 1e-10), (single, wanted, 1e-5)):
        outputs, state = streamed(m, tokens, cuts, mask)
        for b, (alone, own) in enumerate(whole):
            tolerance = max(least, 4 * ratio(alone[0], exact[b][0][0]))
            assert ratio(outputs[b][mask[b]], alone[0]) <= tolerance
            assert not outputs[b][~mask[b]].any()
            assert int(state.seen[b]) == int(own.seen[0]) == int(mask[b].sum())
            assert all(ratio(x.z[b], y.z[0]) <= tolerance for x, y in zip(state.blocks, own.blocks, strict=True))


def test_steps_are_the_whole():
    model, tokens = make(vocab_size=7), words()
    whole, end = model(tokens)
    state, outputs = model.init_state(3), []
    for token in tokens.unbind(1):
        out, state = model.step(token, state)
        outputs.append(out)
    assert ratio(torch.stack(outputs, dim=1), whole) <= 1e-12
    assert ratio(state.blocks[1].z, end.blocks[1].z) <= 1e-12
    last = make(vocab_size=7, pooling="last", n_outputs=2)
    _, state = last(tokens[:, :-1])
    assert ratio(last.step(tokens[:, -1], state)[0], last(tokens)[0]) <= 1e-12


@pytest.mark.parametrize("pooling", ["none", "mean", "last"])
@pytest.mark.parametrize("options", [
    {},
    {"bidirectional": True},
    {"bidirectional": True, "normalize": "stream", "decay": "input"},
    {"skip": True, "gate": "sigmoid"},
    {"skip": True, "gate": "none", "bidirectional": True, "normalize": "stream"},
])  # fmt: skip
def test_padding_of_whole_sequences(options, pooling):
    """Masks on either side, gaps, and lengths give what every sequence gives alone; outputs and gradients."""
    model, tokens = make(vocab_size=7, pooling=pooling, n_outputs=7, **options), words(batch=4, length=8)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1, 1, 1], [1] * 8]).bool()
    alone = [model(row[read][None])[0][0] for row, read in zip(tokens, mask, strict=True)]
    wanted = torch.autograd.grad(sum(out.square().sum() for out in alone), list(model.parameters()))
    outputs, _ = model(tokens, mask=mask)
    assert all(ratio(outputs[b][mask[b]] if pooling == "none" else outputs[b], alone[b]) <= 1e-12 for b in range(4))
    got = torch.autograd.grad(outputs.square().sum(), list(model.parameters()))
    assert all(ratio(a, b) <= 1e-10 for a, b in zip(got, wanted, strict=True))
    right, _ = model(tokens, lengths=torch.tensor([8, 5, 8, 8]))
    assert ratio(right[1][:5] if pooling == "none" else right[1], alone[1]) <= 1e-12


def test_sequences_of_no_tokens():
    model = make(vocab_size=7, pooling="mean", n_outputs=2)
    outputs, _ = model(words(), mask=torch.zeros(3, 13))
    assert outputs.shape == (3, 2)
    assert not outputs.any()
    assert not model(words(length=0))[0].any()
    tokens = make(vocab_size=7)
    out, state = tokens(words(length=0))
    assert out.shape == (3, 0, 7)
    assert ratio(tokens(words(), state)[0], tokens(words())[0]) == 0


def test_gradient_checkpointing_changes_no_number():
    model, tokens = make(vocab_size=7), words()
    plain = torch.autograd.grad(model(tokens)[0].square().sum(), list(model.parameters()))
    model.model.gradient_checkpointing = True
    again = torch.autograd.grad(model(tokens)[0].square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("options", [{}, {"skip": True}, {"skip": True, "normalize": "stream"}])
def test_half_precision_is_summed_in_double(options):
    """One token again and again with Lambda = 1: in bfloat16 the sum would stand still after 256 equal terms."""
    model = make(vocab_size=7, n_layers=1, decay="none", window=1, dtype=torch.bfloat16, **options)
    out, first = model(torch.full((1, 1000), 3))
    _, second = model(torch.full((1, 1000), 3), first)
    assert out.dtype == torch.bfloat16
    assert first.blocks[0].z.dtype == DOUBLE
    assert ratio(second.blocks[0].z, 2 * first.blocks[0].z) <= 1e-6


# Fresh weights


def test_fresh_branches_are_scaled_and_the_skip_starts_at_four():
    def fresh(scale):
        model = GDSSMForSequenceModeling(**SMALL, vocab_size=7, skip=True, branch_scale=scale, dtype=DOUBLE)
        model.reset_parameters(torch.Generator().manual_seed(0))
        return model.state_dict()

    whole, small = fresh(1.0), fresh(0.1)
    ends = [name for name in whole if name.endswith("w_out")]
    assert len(ends) == 4  # of two mixers and two networks
    for name, value in whole.items():
        torch.testing.assert_close(small[name], 0.1 * value if name in ends else value)
        assert not name.endswith("skip") or value.unique().tolist() == [4]


def test_fresh_weights():
    model = gdssm.GDSSMForSequenceModeling(vocab_size=65, n_heads=4, decay="input", decay_range=(0.9, 0.999), key_map=True)
    for block in model.model.blocks:
        mixer = block.mixer
        rates = torch.nn.functional.softplus(mixer.decay_bias.double()).neg().exp()
        assert rates[[0, -1]].tolist() == pytest.approx([0.9, 0.999], abs=1e-5)
        assert torch.equal(mixer.key_map[0], torch.eye(32))
        assert float(mixer.w_out.detach().std()) == pytest.approx((8 * 128) ** -0.5, rel=0.05)
        assert not mixer.w_in[-4:].any()
    both = GDSSMForSequenceModeling(vocab_size=65, n_heads=4, bidirectional=True, n_outputs=2, pooling="mean")
    lam = both.model.blocks[0].mixer.log_rate.exp().neg().exp()
    one = GDSSMForSequenceModeling(vocab_size=65, n_heads=1).model.blocks[0].mixer
    assert one.log_rate.exp().neg().exp().tolist() == pytest.approx([0.999], abs=1e-5)
    assert lam.tolist() == pytest.approx([0.5, 0.999, 0.5, 0.999], abs=1e-5)
    first, second = (make(seed=3, vocab_size=7).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    tied = sum(p.numel() for p in GDSSMForSequenceModeling(vocab_size=65).parameters())
    free = sum(p.numel() for p in GDSSMForSequenceModeling(vocab_size=65, tie_embeddings=False).parameters())
    assert free - tied == 65 * 128


# Bad input


@pytest.mark.parametrize(("options", "message"), [
    ({"n_heads": 3}, "n_heads must divide d_model = 128 where d_head is not given, got 3"),
    ({"d_model": 0}, "d_model must be an integer >= 1, got 0"),
    ({"form": "shard"}, "form is 'shard' (did you mean 'shared'?); allowed: shared, separate"),
    ({"n_layer": 2}, "n_layer is no field of DeepConfig (did you mean 'n_layers'?)"),
    ({"window": 2.5}, "window must be of type int, got 2.5"),
    ({"input_gate": "full"}, "input_gate is 'full'; it needs form 'shared'"),
    ({"input_gate": "full", "normalize": "none", "skip": True}, "skip is True; it needs input_gate 'rank1'"),
    ({"branch_scale": -1.0}, "branch_scale must be a finite number >= 0 and <= 100, got -1.0"),
    ({"branch_scale": 101.0}, "branch_scale must be a finite number >= 0 and <= 100, got 101.0"),
    ({"form": "separate", "normalize": "stream"}, "normalize is 'stream'; form 'separate' has no common stream"),
    ({"decay_range": (0.5, 1.0)}, "decay_range[1] must be a finite number >= 0.5 and < 1, got 1.0"),
    ({"bidirectional": True, "n_heads": 1}, "n_heads must be even where bidirectional"),
    ({"pooling": "mean"}, "n_outputs must be given"),
    ({"d_input": 3}, "vocab_size and d_input: give exactly one, got 65 and 3"),
    ({"norm_eps": 0.0}, "norm_eps must be a finite number > 0, got 0.0"),
])  # fmt: skip
def test_options_that_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        GDSSMForSequenceModeling(**({"vocab_size": 65} | options))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_configurations_are_values():
    config = DeepConfig(vocab_size=7)
    assert dataclasses.replace(config, window=2) != config
    with pytest.raises(ConfigError, match="config is given, so options must be in it: window"):
        GDSSMModel(config, window=2)
    with pytest.raises(ConfigError, match="config must be a DeepConfig, got 3"):
        GDSSMModel(3)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda m: m(words() + 1), ValueError, "tokens must lie in 0..6 (vocab_size 7), got 7"),
    (lambda m: m(words() - 1), ValueError, "tokens must lie in 0..6 (vocab_size 7), got -1"),
    (lambda m: m(words().float()), TypeError, "tokens must be a tensor of int64 or int32, got torch.float32"),
    (lambda m: m(words()[0]), ValueError, "tokens must be (B, T), got shape (13,)"),
    (lambda m: m(words(), lengths=torch.tensor([1, 2, 14])), ValueError, "lengths must lie in 0..13"),
    (lambda m: m(words(), mask=torch.ones(3, 12)), ValueError, "mask must be (3, 13) like the tokens, got (3, 12)"),
    (lambda m: m(words(), mask=torch.full((3, 13), 2)), ValueError, "mask must hold True and False, or 1 and 0, got [2]"),
    (lambda m: m(words(), None, torch.tensor([1, 1, 1]), torch.ones(3, 13)), ValueError, "lengths and mask are both given"),
    (lambda m: m(words(), m.init_state(2)), ValueError, "state is for 2 sequences, tokens have 3"),
    (lambda m: m(words(), make(vocab_size=7, window=2).init_state(3)), ValueError, "state must be one of this model"),
    (lambda m: m.init_state(0), ValueError, "batch_size must be an integer >= 1, got 0"),
    (lambda m: m([[1, 2]]), TypeError, "tokens must be a tensor of int64 or int32, got list"),
    (lambda m: m.step(torch.tensor(3), m.init_state(1)), ValueError, "token must have the batch as its first axis, got tensor(3)"),
    (lambda m: m.model.blocks[0](torch.zeros(3, 2, 7)), ValueError, "h must be (B, T, 8), got (3, 2, 7)"),
    (lambda m: m.model.blocks[0](torch.zeros(3, 2, 8), m.init_state(3)), ValueError, "state must be a BlockState, got a DeepState"),
    (lambda m: m.model.blocks[0](torch.zeros(3, 2, 8), m.init_state(2).blocks[0]), ValueError, "state is for 2 sequences, h has 3"),
    (lambda m: m.model.hidden(torch.zeros(1, 2, 3)), ValueError, "h must be (B, T, 8), got shape (1, 2, 3)"),
    (lambda m: make(d_input=3, n_outputs=2)(torch.zeros(1, 2, 4)), ValueError, "tokens must be (B, T, 3), got shape (1, 2, 4)"),
    (lambda m: make(d_input=3, n_outputs=2)(words()), TypeError, "tokens must be a floating-point tensor, got torch.int64"),
])  # fmt: skip
def test_input_that_is_refused(call, error, message):
    with pytest.raises(error) as raised:
        call(make(vocab_size=7))
    assert str(raised.value).startswith(message)


def test_models_of_whole_sequences_have_no_state():
    both = make(vocab_size=7, bidirectional=True)
    assert both(words())[1] is None
    with pytest.raises(ValueError, match="it has no state"):
        both.init_state(3)
    with pytest.raises(ValueError, match="goes on from none"):
        both(words(), make(vocab_size=7).init_state(3))
    mean = make(vocab_size=7, pooling="mean", n_outputs=2)
    assert mean(words())[1] is None
    with pytest.raises(ValueError, match="with pooling 'mean' whole sequences are read"):
        mean(words(), mean.init_state(3))
    with pytest.raises(ValueError, match="has no state to go on from"):
        both.step(words()[:, 0], None)


# The scan of given keys and values


@pytest.mark.parametrize("structure", ["none", "head", "input"])
def test_linear_scan_is_gd_scan_on_pairs(structure):
    """Keys and values as the pairs of the reference's stream of stride 2: all gradients, in several chunks, with padding."""
    batch, tokens, heads, size = 3, 70, 2, 4
    g = torch.Generator().manual_seed(0)
    keys, values, queries = (torch.randn(batch, tokens, heads, size, generator=g, dtype=DOUBLE).requires_grad_() for _ in range(3))
    z = torch.randn(batch, heads, size, size, generator=g, dtype=DOUBLE).requires_grad_()
    shape = {"none": None, "head": (heads,), "input": (batch, tokens, heads)}[structure]
    log = None if shape is None else (-torch.rand(shape, generator=g, dtype=DOUBLE)).requires_grad_()
    given = [keys, values, queries, z] + ([] if log is None else [log])
    pair = torch.zeros(heads, 2, 2, dtype=DOUBLE)
    pair[:, 0, 1] = 1
    for lengths in (None, torch.tensor([70, 33, 0])):
        stream = torch.stack([keys, values], dim=2).flatten(1, 2)
        before = ops.ScanState(z, torch.zeros(batch, 1, heads, size, dtype=DOUBLE), torch.zeros(batch, dtype=torch.int64))
        twice = None if lengths is None else 2 * lengths
        options = {"stride": 2, "state": before, "lengths": twice, "queries": queries, "backend": "reference"}
        wanted, after = ops.gd_scan(stream, pair, log, None, **options)
        out, last = ops.linear_scan(keys, values, queries, log, z=z, lengths=lengths)
        assert ratio(out, wanted) <= 1e-12
        assert ratio(last, after.z) <= 1e-12
        weight = torch.randn(last.shape, generator=g, dtype=DOUBLE)
        grads = [torch.autograd.grad(o.square().sum() + (weight * s).sum(), given) for o, s in ((out, last), (wanted, after.z))]
        assert all(ratio(a, b) <= 1e-10 for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_of_linear_scan_where_values_have_another_size(size, monkeypatch):
    """In chunks of 3 tokens, several steps, the last one shorter."""
    monkeypatch.setattr(ops.chunk_steps, "CHUNK", 3)
    monkeypatch.setattr(ops.chunk_steps, "_STEP", 12)
    monkeypatch.setattr(ops.chunk_steps, "_CHUNKS", 1)
    g = torch.Generator().manual_seed(0)
    shapes = [(1, 7, 2, 2), (1, 7, 2, size), (1, 7, 2, 2), (1, 2, 2, size)]
    keys, values, queries, z = (torch.randn(shape, generator=g, dtype=DOUBLE).requires_grad_() for shape in shapes)
    for shape in ((2,), (1, 7, 2)):
        log = (-torch.rand(shape, generator=g, dtype=DOUBLE)).requires_grad_()
        given = (keys, values, queries, log)
        assert torch.autograd.gradcheck(lambda *x: ops.linear_scan(*x[:4], z=x[4]), (*given, z))


def test_linear_scan_of_other_shapes():
    """Values of another size than keys; half precision is summed in float32 or better; strong decays do not overflow."""
    keys, values = torch.randn(1, 5, 2, 3).bfloat16(), torch.randn(1, 5, 2, 4).bfloat16()
    log = torch.tensor([-1e4, -1.0])
    out, z = ops.linear_scan(keys, values, keys, log)
    exact, exact_z = ops.linear_scan(keys.double(), values.double(), keys.double(), log)
    assert (out.dtype, z.dtype, z.shape) == (torch.bfloat16, DOUBLE, (1, 2, 3, 4))
    assert ratio(out, exact) <= 8e-3
    assert ratio(z, exact_z) <= 1e-6
    assert ratio(exact_z[0, 0], keys[0, -1, 0].double()[:, None] * values[0, -1, 0].double()) <= 1e-12


@pytest.mark.parametrize(("change", "message"), [
    ({"queries": torch.zeros(1, 5, 2, 4)}, "keys and queries must be (B, T, H, D), values (B, T, H, E), got shapes"),
    ({"log_decay": torch.zeros(3)}, "log_decay has shape (3,); allowed: None, (2,), (1, 5, 2)"),
    ({"log_decay": torch.tensor([0.1, 0])}, "log_decay must be <= 0 everywhere (Lambda <= 1), its largest value is 0.1"),
    ({"z": torch.zeros(1, 2, 3, 4)}, "z has shape (1, 2, 3, 4); these keys and values need (1, 2, 3, 3)"),
    ({"lengths": torch.tensor([6])}, "lengths must lie in 0..5"),
])  # fmt: skip
def test_linear_scan_refuses(change, message):
    x = torch.zeros(1, 5, 2, 3)
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.linear_scan(**({"keys": x, "values": x, "queries": x, "log_decay": None} | change))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"form": "separate"},
        {"taps": "channel", "window": 7},
        {"input_gate": "full", "normalize": "stream"},
        {"filters": "random"},
    ],
)
def test_the_last_head_of_fresh_weights_recalls_what_followed_an_equal_token(options):
    """Keys and values of 8 pairs that were never trained on; the others, with random filters, do not."""
    config = DeepConfig(d_input=64, n_outputs=1, d_model=512, n_heads=4, gate="none", readout_norm=False, **options)
    mixer = Mixer(config, dtype=DOUBLE)
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    for weight in (mixer.w_in, mixer.w_out):
        weight.copy_(torch.eye(512, dtype=DOUBLE).repeat(len(weight) // 512, 1))
    keys, values = torch.randn(2, 8, 512, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    context = torch.stack([keys, values], dim=1).flatten(0, 1)
    read = mixer(torch.cat([context.expand(8, -1, -1), keys[:, None]], dim=1))[0][:, -1]  # each key once more
    heads, asked = (x.unflatten(-1, (4, 128)) for x in (read, values))
    found = torch.einsum("qhd,vhd->hqv", heads, asked).argmax(2)  # the value each head's readout is nearest to
    right = (found == torch.arange(8)).double().mean(1)
    assert (right > 0.7).tolist() == [False, False, False, options.get("filters") != "random"]
