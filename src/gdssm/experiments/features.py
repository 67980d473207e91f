"""Features trained under a layer: an MLP on every x, then one GDSSM or one linear attention, all copies at once.

Axes: S copies, B batch, N examples, F features, H hidden units, W = 3 window width. Inputs and targets are scalars.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from ..layers import GDSSM
from ..tokens import concatenated, interleave


class FeatureCopies(nn.Module):
    """phi(x) = w_out gelu(w_in x + b_in) + b_out; `answer` says what is done with the features. tokens (B, T, D) -> (B, 1)."""

    def __init__(self, hidden: int, features: int, generator: torch.Generator | None = None) -> None:
        super().__init__()

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * scale)

        self.features = features
        self.w_in, self.b_in = normal(hidden, scale=1.0), normal(hidden, scale=3.0)  # kinks all over the range of x
        self.w_out, self.b_out = normal(features, hidden, scale=hidden**-0.5), normal(features, scale=0.1)

    @staticmethod
    def layout(x: Tensor, y: Tensor, x_query: Tensor) -> Tensor:
        """The tokens that it reads."""
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last_stacked({name: p[None] for name, p in self.named_parameters()}, tokens)[0]

    def last_stacked(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """S copies: parameters (S, ..) -> (S, B, 1)."""
        x, y, query = self.read(tokens)
        phi, phi_query = self.map(parameters, x), self.map(parameters, query)[:, :, 0]
        return self.answer(parameters, phi, y, phi_query)[..., None]

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scalar inputs, targets and the query that the tokens hold: (B, N), (B, N), (B, 1)."""
        raise NotImplementedError

    def map(self, p: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """phi of scalars: x (B, N) -> (S, B, N, F)."""
        s = len(p["w_in"])
        hidden = gelu(x.flatten()[:, None] * p["w_in"][:, None] + p["b_in"][:, None])  # (S, B N, H)
        return torch.baddbmm(p["b_out"][:, None], hidden, p["w_out"].mT).view(s, *x.shape, self.features)

    def answer(self, p: Mapping[str, Tensor], phi: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Prediction (S, B) from phi (S, B, N, F), y (B, N) and the query's features (S, B, F)."""
        raise NotImplementedError


class LayerOnFeatures(FeatureCopies):
    """gdssm.FeatureModel with a GDSSM without decay: interleaved tokens phi(x_1), y_1, .., phi(x_query), y padded with zeros."""

    @staticmethod
    def layout(x: Tensor, y: Tensor, x_query: Tensor) -> Tensor:
        return interleave(x, y, x_query)

    def __init__(self, hidden: int, features: int, generator: torch.Generator | None = None) -> None:
        super().__init__(hidden, features, generator)
        layer = GDSSM(features, decay="none")
        layer.reset_parameters(generator)
        self.w_q, self.d, self.c = (nn.Parameter(getattr(layer, name)[0].detach().clone()) for name in ("w_q", "d", "c"))

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tokens[:, 0:-1:2, 0], tokens[:, 1::2, 0], tokens[:, -1:, 0]

    def answer(self, p: Mapping[str, Tensor], phi: Tensor, y: Tensor, query: Tensor) -> Tensor:
        following = torch.cat([phi[:, :, 1:], query[:, :, None]], dim=2)
        target = pad(y[..., None], (0, self.features - 1)).expand_as(phi)
        taps = (phi, target, following)  # (S, B, N, F) each: the three tokens of every window
        q = torch.stack([tap[:, :, -1] for tap in taps], dim=-1) @ p["d"][:, None, :, None]  # (S, B, F, 1)
        scores = torch.cat([tap @ q for tap in taps], dim=-1)  # (S, B, N, W)
        mixed = scores @ p["w_q"][:, None]
        z = sum_of(tuple(tap.mT @ mixed[..., a : a + 1] for a, tap in enumerate(taps)))[..., 0]  # (S, B, F)
        return torch.einsum("sj,sbj->sb", p["c"][:, 0], z)

    def rate(self) -> float:
        """The step size that the weights amount to, per summed example: w_q[0, 1] d[2] C[0, 0]."""
        return float((self.w_q[0, 1] * self.d[2] * self.c[0, 0]).detach())


class AttentionOnFeatures(FeatureCopies):
    """Von Oswald et al. (2022): linear self-attention on e_i = [phi(x_i), y_i], sum_i (v . e_i) (K e_i) . (Q e_query)."""

    @staticmethod
    def layout(x: Tensor, y: Tensor, x_query: Tensor) -> Tensor:
        return concatenated(x, y, x_query)

    def __init__(self, hidden: int, features: int, generator: torch.Generator | None = None) -> None:
        super().__init__(hidden, features, generator)
        size = features + 1
        self.key, self.query = (nn.Parameter(torch.randn(size, size, generator=generator) * size**-0.5) for _ in range(2))
        self.value = nn.Parameter(torch.randn(size, generator=generator) * size**-0.5)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tokens[:, :-1, 0], tokens[:, :-1, 1], tokens[:, -1:, 0]

    def answer(self, p: Mapping[str, Tensor], phi: Tensor, y: Tensor, query: Tensor) -> Tensor:
        e = torch.cat([phi, y[..., None].expand(len(phi), -1, -1, -1)], dim=-1)
        q = torch.einsum("skj,skl,sbl->sbj", p["key"], p["query"], pad(query, (0, 1)))
        return torch.einsum("sbn,sbn->sb", (e @ p["value"][:, None, :, None])[..., 0], (e @ q[..., None])[..., 0])


def sum_of(parts: tuple[Tensor, ...]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(parts).sum(0)
