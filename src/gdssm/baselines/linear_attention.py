"""Linear self-attention: attention without softmax, which is a recurrence (von Oswald et al., 2212.07677).

    k_t = W_K s_t    v_t = W_V s_t    q_t = W_Q s_t        per head
    Z_t = Z_{t-1} + k_t v_t^T                              I x J, as Z of GDSSM: rows inputs, columns targets
    y_t = sum_h C_h Z_t^T q_t

Differences from the original: causal (token t sees tokens 1..t; the original sums over the whole context, the same for
the last token); the residual s_t + y_t is the stack's (gdssm.baselines.Stack); no factor 1/N, which C can hold.

Axes: B batch, T tokens, D features, H heads, I rows of Z (keys), J columns of Z (values).
"""

import torch
from torch import Tensor, nn

from ..weights import check_size
from .layer import SequenceLayer
from .recurrences import attend_last, attention


class LinearAttention(SequenceLayer):
    """Z_t = Z_{t-1} + k_t v_t^T, y_t = sum_h C_h Z_t^T q_t: tokens (B, T, D) -> outputs (B, T, D_out), state Z (B, H, I, J).

    d_model     D
    n_heads     H; every head reads all D features
    d_key       I; None: D
    d_value     J; None: D
    d_out       None: D

    Parameters w_q, w_k (H, I, D), w_v (H, J, D), c (H, D_out, J). ValueError for values out of range.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        d_key: int | None = None,
        d_value: int | None = None,
        d_out: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, d_out)
        d_key, d_value = (d_model if size is None else size for size in (d_key, d_value))
        for name, size in {"n_heads": n_heads, "d_key": d_key, "d_value": d_value}.items():
            check_size(name, size)
        self.state_shape = (n_heads, d_key, d_value)
        self.w_q = nn.Parameter(torch.empty(n_heads, d_key, d_model, dtype=dtype))
        self.w_k = nn.Parameter(torch.empty(n_heads, d_key, d_model, dtype=dtype))
        self.w_v = nn.Parameter(torch.empty(n_heads, d_value, d_model, dtype=dtype))
        self.c = nn.Parameter(torch.empty(n_heads, self.d_out, d_value, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of variance 1/D; C of variance 1/(H J)."""
        for weight in (self.w_q, self.w_k, self.w_v):
            weight.normal_(0, self.d_model**-0.5, generator=generator)
        self.c.normal_(0, (self.c.shape[0] * self.c.shape[2]) ** -0.5, generator=generator)

    def scan(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = (heads_of(tokens, weight) for weight in (self.w_q, self.w_k, self.w_v))
        o, z = attention(q, k, v, state)
        return sum_heads(o, self.c), z

    def final(self, tokens: Tensor) -> Tensor:
        k, v = heads_of(tokens, self.w_k), heads_of(tokens, self.w_v)
        return sum_heads(attend_last(heads_of(tokens[:, -1:], self.w_q), k, v), self.c)[:, 0]


def heads_of(tokens: Tensor, weight: Tensor) -> Tensor:
    """A projection per head: (B, T, D), (H, I, D) -> (B, H, T, I)."""
    return torch.einsum("btd,hid->bhti", tokens, weight.to(tokens.dtype))


def sum_heads(o: Tensor, c: Tensor) -> Tensor:
    """sum_h C_h o_h: (B, H, T, J), (H, D_out, J) -> (B, T, D_out)."""
    return torch.einsum("bhtj,hdj->btd", o, c.to(o.dtype))
