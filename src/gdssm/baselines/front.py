"""The window front: what GDSSM's window sees, as the token of another layer. The same one for every baseline.

    S_k = (s_{kR}, .., s_{kR+W-1})                                     window k, a W x D matrix
    f_k = [ S_k^T u_1 ; .. ; S_k^T u_m ; vec(S_k^T w_1 S_k) ; .. ; vec(S_k^T w_p S_k) ]

m filters u (in R^W) of D features each, p window products w (W x W) of D^2 features each; vec is row after row. Without
learned filters m = W and u_a = e_a: f_k begins with the W tokens of the window, one after the other. A layer that reads f
can form the keys, values and queries of GDSSM by its own projections; window products give it GDSSM's input gate itself.

Where R = 1, W - 1 zero tokens stand before the stream, so that there is one f for each token: K = T. Where R > 1 windows
are those of GDSSM, K = (T - W) // R + 1.

Axes: B batch, T tokens, K windows, W window width, R stride, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import ScanState
from ..weights import check_size
from .layer import check_tokens


@dataclass(frozen=True, eq=False)
class FrontState:
    """Where a front stands: the last W-1 tokens (B, W-1, D), and tokens seen (B,) with the zeros before the stream."""

    tail: Tensor
    seen: Tensor


class WindowFront(nn.Module):
    """Filters and products of a short window: tokens (B, T, D) -> f (B, K, m D + p D^2), state the last W-1 tokens.

    d_model   D
    window    W
    stride    R
    filters   m learned filters; None: the W tokens themselves, nothing learned
    products  p learned window products

    Parameters u (m, W), w (p, W, W). ValueError for values out of range.
    """

    def __init__(
        self,
        d_model: int,
        *,
        window: int = 3,
        stride: int = 1,
        filters: int | None = None,
        products: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"d_model": d_model, "window": window, "stride": stride}.items():
            check_size(name, size)
        check_size("products", products, least=0)
        check_size("filters", window if filters is None else filters, least=0)
        m = window if filters is None else filters
        if m + products == 0:
            raise ValueError("filters and products must not both be 0")
        self.d_model, self.window, self.stride = d_model, window, stride
        self.d_out = m * d_model + products * d_model**2
        u = None if filters is None else nn.Parameter(torch.empty(m, window, dtype=dtype))
        self.register_parameter("u", u)
        w = nn.Parameter(torch.empty(products, window, window, dtype=dtype)) if products else None
        self.register_parameter("w", w)
        self.reset_parameters()

    u: nn.Parameter | None
    w: nn.Parameter | None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of variance 1/W, as GDSSM's."""
        for weight in (self.u, self.w):
            if weight is not None:
                weight.normal_(0, self.window**-0.5, generator=generator)

    @property
    def state_size(self) -> int:
        """Numbers kept per sequence, but for the count of tokens."""
        return (self.window - 1) * self.d_model

    def init_state(self, batch_size: int) -> FrontState:
        """The state before any token."""
        check_size("batch_size", batch_size)
        like = next(self.parameters(), torch.empty(0))
        return self._start(like.new_empty(batch_size, 0, 0, dtype=ops.compute_dtype(like)))

    def _start(self, tokens: Tensor) -> FrontState:
        zeros = self.window - 1 if self.stride == 1 else 0
        batch = tokens.shape[0]
        return FrontState(tokens.new_zeros(batch, self.window - 1, self.d_model), torch.full((batch,), zeros))

    def forward(self, tokens: Tensor, state: FrontState | None = None, lengths: Tensor | None = None) -> tuple[Tensor, FrontState]:
        """f of every window that ends in the tokens, zero where a sequence has none; errors as GDSSM's."""
        check_tokens(tokens, self.d_model)
        f, _, after = self.windows(tokens.to(ops.compute_dtype(tokens, *self.parameters())), state, lengths)
        return f.to(tokens.dtype), after

    def windows(self, tokens: Tensor, state: FrontState | None, lengths: Tensor | None) -> tuple[Tensor, Tensor | None, FrontState]:
        """f (B, K, d_out) in the dtype of the tokens, which of them are windows (B, K, 1) or None for all, the state."""
        state = self._start(tokens) if state is None else state
        if state.tail.shape != (tokens.shape[0], self.window - 1, self.d_model):
            raise ValueError(f"state is for {state.tail.shape[0]} sequences, tokens have {tokens.shape[0]}")
        before = ScanState(state.tail, state.tail.unsqueeze(2), state.seen)  # only tail and seen are looked at
        windows = ops.align(tokens.unsqueeze(2), self.window, self.stride, before, lengths)
        s = torch.stack([windows.tap(a).squeeze(2) for a in range(self.window)], dim=2)  # (B, K, W, D)
        filtered = s if self.u is None else torch.einsum("mw,bkwd->bkmd", self.u.to(s.dtype), s)
        f = filtered.flatten(2)
        if self.w is not None:
            products = torch.einsum("bkai,pac,bkcj->bkpij", s, self.w.to(s.dtype), s)
            f = torch.cat([f, products.flatten(2)], dim=2)
        valid = None if windows.valid is None else windows.valid[..., None]
        after = FrontState(windows.tail().squeeze(2), windows.seen())
        return (f if valid is None else f.masked_fill(~valid, 0)), valid, after

    def extra_repr(self) -> str:
        return f"{self.d_model}, window={self.window}, stride={self.stride}, d_out={self.d_out}"
