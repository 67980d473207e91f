"""Deep baselines beside plain loops: what each mixer computes, causality, directions, padding; GPT-2 and Mamba as wrapped."""

import math

import pytest
import torch
from torch.nn.functional import silu

from gdssm.baselines.deep import MIXERS, DeepBaseline, flipped, gated
from gdssm.config import ConfigError
from gdssm.hf_sequences import TransformersSequences

SIZES = {"d_model": 8, "n_layers": 2, "n_heads": 2, "window": 3}


def make(mixer, **options):
    model = DeepBaseline(mixer, 11, 5, **SIZES, **options).double()
    model.reset_parameters(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():  # of a size at which every part matters
            parameter.mul_(20 if parameter.ndim > 1 and parameter.std() < 0.1 else 1)
    return model


def tokens(batch=3, length=37, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def rms(x):
    return x * (x.square().mean() + torch.finfo(x.dtype).eps).rsqrt()


def looped(model, row):
    """The model on one sequence (T,), token by token and head by head."""
    h = [model.embedding.weight[t] for t in row]
    for block in model.blocks:
        mix, n = block.mix, [block.mix_norm.weight * rms(x) for x in h]
        size = len(h[0]) // mix.n_heads
        streams = [mix.qkv.weight @ x for x in n]
        if model.mixer != "attention":
            zero = torch.zeros_like(streams[0])
            full = [zero] * (mix.window - 1) + streams
            streams = [silu(sum(full[t + a] * mix.filters[a] for a in range(mix.window))) for t in range(len(n))]
        outs = []
        for head in range(mix.n_heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = ([s.chunk(3)[i][part] for s in streams] for i in range(3))
            outs.append(mixed(model.mixer, mix, n, q, k, v, head, part))
        for t in range(len(h)):
            if model.mixer == "attention":
                o = torch.cat([out[t] for out in outs])
            else:
                o = torch.cat([mix.head_norm.weight * rms(out[t]) for out in outs]) * silu(mix.gate.weight @ n[t])
            x = h[t] + mix.out.weight @ o
            m = block.mlp_norm.weight * rms(x)
            h[t] = x + block.down.weight @ (silu(block.gate.weight @ m) * (block.up.weight @ m))
    return torch.stack([model.head.weight @ (model.norm.weight * rms(x)) for x in h])


def turned(x, t):
    """A query or key of token t: pairs of features as complex numbers, turned."""
    half = len(x) // 2
    rates = torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    pairs = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half).double(), t * rates)
    return torch.cat([pairs.real, pairs.imag])


def mixed(mixer, mix, n, q, k, v, head, part):
    """One head's outputs, one after the other."""
    if mixer == "attention":
        found = []
        q, k = ([turned(x, t) for t, x in enumerate(xs)] for xs in (q, k))
        for t in range(len(q)):
            scores = torch.stack([q[t] @ k[s] for s in range(t + 1)]) / math.sqrt(len(q[t]))
            found.append(scores.softmax(0) @ torch.stack(v[: t + 1]))
        return found
    q, k = ([x / x.norm() for x in xs] for xs in (q, k))
    z, found = torch.zeros(len(q[0]), len(v[0]), dtype=v[0].dtype), []
    for t in range(len(q)):
        if mixer == "window":
            z = torch.outer(k[t], v[t])
        elif mixer == "delta_net":
            beta = torch.sigmoid(mix.rate.weight[head] @ n[t] + mix.rate.bias[head])
            z = z + beta * torch.outer(k[t], v[t] - z.mT @ k[t])
        elif mixer == "gated_linear_attention":
            decay = torch.sigmoid(mix.rate.weight[part] @ n[t] + mix.rate.bias[part]) ** (1 / 16)
            z = decay[:, None] * z + torch.outer(k[t], v[t])
        else:
            z = z + torch.outer(k[t], v[t])
        found.append(z.mT @ q[t])
    return found


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_model_is_what_its_loop_computes(mixer):
    model, read = make(mixer), tokens(2)
    wanted = torch.stack([looped(model, row) for row in read])
    torch.testing.assert_close(model(read), wanted, rtol=0, atol=1e-9)
    assert float(wanted.std()) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("both", [False, True])
def test_padding_changes_nothing(mixer, both):
    model, read, lengths = make(mixer, pooled=True, both=both), tokens(), torch.tensor([37, 5, 20])
    alone = torch.cat([model(row[None, :length]) for row, length in zip(read, lengths, strict=True)])
    other = torch.where(torch.arange(37) < lengths[:, None], read, 10 - read)
    torch.testing.assert_close(model(read, lengths), alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(other, lengths), alone, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_causal_alone_is_blind_to_what_follows(mixer):
    read = tokens(1)
    changed = read.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 11
    for both in (False, True):
        model = make(mixer, both=both)
        moved = (model(read) - model(changed)).abs().amax(2)[0] > 1e-12
        assert bool(moved[20])
        assert bool(moved[:16].any()) == (both and mixer != "window")  # a window of 3 in two blocks sees 4 tokens ahead
        assert bool(moved[16:20].any()) == both


@torch.no_grad()
def test_half_of_the_heads_read_from_the_other_end():
    model = make("delta_net", both=True)
    block = model.blocks[0].mix
    g = torch.Generator().manual_seed(2)
    h = torch.randn(1, 9, 8, generator=g, dtype=torch.float64)
    own = block(h, None)
    swapped = make("delta_net", both=True).blocks[0].mix
    order = torch.cat([torch.arange(4, 8), torch.arange(4)])  # the two heads change places
    swapped.qkv.weight.copy_(block.qkv.weight[torch.cat([order + 8 * i for i in range(3)])])
    swapped.filters.copy_(block.filters[:, torch.cat([order + 8 * i for i in range(3)])])
    swapped.gate.weight.copy_(block.gate.weight[order])
    swapped.out.weight.copy_(block.out.weight[:, order])
    swapped.rate.weight.copy_(block.rate.weight[[1, 0]])
    swapped.rate.bias.copy_(block.rate.bias[[1, 0]])
    torch.testing.assert_close(swapped(h.flip(1), None).flip(1), own, rtol=0, atol=1e-12)
    assert torch.equal(flipped(h, None), h.flip(1))


def test_strong_decays_leave_nothing_infinite():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 40, 4, generator=g) for _ in range(3))
    log = torch.full((1, 1, 40, 4), -50.0, requires_grad=True)
    out = gated(q, k, v, log)
    out.sum().backward()
    assert bool(out.isfinite().all())
    assert log.grad is not None
    assert bool(log.grad.isfinite().all())


