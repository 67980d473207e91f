"""GDSSM, the layer whose recurrent state accumulates a gradient.

| code                 | paper (arXiv 2410.11687)                       | shape     |
|----------------------|------------------------------------------------|-----------|
| w_q                  | local self-attention matrix, v2: input gate    | (H, W, W) |
| d                    | query of the readout, v2: output gate          | (H, W)    |
| c                    | readout matrix C                               | (H, D, D) |
| decay_matrix         | Lambda                                         | (H, D, D) |
| state.z              | Z, the recurrent state                         | (B, H, D, D) |
| key_map, feedthrough | not in the paper: P and F                      | (H, D, D) |

Axes: B batch, T tokens, K windows, W window width, R stride, H heads, D features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from . import ops
from .ops import ScanState
from .state import State, divisor
from .weights import DecayParameter, Linearised, as_shape, check_size


class GDSSM(nn.Module):
    """A diagonal recurrent layer with windowed cross products as input gate and a multiplicative readout.

        M_k = S_k^T w_q S_k         Z_k = Lambda * Z_{k-1} + M_k
        q_k = S_k^T d               y_k = sum_h C Z_k^T P q_k + F q_k

    One step of gradient descent on the examples of its context is a choice of its weights
    (arXiv 2410.11687, v1; see gdssm.construct). `layer(tokens (B, T, D), state, lengths)` returns
    outputs (B, K, D) for every window that ends in the tokens, and the State; `last` only the last one's.

    d_model      D
    window       W, tokens per window
    stride       R, tokens from one window to the next: 2 for pairs (x, y), 1 for general sequences
    decay        structure of Lambda: "full" one per entry of Z (the published layer), "row" one per row,
                 "head" one per head, "none" Lambda = 1. "head" and "none" are the fast ones
    n_heads      H; every head reads all D features, the heads' outputs are summed
    key_map      learn P, a matrix on the input side (preconditioner); otherwise P = 1
    feedthrough  learn F; otherwise F = 0
    normalize    divide Z by the windows seen plus a learned offset n0 per head (starts at 0)
    backend      see gdssm.ops.gd_scan

    When not to use it: the state is D x D per head, so wide streams want heads of a projection.
    Raises ValueError for values out of range, TypeError for tokens that are not floating point.
    """

    def __init__(
        self,
        d_model: int,
        *,
        window: int = 3,
        stride: int = 2,
        decay: str = "full",
        n_heads: int = 1,
        key_map: bool = False,
        feedthrough: bool = False,
        normalize: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"d_model": d_model, "window": window, "stride": stride, "n_heads": n_heads}.items():
            check_size(name, size)
        ops.resolve_backend(backend)
        self.d_model, self.window, self.stride, self.n_heads = d_model, window, stride, n_heads
        self.backend = backend
        self.decay = DecayParameter(decay, n_heads, d_model, device=device, dtype=dtype)
        h, w, n = n_heads, window, d_model
        shapes: dict[str, tuple[int, ...] | None] = {
            "w_q": (h, w, w),
            "d": (h, w),
            "c": (h, n, n),
            "key_map": (h, n, n) if key_map else None,
            "feedthrough": (h, n, n) if feedthrough else None,
            "count_offset": (h,) if normalize else None,
        }
        for name, shape in shapes.items():
            value = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, value)
        self.reset_parameters()

    w_q: nn.Parameter
    d: nn.Parameter
    c: nn.Parameter
    key_map: nn.Parameter | None
    feedthrough: nn.Parameter | None
    count_offset: nn.Parameter | None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights: w_q, d, c Gaussian of variance 1/W, 1/W, 1/D; Lambda from 0.95 to 0.9995; P = 1, F = 0."""
        self.w_q.normal_(0, self.window**-0.5, generator=generator)
        self.d.normal_(0, self.window**-0.5, generator=generator)
        self.c.normal_(0, self.d_model**-0.5, generator=generator)
        self.decay.reset_parameters(generator)
        if self.key_map is not None:
            self.key_map.copy_(torch.eye(self.d_model).expand_as(self.key_map))
        if self.feedthrough is not None:
            self.feedthrough.zero_()
        if self.count_offset is not None:
            self.count_offset.zero_()

    def extra_repr(self) -> str:
        return f"{self.d_model}, window={self.window}, stride={self.stride}, n_heads={self.n_heads}"

    @property
    def decay_matrix(self) -> Tensor:
        """Lambda as (H, D, D) in (0, 1]; entry [i, j] decays Z[i, j]."""
        return self.decay.matrix(self.c)

    @torch.no_grad()
    def load_arrays(self, *, w_q: Any = None, lambda_bar: Any = None, c: Any = None, d: Any = None) -> "GDSSM":
        """Write weights from NumPy arrays or tensors of any float dtype; with one head the head axis may be missing.

        w_q (H, W, W), lambda_bar (H, D, D) or the shape of the decay structure, c (H, D, D), d (H, W).
        Raises ValueError for other shapes, non-finite values, and a lambda_bar outside (0, 1] or not of the
        layer's decay structure; nothing is written then.
        """
        given = {"w_q": (self.w_q, w_q), "c": (self.c, c), "d": (self.d, d)}
        new = {name: (p, as_shape(name, value, p.shape)) for name, (p, value) in given.items() if value is not None}
        if lambda_bar is not None:
            self.decay.write(self.decay.rate_of("lambda_bar", lambda_bar, self.n_heads, self.d_model))
        for parameter, value in new.values():
            parameter.copy_(value)
        return self

    def init_state(self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
        """The state before any token: Z = 0 (kept in float64), an empty tail, nothing seen."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer >= 1, got {batch_size!r}")
        zero = ops.zero_state(
            batch_size,
            self.n_heads,
            self.window,
            self.d_model,
            dtype=dtype or self.w_q.dtype,
            device=torch.device(device) if device is not None else self.w_q.device,
        )
        return State(zero.z, zero.tail[:, :, 0], zero.seen, self)

    @ops.full_precision
    def forward(self, tokens: Tensor, state: State | None = None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """tokens (B, T, D) -> outputs (B, K, D) of every window that ends in them, and the state after them."""
        self._check(tokens, state)
        dtype = ops.compute_dtype(tokens, self.w_q)  # half precision is computed in float32 and rounded once, at the end
        stream = tokens.to(dtype).unsqueeze(2)  # (B, T, 1, D): one stream for all heads
        before = None if state is None else state.scan_state()
        windows = ops.align(stream, self.window, self.stride, None if before is None else _one_head(before), lengths)
        q, mapped = None, None  # formed here only where the readout needs them, (B, K, H, D)
        if self.key_map is not None or self.feedthrough is not None:
            q = mapped = ops.filtered(windows, self.d.to(dtype))
        if q is not None and self.key_map is not None:
            mapped = torch.einsum("hij,bkhj->bkhi", self.key_map.to(dtype), q)
        z_q, after = ops.gd_scan(
            stream,
            self.w_q,
            self.decay.log(),
            self.d if mapped is None else None,
            stride=self.stride,
            state=before,
            lengths=lengths,
            backend=self.backend,
            queries=mapped,
            structure=self.decay.structure,
        )
        out = self._read_out(dict(self.named_parameters()), z_q, q, windows.counts()[..., None]).squeeze(2)
        return out.to(tokens.dtype), State(after.z, after.tail[:, :, 0], after.seen, self)

    @ops.full_precision
    def last(self, tokens: Tensor, state: State | None = None, lengths: Tensor | None = None) -> Tensor:
        """Each sequence's last output only, (B, D): the cheap path, without outputs or state of other windows.

        Raises ValueError where no window ends in a sequence's tokens.
        """
        self._check(tokens, state)
        return self._last(dict(self.named_parameters()), tokens, state, lengths).squeeze(1)

    @ops.full_precision
    def last_stacked(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """`last` of S copies of this layer at once: parameters (S, ...) under this layer's names -> (S, B, D)."""
        self._check(tokens, None)
        return self._last({name: p.flatten(0, 1) for name, p in parameters.items()}, tokens, None, None).transpose(0, 1)

    def last_stacked_and_pullback(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Linearised | None:
        """last_stacked, and the function from its gradient to the parameters' by name; None where autograd has to find them."""
        self._check(tokens, None)
        one_dtype = all(p.dtype == tokens.dtype in (torch.float32, torch.float64) for p in parameters.values())
        if not self._is_plain(parameters) or not one_dtype or torch.is_autocast_enabled(tokens.device.type):
            return None
        p = {name: value.detach().flatten(0, 1) for name, value in parameters.items()}
        rate = p.get("decay.log_rate")
        out, pullback = ops.last_output_and_pullback(tokens, p["d"], p["w_q"], rate, p["c"], self.n_heads, self.stride)

        def by_name(grad: Tensor) -> dict[str, Tensor]:
            found = dict(zip(("d", "w_q", "decay.log_rate", "c"), pullback(grad), strict=True))
            return {name: value for name, value in found.items() if value is not None}

        return out, by_name

    @ops.full_precision
    def answer(self, state: State, queries: Tensor) -> Tensor:
        """What `last` would return if each query were the next token: queries (B, M, D) -> (B, M, D).

        The context is read once, into the state; the state does not change. Raises ValueError where the
        next token does not complete a window.
        """
        self._check(queries, state)
        count = ops.next_count(state.scan_state(), self.window, self.stride)
        dtype = ops.compute_dtype(queries, self.w_q)
        p = {name: value.to(dtype) for name, value in self.named_parameters()}
        s = ops.next_windows(state.tail.to(dtype), queries.to(dtype))  # (B, M, W, D)
        q = torch.einsum("hw,bmwd->bmhd", p["d"], s)
        mapped = q if self.key_map is None else torch.einsum("hij,bmhj->bmhi", p["key_map"], q)
        decayed = (self.decay_matrix.to(state.z.dtype) * state.z).to(dtype)
        scores = torch.einsum("bmad,bmhd->bmha", s, mapped)
        z_q = torch.einsum("bhij,bmhi->bmhj", decayed, mapped)
        z_q = z_q + torch.einsum("bmha,hac,bmcj->bmhj", scores, p["w_q"], s)
        return self._read_out(p, z_q, q, count.to(q.device)[:, None, None]).squeeze(2).to(queries.dtype)

    def _is_plain(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether all of the last output is sum_h C Z^T q, with gradients that are written out."""
        return {"w_q", "d", "c", "decay.log_rate"}.issuperset(parameters) and self.decay.structure != "row"

    def _last(self, p: Mapping[str, Tensor], tokens: Tensor, state: State | None, lengths: Tensor | None) -> Tensor:
        """Parameters with S * H heads -> (B, S, D): heads are summed in groups of H."""
        rate = p.get("decay.log_rate")
        if self._is_plain(p) and state is None and lengths is None:
            return (
                ops.last_output(tokens, p["d"], p["w_q"], rate, p["c"], self.n_heads, self.stride).transpose(0, 1).to(tokens.dtype)
            )
        z_q, q, windows = ops.last_window(
            tokens,
            p["w_q"],
            None if rate is None else -rate.exp(),
            p["d"],
            structure=self.decay.structure,
            stride=self.stride,
            state=None if state is None else state.scan_state(),
            lengths=lengths,
            key_map=p.get("key_map"),
        )
        count = ops.last_counts(windows).to(z_q.device)[:, None] if "count_offset" in p else None
        return self._read_out(p, z_q, q, count).to(tokens.dtype)

    def _read_out(self, p: Mapping[str, Tensor], z_q: Tensor, q: Tensor | None, count: Tensor | None) -> Tensor:
        """z_q, q (.., S H, D) -> sum over each H of C z_q / (n + n0) + F q, (.., S, D)."""
        heads = self.n_heads
        if count is not None and "count_offset" in p:
            z_q = z_q / divisor(count, p["count_offset"]).to(z_q.dtype)[..., None]
        out = _grouped(p["c"], z_q, heads)
        return out if q is None or "feedthrough" not in p else out + _grouped(p["feedthrough"], q, heads)

    def _check(self, tokens: Tensor, state: State | None) -> None:
        if not isinstance(tokens, Tensor) or not tokens.is_floating_point():
            raise TypeError(f"tokens must be a floating-point tensor, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
        if tokens.ndim != 3 or tokens.shape[2] != self.d_model:
            raise ValueError(f"tokens must be (B, T, {self.d_model}), got shape {tuple(tokens.shape)}")
        if state is not None and state.z.shape[:2] != (tokens.shape[0], self.n_heads):
            raise ValueError(f"state is for {state.z.shape[0]} sequences, tokens have {tokens.shape[0]}")


def _grouped(matrix: Tensor, vectors: Tensor, heads: int) -> Tensor:
    """Matrix-vector products summed over each group of heads: (G, D, D), (.., G, D) -> (.., G / H, D)."""
    matrix = matrix.to(vectors.dtype)
    if len(matrix) == heads:  # one group: one matrix product
        return linear(vectors.flatten(-2), matrix.transpose(0, 1).flatten(1)).unsqueeze(-2)
    matrix = matrix.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)  # (S, D, H D)
    return torch.einsum("sij,...sj->...si", matrix, vectors.unflatten(-2, (-1, heads)).flatten(-2))


def _one_head(state: ScanState) -> ScanState:
    return state._replace(tail=state.tail[:, :, :1])
