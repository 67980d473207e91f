"""The cheap path to the last output against the full scan: values, gradients, states, padding, stacked parameters."""

import pytest
import torch
from torch.func import functional_call

from gdssm import GDSSM, ConjugateGradientReadout, InContextModel, IteratedReadout, NewtonReadout, TwoStepBlock, ops
from plain import ratio

DECAYS = ("none", "head", "row", "full")


def random_layer(decay, *, d_model=3, seed=0, **options):
    """A float64 layer with every parameter random and decays from 0.4 to 1."""
    layer = GDSSM(d_model, decay=decay, dtype=torch.float64, **options)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
            if name == "decay.log_rate":
                p.copy_(torch.log(-torch.log(0.4 + 0.6 * torch.rand(p.shape, generator=g, dtype=torch.float64))))
            if name == "count_offset":
                p.abs_()
    return layer


def stream(batch, tokens, d_model=3, seed=1):
    return torch.randn(batch, tokens, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def through_reference(layer, tokens, state=None, lengths=None):
    """Each sequence's last output from the reference scan of its own tokens, and nothing else of the batch."""
    layer.backend, backend = "reference", layer.backend
    rows = []
    for b in range(len(tokens)):
        own = None
        if state is not None:
            own = type(state)(state.z[b : b + 1], state.tail[b : b + 1], state.seen[b : b + 1], layer)
        n = tokens.shape[1] if lengths is None else int(lengths[b])
        rows.append(layer(tokens[b : b + 1, :n], own)[0][0, -1])
    layer.backend = backend
    return torch.stack(rows)


def compare(layer, tokens, state=None, lengths=None, tolerance=1e-10):
    """Values, and gradients of every parameter, the tokens and the state's Z, for a random upstream gradient."""
    leaves = [tokens.clone().requires_grad_(), *layer.parameters()]
    given = state
    if state is not None:
        given = type(state)(state.z.clone().requires_grad_(), state.tail, state.seen, layer)
        leaves.append(given.z)
    results = []
    for out in (layer.last(leaves[0], given, lengths), through_reference(layer, leaves[0], given, lengths)):
        g = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
        results.append([out, *torch.autograd.grad(out, leaves, g)])
    errors = [ratio(got, wanted) for got, wanted in zip(*results, strict=True)]
    assert errors[0] <= 1e-12
    assert max(errors) <= tolerance, errors


@pytest.mark.parametrize("n_heads", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("decay", DECAYS)
def test_every_geometry(decay, stride, window, n_heads):
    layer = random_layer(decay, window=window, stride=stride, n_heads=n_heads, seed=n_heads)
    compare(layer, stream(2, 12))


@pytest.mark.parametrize("options", ["key_map", "feedthrough", "normalize", "key_map feedthrough normalize"])
@pytest.mark.parametrize("decay", DECAYS)
def test_every_option_with_state_and_lengths(decay, options):
    """Lengths 9 to 1, on their own and after streams of 8 to 1 tokens: one has a window at once, another two tokens later."""
    layer = random_layer(decay, stride=1, n_heads=2, **dict.fromkeys(options.split(), True))
    tokens, lengths = stream(4, 9), torch.tensor([9, 4, 1, 6])
    compare(layer, tokens)
    compare(layer, tokens[[0, 1, 3]], lengths=lengths[[0, 1, 3]])
    with torch.no_grad():
        _, state = layer(stream(4, 8, seed=2), lengths=torch.tensor([8, 1, 3, 5]))
    compare(layer, tokens, state)
    compare(layer, tokens, state, lengths)


@pytest.mark.parametrize("decay", DECAYS)
def test_stride_two_with_state_and_lengths(decay):
    layer = random_layer(decay, stride=2, n_heads=2)
    tokens, lengths = stream(3, 11), torch.tensor([11, 7, 4])
    compare(layer, tokens, lengths=lengths)
    with torch.no_grad():
        _, state = layer(stream(3, 9, seed=2), lengths=torch.tensor([9, 3, 1]))
    compare(layer, tokens, state)
    compare(layer, tokens, state, lengths)


@pytest.mark.parametrize("tokens", [255, 256, 257, 600])
@pytest.mark.parametrize("decay", DECAYS)
def test_long_contexts(decay, tokens):
    """Short and long contexts may take different forms inside; decays of 0.4 to the 600th power are in it."""
    compare(random_layer(decay, d_model=2, n_heads=2), stream(2, tokens, 2))


@pytest.mark.parametrize("decay", DECAYS)
def test_many_sequences_and_heads_at_once(decay):
    """Enough numbers for the windows to be worked off in several pieces."""
    layer = random_layer(decay, d_model=16, n_heads=4)
    tokens = stream(96, 101, 16) / 4
    out = layer.last(tokens)
    with torch.no_grad():
        layer.backend = "reference"
        wanted = layer(tokens)[0][:, -1]
    assert ratio(out, wanted) <= 1e-12
    g = torch.ones_like(out)
    got = torch.autograd.grad(out, list(layer.parameters()), g)
    layer.backend = "chunked"  # itself compared with the reference elsewhere; autograd through 50 windows of this size is slow
    want = torch.autograd.grad(layer(tokens)[0][:, -1], list(layer.parameters()), g)
    assert max(ratio(a, b) for a, b in zip(got, want, strict=True)) <= 1e-10


@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 3])])
@pytest.mark.parametrize("key_map", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_gradcheck(decay, key_map, lengths):
    """The gradients written out by hand against finite differences."""
    layer = random_layer(decay, d_model=2, n_heads=2, stride=1, key_map=key_map)
    names = [name for name, _ in layer.named_parameters()]

    def function(tokens, *parameters):
        return functional_call(_Last(layer), {f"layer.{n}": p for n, p in zip(names, parameters, strict=True)}, (tokens, lengths))

    inputs = [stream(2, 5, 2).requires_grad_(), *(p.detach().clone().requires_grad_() for p in layer.parameters())]
    assert torch.autograd.gradcheck(function, inputs)


class _Last(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, tokens, lengths):
        return self.layer.last(tokens, None, lengths)


@pytest.mark.parametrize("decay", DECAYS)
def test_stacked_parameters_are_separate_layers(decay):
    """Values and gradients of S layers read at once."""
    options = {"n_heads": 2, "key_map": True, "feedthrough": True, "normalize": True}
    layers = [random_layer(decay, seed=s, **options) for s in range(3)]
    tokens = stream(4, 9)
    stacked = {
        name: torch.stack([dict(layer.named_parameters())[name] for layer in layers]).detach().requires_grad_()
        for name, _ in layers[0].named_parameters()
    }
    out = layers[0].last_stacked(stacked, tokens)
    named = {f"layer.{name}": value for name, value in stacked.items()}
    assert torch.equal(InContextModel(layers[0], 3, 2).last_stacked(named, tokens), out[..., :2])
    weight = stream(3, 4)
    gradients = dict(zip(stacked, torch.autograd.grad((out * weight).sum(), list(stacked.values())), strict=True))
    for s, layer in enumerate(layers):
        alone = layer.last(tokens)
        assert ratio(out[s], alone) <= 1e-12
        for name, p in layer.named_parameters():
            (wanted,) = torch.autograd.grad((alone * weight[s]).sum(), p, retain_graph=True)
            assert ratio(gradients[name][s], wanted) <= 1e-10, name


@pytest.mark.parametrize("decay", DECAYS)
def test_a_decay_of_zero_keeps_the_last_window_only(decay):
    """Where Lambda underflows to 0, its logarithm is -inf; the newest window, of age 0, still counts in full."""
    layer = random_layer(decay)
    with torch.no_grad():
        if layer.decay.log_rate is not None:
            layer.decay.log_rate.fill_(800.0)
    tokens = stream(2, 9)
    wanted = layer.last(tokens if decay == "none" else tokens[:, -3:])
    assert ratio(layer(tokens)[0][:, -1], wanted) <= 1e-12
    assert ratio(layer.last(tokens), wanted) <= 1e-12


@pytest.mark.parametrize("decay", DECAYS)
def test_half_precision_is_computed_in_float32(decay):
    layer = random_layer(decay, n_heads=2).to(torch.bfloat16)
    tokens = stream(2, 41).to(torch.bfloat16)
    exact = random_layer(decay, n_heads=2)
    exact.load_state_dict({name: p.double() for name, p in layer.state_dict().items()})
    out = layer.last(tokens)
    assert out.dtype == torch.bfloat16
    assert ratio(out, exact.last(tokens.double())) <= 8e-3


@pytest.mark.parametrize("decay", DECAYS)
def test_autocast_does_not_lower_the_sums(decay):
    """The readout matrix may be applied in bfloat16, which rounds once; the 150 windows may not be summed in it."""
    layer, tokens = random_layer(decay).float(), stream(2, 301).float()
    wanted = layer.last(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer.last(tokens)
    assert ratio(out, wanted) <= 2**-8


@pytest.mark.parametrize("decay", DECAYS)
def test_padding_is_never_read(decay):
    layer, lengths = random_layer(decay), torch.tensor([9, 5])
    tokens = stream(2, 9)
    dirty = tokens.masked_fill((torch.arange(9) >= lengths[:, None])[:, :, None], torch.nan).requires_grad_()
    out = layer.last(dirty, lengths=lengths)
    assert ratio(out, through_reference(layer, tokens, lengths=lengths)) <= 1e-12
    gradients = torch.autograd.grad(out.sum(), [dirty, *layer.parameters()])
    wanted = torch.autograd.grad(through_reference(layer, tokens, lengths=lengths).sum(), list(layer.parameters()))
    assert torch.count_nonzero(gradients[0][1, 5:]) == 0
    assert max(ratio(a, b) for a, b in zip(gradients[1:], wanted, strict=True)) <= 1e-10


def test_no_window_is_an_error():
    layer = random_layer("none")
    with pytest.raises(ValueError, match="no window of 3 tokens ends in sequence 0"):
        layer.last(stream(2, 2))
    with pytest.raises(ValueError, match="no window of 3 tokens ends in sequence 1"):
        layer.last(stream(2, 5), lengths=torch.tensor([5, 2]))
    _, state = layer(stream(2, 3))
    with pytest.raises(ValueError, match="no window of 3 tokens ends in sequence 0"):
        layer.last(stream(2, 1), state)  # the fourth token completes none at stride 2
    with pytest.raises(ValueError, match="no window of 3 tokens ends in sequence 0"):
        layer.last(stream(2, 0))


@pytest.mark.parametrize("structure", ["none", "head"])
def test_absorb_is_the_scan_without_outputs(structure):
    """Whole, padded, and on from a state."""
    g = torch.Generator().manual_seed(4)
    w_q = torch.randn(2, 3, 3, generator=g, dtype=torch.float64)
    log = None if structure == "none" else torch.tensor([-0.3, -0.01], dtype=torch.float64)
    tokens, d = stream(3, 15).unsqueeze(2).expand(-1, -1, 2, -1), torch.ones(2, 3, dtype=torch.float64)
    for stride, lengths in ((1, None), (2, None), (1, torch.tensor([15, 2, 7]))):
        state = wanted = None
        for piece in (slice(0, 4), slice(4, 4), slice(4, 15)):
            part = tokens[:, piece]
            cut = None if lengths is None else lengths.clamp(max=part.shape[1])
            _, state = ops.absorb(part, w_q, log, structure=structure, stride=stride, state=state, lengths=cut)
            _, wanted = ops.gd_scan(part, w_q, log, d, stride=stride, state=wanted, lengths=cut, backend="reference")
            assert ratio(state.z, wanted.z) <= 1e-12
            assert torch.equal(state.tail, wanted.tail)
            assert torch.equal(state.seen, wanted.seen)


def stacked_copies(layers):
    return {
        name: torch.stack([dict(layer.named_parameters())[name] for layer in layers]).detach().requires_grad_()
        for name, _ in layers[0].named_parameters()
    }


def randomised(layer, seed):
    """Every parameter random, so that none is at a value that hides a mistake."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.3)
    return layer


COPIES = {
    "iterated": lambda: IteratedReadout(3, dtype=torch.float64),
    "iterated with everything": lambda: IteratedReadout(
        4, momentum=True, decay="head", normalize=True, skip=True, d_model=3, dtype=torch.float64
    ),
    "conjugate gradient": lambda: ConjugateGradientReadout(2, decay="head", dtype=torch.float64),
    "Newton": lambda: NewtonReadout(2, normalize=True, dtype=torch.float64),
    **{f"block, decay {decay}": lambda decay=decay: TwoStepBlock(3, decay=decay, dtype=torch.float64) for decay in DECAYS},
}


@pytest.mark.parametrize("kind", COPIES)
def test_stacked_readouts_are_separate_readouts(kind):
    """Values and gradients of copies that are read at once."""
    layers = [randomised(COPIES[kind](), seed) for seed in range(3)]
    tokens, weight = stream(4, 9), stream(3, 4)
    stacked = stacked_copies(layers)
    out = layers[0].last_stacked(stacked, tokens)
    named = {f"layer.{name}": value for name, value in stacked.items()}
    assert torch.equal(InContextModel(layers[0], 3, 2).last_stacked(named, tokens), out[..., :2])
    gradients = dict(zip(stacked, torch.autograd.grad((out * weight).sum(), list(stacked.values())), strict=True))
    for s, layer in enumerate(layers):
        alone = layer.last(tokens)
        assert ratio(out[s], alone) <= 1e-12
        wanted = torch.autograd.grad((alone * weight[s]).sum(), list(layer.parameters()))
        for (name, _), one in zip(layer.named_parameters(), wanted, strict=True):
            torch.testing.assert_close(gradients[name][s], one, rtol=1e-9, atol=1e-12)


def test_stacked_readouts_need_a_window():
    layer = IteratedReadout(2)
    with pytest.raises(ValueError, match="no window of 3 tokens ends in sequence 0"):
        layer.last_stacked(stacked_copies([layer]), torch.zeros(1, 2, 3))