def test_sizes_and_errors():
    assert make("attention").state_size(10) == 2 * 2 * 10 * 8
    assert make("delta_net").state_size(10) == 2 * (3 * 2 * 8 + 2 * 4 * 4)
    assert make("window").state_size(10) == 2 * 3 * 2 * 8
    with pytest.raises(ConfigError, match=r"mixer is 'delta' \(did you mean 'delta_net'\?\)"):
        DeepBaseline("delta", 4, 4)
    with pytest.raises(ValueError, match="n_heads must divide d_model = 128, and be even, got 1"):
        DeepBaseline("window", 4, 4, n_heads=1, both=True)
    with pytest.raises(ValueError, match="d_model / n_heads must be even for attention, got 3"):
        DeepBaseline("attention", 4, 4, d_model=6, n_heads=2)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "mamba"])
def test_models_of_transformers_look_their_tokens_up(kind):
    """Beside transformers' own model, which looks up the same table."""
    model = TransformersSequences(kind, 11, 11, d_model=8, n_layers=2, n_heads=2, max_tokens=12)
    model.reset_parameters(torch.Generator().manual_seed(0))
    again = TransformersSequences(kind, 11, 11, d_model=8, n_layers=2, n_heads=2, max_tokens=12)
    again.reset_parameters(torch.Generator().manual_seed(0))
    read = tokens(2, 12)
    out = model(read)
    assert torch.equal(out, again(read))
    own = model.base.model
    own.set_input_embeddings(model.embedding)
    try:
        torch.testing.assert_close(out, own(input_ids=read, use_cache=False).last_hidden_state @ model.embedding.weight.mT)
    finally:
        own.set_input_embeddings(None)
    assert model.state_size(12) == (2 * 2 * 12 * 8 if kind == "gpt2" else 2 * 16 * 19)
    changed = read.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    assert torch.equal(model(changed)[:, :7], out[:, :7])
    vectors = TransformersSequences(kind, 3, 5, d_model=8, n_heads=2, embed=False)
    assert vectors(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))).shape == (2, 4, 5)


@torch.no_grad()
def test_logits_of_the_tokens_read_have_the_embeddings_matrix():
    tied, other = DeepBaseline("window", 11, 11, **SIZES), DeepBaseline("window", 11, 5, **SIZES)
    assert tied.head is None
    assert other.head is not None
    before = tied(tokens(1))
    tied.embedding.weight[3] = 0
    after = tied(tokens(1))
    assert not bool(after[..., 3].any())
    assert bool(before[..., 3].any())


@pytest.mark.parametrize(
    ("both", "n_heads", "recalling"), [(False, 4, [3]), (True, 4, [1, 3]), (True, 2, [0, 1]), (False, 8, [6, 7])]
)
def test_filters_that_start_recalling(both, n_heads, recalling):
    """In the last quarter of each direction's heads keys see the token before the last, values and queries the last."""
    model = DeepBaseline("linear_attention", 11, 5, d_model=64, n_layers=1, n_heads=n_heads, both=both, filters="recalling")
    taps = model.blocks[0].mix.filters.detach().unflatten(1, (3, n_heads, -1)).mean(3)  # (W, 3, H): a head has 8 features or more
    ideal = torch.zeros(4, 3)
    ideal[[-1, -2, -1], range(3)] = 1
    near = [head for head in range(n_heads) if (taps[:, :, head] - ideal).abs().max() < 0.15]
    assert near == recalling
