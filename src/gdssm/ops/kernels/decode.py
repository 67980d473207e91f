"""One token for all sequences and heads in one launch: decoding.

    Z <- Lambda * Z + sum_r key_r value_r^T        out = Z^T q

Weights and decays are read as the caller holds them, so that this launch is all the work of a token. A program takes BV
columns of one head's Z: it forms the window's key, value and query from the tail and the new token, reads its columns of Z
once and writes them once. Z keeps the dtype it comes in, and its sum is formed in that dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..decay import SMALLEST as _SMALLEST
from . import tiles
from .launch import on_device
from .shared import NUMBERS, rounded

SMALLEST = tl.constexpr(_SMALLEST)


@triton.jit
def window_token(tail, token, tail_base, token_base, a: tl.constexpr, cols, heads, D: tl.constexpr, W: tl.constexpr):
    """Token a of the window that the new token completes, one head's features in float32."""
    if a == W - 1:
        s = tl.load(token + token_base + cols, mask=cols < D, other=0.0)
    else:
        s = tl.load(tail + tail_base + a * heads * D + cols, mask=cols < D, other=0.0)
    return s.to(tl.float32)


@triton.jit
def mixed(tail, token, taps, tap_step, tail_base, token_base, cols, heads, D: tl.constexpr, W: tl.constexpr):
    """S^T taps of that window."""
    total = tl.zeros([cols.shape[0]], tl.float32)
    for a in tl.static_range(W):
        weight = tl.load(taps + a * tap_step).to(tl.float32)
        total += weight * window_token(tail, token, tail_base, token_base, a, cols, heads, D, W)
    return total


@triton.jit(do_not_specialize=NUMBERS)
def step_kernel(
    token,
    tail,
    u,
    v,
    d,
    queries,
    log,
    z,
    out,
    after,
    tail_after,
    heads,
    stream_heads,
    log_step,
    log_head,
    log_feature,
    logs,
    QUERIES: tl.constexpr,
    UNIT: tl.constexpr,
    W: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BV: tl.constexpr,
):
    """token (B, 1, H or 1, D); tail, tail_after (B, W-1, H, D); z, after (B, H, D, D); out, queries (B, 1, H, D).

    UNIT: u is w_q (H, W, W) and v is not read; otherwise both are (H, W). log is read where logs, with its strides over
    sequences, heads and features: 0 for what it does not vary over.
    """
    columns: tl.constexpr = (D + BV - 1) // BV
    pid = tl.program_id(0)
    nh = pid // columns
    n, h = nh // heads, nh % heads
    cols = tl.arange(0, BD)
    cols_v = (pid % columns) * BV + tl.arange(0, BV)
    tail_base = (n.to(tl.int64) * (W - 1) * heads + h) * D
    token_base = (n.to(tl.int64) * stream_heads + h % stream_heads) * D
    square = nh.to(tl.int64) * D * D + cols[:, None] * D + cols_v[None, :]
    inside = (cols < D)[:, None] & (cols_v < D)[None, :]
    state = tl.load(z + square, mask=inside, other=0.0)
    g = tl.load(log + n * log_step + h * log_head + cols * log_feature, mask=cols < D * logs, other=0.0)
    state = state * tl.exp(tl.maximum(g.to(state.dtype), SMALLEST))[:, None]
    if UNIT:
        for b in tl.static_range(W):
            key = mixed(tail, token, u + h * W * W + b, W, tail_base, token_base, cols, heads, D, W)
            val = window_token(tail, token, tail_base, token_base, b, cols_v, heads, D, W)
            state += (key[:, None] * val[None, :]).to(state.dtype)
    else:
        key = mixed(tail, token, u + h * W, 1, tail_base, token_base, cols, heads, D, W)
        val = mixed(tail, token, v + h * W, 1, tail_base, token_base, cols_v, heads, D, W)
        state += (key[:, None] * val[None, :]).to(state.dtype)
    tl.store(after + square, state, mask=inside)
    if QUERIES:
        q = tl.load(queries + nh.to(tl.int64) * D + cols, mask=cols < D, other=0.0).to(tl.float32)
    else:
        q = mixed(tail, token, d + h * W, 1, tail_base, token_base, cols, heads, D, W)
    o = tl.sum(state.to(tl.float32) * q[:, None], 0)
    tl.store(out + nh.to(tl.int64) * D + cols_v, rounded(o, out.dtype.element_ty), mask=cols_v < D)
    for a in tl.static_range(1, W):
        s = window_token(tail, token, tail_base, token_base, a, cols_v, heads, D, W)
        at = tail_after + tail_base + (a - 1) * heads * D + cols_v
        tl.store(at, rounded(s, tail_after.dtype.element_ty), mask=cols_v < D)


def _strides(kind: int, heads: int, features: int) -> tuple[int, int, int]:
    """Of log Lambda over sequences, heads and features: (H,) head, (H, D) row, (B, 1, H) input."""
    return {tiles.KINDS["row"]: (0, features, 1), tiles.KINDS["input"]: (heads, 1, 0)}.get(kind, (0, 1, 0))


@torch.library.custom_op("gdssm::step", mutates_args=())
def step(
    token: Tensor,
    tail: Tensor,
    u: Tensor,
    v: Tensor | None,
    d: Tensor | None,
    queries: Tensor | None,
    log: Tensor | None,
    z: Tensor,
    kind: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, 1, H, D), the next Z and the next tail; without gradients. v None: u is w_q."""
    token, tail, z, u = (t.contiguous() for t in (token, tail, z, u))
    batch, heads, features, _ = z.shape
    out = token.new_empty(batch, 1, heads, features)
    after, tail_after = torch.empty_like(z), torch.empty_like(tail)
    tile = tiles.decode(features)
    with on_device(token.device):
        step_kernel[(batch * heads * tiles.across(features, tile),)](
            token,
            tail,
            u,  # and where the kernel reads no other
            u if v is None else v.contiguous(),
            u if d is None else d.contiguous(),
            token if queries is None else queries.contiguous(),
            u if log is None else log.contiguous(),
            z,
            out,
            after,
            tail_after,
            heads,
            token.shape[2],
            *_strides(kind, heads, features),
            int(log is not None),
            QUERIES=queries is not None,
            UNIT=v is None,
            W=tail.shape[1] + 1,
            D=features,
            BD=tiles.padded(features),
            BV=tile.columns,
            **tile.options(),
        )
    return out, after, tail_after


@step.register_fake
def _step_shapes(
    token: Tensor,
    tail: Tensor,
    u: Tensor,
    v: Tensor | None,
    d: Tensor | None,
    queries: Tensor | None,
    log: Tensor | None,
    z: Tensor,
    kind: int,
) -> tuple[Tensor, Tensor, Tensor]:
    def like(t: Tensor) -> Tensor:
        return torch.empty_like(t, memory_format=torch.contiguous_format)

    return token.new_empty(z.shape[0], 1, z.shape[1], z.shape[2]), like(z), like(tail)
