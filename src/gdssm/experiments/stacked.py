"""Stacked layers as the multi-step experiment trains them: GDSSMStack without decay, last outputs, all copies at once."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..layers import GDSSM
from ..tokens import interleave


def disjoint(x: Tensor, y: Tensor, x_query: Tensor) -> Tensor:
    """Interleaved tokens whose inputs and targets have coordinates of their own: [x_1, 0], [0, y_1], .., [x_query, 0].

    A residual stack writes its targets' estimates beside the inputs, not over them. (B, 2N+1, d_x + d_y).
    """
    return interleave(pad(x, (0, y.shape[2])), pad(y, (x.shape[2], 0)), pad(x_query, (0, y.shape[2])))


class StackedCopies(nn.Module):
    """h <- h + layer(h), n times, from `disjoint` tokens (B, T, d_x + d_y); the prediction is the last token's target part.

    The layers are those of gdssm.GDSSMStack with decay "none": window 3, stride 1, two zero tokens in front, one head. For
    contexts as short as these, all tokens' readouts are two products with T x T scores between them.
    """

    def __init__(self, d_x: int, d_y: int, n_layers: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.d_x = d_x
        layers = [GDSSM(d_x + d_y, stride=1, decay="none") for _ in range(n_layers)]
        for layer in layers:
            layer.reset_parameters(generator)
        self.w_q, self.d, self.c = (
            nn.Parameter(torch.stack([getattr(layer, name)[0] for layer in layers]).detach()) for name in ("w_q", "d", "c")
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last_stacked({name: p[None] for name, p in self.named_parameters()}, tokens)[0]

    def last_stacked(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """S copies: w_q (S, L, W, W), d (S, L, W), c (S, L, D, D), tokens (B, T, D) -> (S, B, d_y)."""
        w_q, d, c = (parameters[name] for name in ("w_q", "d", "c"))
        h = tokens.expand(len(w_q), -1, -1, -1)
        for i in range(w_q.shape[1]):
            h = h + torch.einsum("sij,sbtj->sbti", c[:, i], _readouts(h, w_q[:, i], d[:, i]))
        return h[:, :, -1, self.d_x :]


def _readouts(h: Tensor, w_q: Tensor, d: Tensor) -> Tensor:
    """Z_t^T q_t of every token: h (S, B, T, D), w_q (S, W, W), d (S, W) -> (S, B, T, D)."""
    length, width = h.shape[2], d.shape[1]
    padded = pad(h, (0, 0, width - 1, 0))
    taps = [padded[:, :, a : a + length] for a in range(width)]  # tap a of the window that ends at each token
    q = torch.einsum("sa,sabtj->sbtj", d, torch.stack(taps, dim=1))
    causal = torch.ones(length, length, dtype=h.dtype, device=h.device).tril()
    scores = torch.stack([torch.matmul(q, tap.mT) for tap in taps], dim=2) * causal  # (S, B, W, T, T)
    mixed = torch.einsum("sac,sbatm->sbctm", w_q, scores)
    return torch.matmul(mixed, torch.stack(taps, dim=2)).sum(2)
