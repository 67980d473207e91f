"""What every sequence layer must do, ours or a baseline: a base class whose subclass supplies `make` and inherits the tests.

A layer is called as layer(tokens (B, T, D), state=None, lengths=None) -> (outputs (B, K, D_out), state). Its states are
tuples, lists, dictionaries or dataclasses of tensors.

    class TestMine(SequenceLayerContract):
        d_model, window, stride = 3, 1, 1

        def make(self):
            return Mine(3).double()
"""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch.func import functional_call

from plain import ratio


def tensors_of(value):
    """Every tensor in a state, in a fixed order; modules that a state refers to are left out."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors_of(part)] if isinstance(value, tuple | list) else []


class SequenceLayerContract:
    """Tests that a subclass inherits. Output k belongs to the token at which window k ends."""

    d_model = 3
    window = 3
    stride = 2
    float32_tolerance = 1e-5

    def make(self):
        """A layer with float64 parameters; the tests make them random."""
        raise NotImplementedError

    def layer(self):
        """The subclass's layer, every floating-point parameter filled with moderate random numbers."""
        module = self.make()
        g = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(self.parameter(name, 0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64), p))
        return module

    def parameter(self, name, noise, parameter):
        """What to write into a parameter: moderate noise; a subclass overrides where that would be no valid layer."""
        return noise

    def tokens(self, batch=3, length=13, seed=0):
        return torch.randn(batch, length, self.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def ends(self, length):
        """Index of the last token of each window in a stream of this length."""
        return list(range(self.window - 1, length, self.stride))

    def in_pieces(self, module, tokens, cuts):
        state, outputs = None, []
        for start, end in itertools.pairwise([0, *cuts, tokens.shape[1]]):
            out, state = module(tokens[:, start:end], state)
            outputs.append(out)
        return torch.cat(outputs, dim=1), state

    def test_one_output_per_window(self):
        module = self.layer()
        for length in (0, 1, self.window, 13):
            assert module(self.tokens(length=length))[0].shape[:2] == (3, len(self.ends(length)))

    @pytest.mark.parametrize("seed", range(4))
    def test_whole_is_any_split(self, seed):
        """Pieces of random lengths, some of them empty or of one token."""
        module, tokens = self.layer(), self.tokens(length=17, seed=seed)
        cuts = sorted(torch.randint(0, 18, (5,), generator=torch.Generator().manual_seed(seed)).tolist())
        whole, state = module(tokens)
        split, last_state = self.in_pieces(module, tokens, cuts)
        assert ratio(split, whole) <= 1e-12
        assert all(ratio(a, b) <= 1e-12 for a, b in zip(tensors_of(last_state), tensors_of(state), strict=True))

    def test_whole_is_token_by_token(self):
        module, tokens = self.layer(), self.tokens()
        whole, state = module(tokens)
        single, last_state = self.in_pieces(module, tokens, range(1, 13))
        assert ratio(single, whole) <= 1e-12
        assert all(ratio(a, b) <= 1e-12 for a, b in zip(tensors_of(last_state), tensors_of(state), strict=True))

    def test_causal(self):
        """A changed token changes the outputs of windows that end there or later, and none before."""
        module, tokens = self.layer(), self.tokens()
        outputs = module(tokens)[0]
        for t in range(13):
            changed = tokens.clone()
            changed[:, t:] += 1.0
            new = module(changed)[0]
            earlier = [k for k, end in enumerate(self.ends(13)) if end < t]
            assert ratio(new[:, earlier], outputs[:, earlier]) <= 1e-12
            for k in range(len(earlier), outputs.shape[1]):
                assert ratio(new[:, k], outputs[:, k]) > 1e-6

    def test_the_rest_of_the_batch_does_not_matter(self):
        module, tokens = self.layer(), self.tokens()
        outputs, state = module(tokens)
        more = self.tokens(length=4, seed=1)
        later = module(more, state)[0]
        for b in range(3):
            others = torch.full_like(tokens, 5.0)
            others[b] = tokens[b]
            new, new_state = module(others)
            assert ratio(new[b], outputs[b]) <= 1e-12
            assert ratio(module(more, new_state)[0][b], later[b]) <= 1e-12
            alone, alone_state = module(tokens[b : b + 1])
            assert ratio(alone[0], outputs[b]) <= 1e-12
            assert ratio(module(more[b : b + 1], alone_state)[0][0], later[b]) <= 1e-12

    def test_padding_changes_nothing(self):
        """NaN after each length: outputs, what the state goes on to give, and gradients are those of each sequence alone."""
        module, tokens, more = self.layer(), self.tokens(batch=4, length=16), self.tokens(batch=4, length=6, seed=1)
        lengths = [16, 16 - 2 * self.stride, 16 - 4 * self.stride, 1 + 15 % self.stride]  # of one phase, so that they can go on
        padded = tokens.clone()
        for b, n in enumerate(lengths):
            padded[b, n:] = torch.nan
        padded.requires_grad_()
        outputs, state = module(padded, None, torch.tensor(lengths))
        later = module(more, state)[0]
        total = later.sum()
        wanted_total = 0.0
        for b, n in enumerate(lengths):
            alone, alone_state = module(tokens[b : b + 1, :n])
            alone_later = module(more[b : b + 1], alone_state)[0]
            k = alone.shape[1]
            assert k == len(self.ends(n))
            assert ratio(outputs[b, :k], alone[0]) <= 1e-12
            assert ratio(later[b, later.shape[1] - alone_later.shape[1] :], alone_later[0]) <= 1e-12
            total = total + outputs[b, :k].sum()
            wanted_total = wanted_total + alone.sum() + alone_later.sum()
        names = [name for name, _ in module.named_parameters()]
        d_tokens, *got = torch.autograd.grad(total, [padded, *module.parameters()], allow_unused=True)
        wanted = torch.autograd.grad(wanted_total, list(module.parameters()), allow_unused=True)
        for name, a, b in zip(names, got, wanted, strict=True):
            assert (a is None) == (b is None)
            assert a is None or ratio(a, b) <= 1e-10, name
        for b, n in enumerate(lengths):
            assert torch.count_nonzero(d_tokens[b, n:]) == 0

    def test_inputs_are_not_changed(self):
        module, tokens = self.layer(), self.tokens()
        _, state = module(self.tokens(seed=1))
        given = [tokens, *tensors_of(state), *module.parameters()]
        before = [t.detach().clone() for t in given]
        module(tokens, state)
        module(tokens, state, torch.tensor([13, 11, 1]))
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))

    def test_gradcheck(self):
        """Tokens and every parameter, through a state in the middle."""
        module, tokens = self.layer(), self.tokens(batch=1, length=self.window + self.stride + 1)
        names = [name for name, _ in module.named_parameters()]

        def function(first, second, *values):
            parameters = dict(zip(names, values, strict=True))
            out, state = functional_call(module, parameters, (first,))
            return out, functional_call(module, parameters, (second, state))[0]

        inputs = [tokens[:, : self.window], tokens[:, self.window :], *module.parameters()]
        assert torch.autograd.gradcheck(function, [t.detach().clone().requires_grad_() for t in inputs])

    def test_float32_is_close_to_float64(self):
        """Within the tolerance, or within four times what rounding tokens and weights to float32 could do to the exact outputs.

        Products of products cancel at some tokens: how many digits are lost there depends on the order of a processor's sums.
        """
        module, tokens = self.layer(), self.tokens(length=40).float()
        single = copy.deepcopy(module).float()
        module.load_state_dict({name: value.double() for name, value in single.state_dict().items()})
        wanted, end = module(tokens.double())
        out, state = single(tokens)
        assert out.dtype == torch.float32
        tolerance = max(self.float32_tolerance, 4 * self._rounding(module, tokens.double(), wanted))
        assert ratio(out, wanted) <= tolerance
        assert ratio(single(tokens, state)[0], module(tokens.double(), end)[0]) <= tolerance

    @torch.no_grad()
    def _rounding(self, module, tokens, wanted):
        """The largest change of the outputs, of five, when every number moves by up to float32's unit roundoff."""
        g, changes = torch.Generator().manual_seed(0), []
        for _ in range(5):
            moved = copy.deepcopy(module)
            numbers = [tokens.clone(), *moved.parameters()]
            for x in numbers:
                x.mul_(1 + 2**-24 * (2 * torch.rand(x.shape, generator=g, dtype=x.dtype) - 1))
            changes.append(ratio(moved(numbers[0])[0], wanted))
        return max(changes)

    def test_the_same_call_gives_the_same_bits(self):
        module, tokens = self.layer(), self.tokens()
        first, second = (self.in_pieces(module, tokens, [5]) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(first[1]), tensors_of(second[1]), strict=True))
