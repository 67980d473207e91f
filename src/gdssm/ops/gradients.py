"""Last-window readouts with their gradients written out: few operations, no intermediate kept that is cheap to redo.

Axes: B batch, S tokens used, K windows, W window width, R stride, G heads (of all seeds), D features.
Both are checked against autograd through the reference backend.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .decay import SMALLEST

_DENSE_SPAN = 256  # tokens up to which the stencil is one matrix
_CHUNK_ELEMENTS = 1 << 19  # numbers per temporary of FullReadout, about what stays in a cache


def overlap_add(weights: Tensor, stride: int) -> Tensor:
    """Sum of window weights per token: (B, G, K, W) -> (B, G, (K-1) R + W)."""
    batch, groups, count, width = weights.shape
    rows = -(-width // stride)
    total = weights.new_zeros(batch, groups, count + rows - 1, stride)
    for j in range(rows):
        part = weights[..., j * stride : (j + 1) * stride]
        total[:, :, j : j + count, : part.shape[-1]] += part
    return total.flatten(2)[..., : (count - 1) * stride + width]


def _by_head(scores: Tensor, width: int, stride: int) -> Tensor:
    """The W scores of every window, one contiguous matrix per head: (B, G, S) -> (G, B K, W)."""
    return scores.unfold(2, width, stride).transpose(0, 1).flatten(1, 2)


@functools.lru_cache(maxsize=64)
def _countdown(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The ages K-1, .., 0 of a context's windows, (1, K)."""
    return torch.arange(count - 1, -1, -1, dtype=dtype, device=device)[None]


def _plain(x: Tensor) -> Tensor:
    """The same (B, G, N) numbers with ordinary strides: an axis of size 1 may carry any, and bmm is slow on some."""
    return x.flatten(0, 1).view(x.shape)


def _swapped(x: Tensor) -> Tensor:
    """The first two axes exchanged, contiguous: one head costs nothing, and bmm sees ordinary strides."""
    if 1 in x.shape[:2]:
        return x.contiguous().view(x.shape[1], x.shape[0], x.shape[2])
    return x.transpose(0, 1).contiguous()


@functools.lru_cache(maxsize=64)
def _block_places(span: int, count: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Where the W x W block of every window lies in a flattened S x S matrix, (K W W,)."""
    start = stride * torch.arange(count)[:, None, None]
    inside = torch.arange(width)
    return ((start + inside[:, None]) * span + start + inside).flatten().to(device)


class ScalarCore:
    """Decay none or head: out = sum_u v_u s_u with v the stencil of the scores s_t . q.

    taps_{k,a} = s_{kR+a} . q      g_{k,b} = lambda^{age_k} sum_a taps_{k,a} w_q[a, b]      v_{kR+b} += g_{k,b}

    Short contexts apply the stencil as one banded S x S matrix per head (few operations), long ones window by window
    (linear in S).
    """

    @staticmethod
    def forward(
        tokens: Tensor, q: Tensor, w_q: Tensor, log: Tensor | None, stride: int, age: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """tokens (B, S, D), q (B, G, D), w_q (G, W, W), log (G,), age (1 or B, K), valid (B, K) -> (B, G, D), saved."""
        kept = None if log is None else (age * log.clamp(min=SMALLEST)[:, None, None]).exp_()  # (G, 1 or B, K)
        if valid is not None:
            kept = valid[None].to(q.dtype) if kept is None else kept * valid
        scores = torch.bmm(q, tokens.transpose(1, 2))  # (B, G, S)
        mix = _mix(valid, scores.shape[2])
        total, saved = mix.forward(scores, w_q, kept, age.shape[1], stride)
        return torch.bmm(total, tokens), (age, valid, kept, total, *saved)

    @staticmethod
    def backward(
        grad: Tensor,
        tokens: Tensor,
        q: Tensor,
        w_q: Tensor,
        log: Tensor | None,
        stride: int,
        saved: Sequence[Tensor | None],
        need_tokens: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        """Gradients of tokens (where needed), q, w_q and log."""
        age, valid, kept, total = saved[:4]
        rest = [t for t in saved[4:] if t is not None]
        assert age is not None
        assert total is not None
        d_total = torch.bmm(grad, tokens.transpose(1, 2))  # (B, G, S)
        d_scores, d_w, d_kept = _mix(valid, d_total.shape[2]).backward(d_total, w_q, kept, age.shape[1], stride, *rest)
        d_log = None if log is None else (d_kept * age).sum((1, 2))
        d_tokens = None
        if need_tokens:
            d_tokens = torch.bmm(d_scores.transpose(1, 2), q) + torch.bmm(total.transpose(1, 2), grad)
        return d_tokens, torch.bmm(d_scores, tokens), d_w, d_log


class _WindowMix:
    """The stencil window by window: total = overlap-add of kept * (taps @ w_q)."""

    @staticmethod
    def forward(scores: Tensor, w_q: Tensor, kept: Tensor | None, count: int, stride: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """scores (B, G, S) -> total (B, G, S), and what backward needs."""
        taps = _by_head(scores, w_q.shape[1], stride)  # (G, B K, W)
        weights = torch.bmm(taps, w_q).view(len(w_q), -1, count, w_q.shape[1])  # (G, B, K, W)
        if kept is not None:
            weights.mul_(kept[..., None])
        return overlap_add(weights.transpose(0, 1), stride), (taps, weights)

    @staticmethod
    def backward(
        d_total: Tensor, w_q: Tensor, kept: Tensor | None, count: int, stride: int, taps: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of scores and w_q, and d(loss)/d(log kept), (G, B, K)."""
        d_weights = _by_head(d_total, w_q.shape[1], stride).view_as(weights)
        d_kept = (d_weights * weights).sum(-1)
        if kept is not None:
            d_weights.mul_(kept[..., None])
        d_weights = d_weights.flatten(1, 2)
        d_w = torch.bmm(taps.transpose(1, 2), d_weights)
        d_taps = torch.bmm(d_weights, w_q.transpose(1, 2)).view_as(weights)
        return overlap_add(d_taps.transpose(0, 1), stride), d_w, d_kept


class _DenseMix:
    """The stencil as a banded matrix: total = scores @ sum_k kept_k (w_q placed at window k). No valid mask."""

    @staticmethod
    def forward(scores: Tensor, w_q: Tensor, kept: Tensor | None, count: int, stride: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """scores (B, G, S) -> total (B, G, S), and what backward needs."""
        heads, width, _ = w_q.shape
        span = scores.shape[2]
        blocks = w_q.flatten(1)[:, None].expand(-1, count, -1)  # (G, K, W W)
        if kept is not None:
            blocks = blocks * kept.transpose(1, 2)
        places = _block_places(span, count, width, stride, scores.device)
        band = scores.new_zeros(heads, span * span).index_add_(1, places, blocks.flatten(1)).view(heads, span, span)
        return _swapped(torch.bmm(_swapped(scores), band)), (scores, band)

    @staticmethod
    def backward(
        d_total: Tensor, w_q: Tensor, kept: Tensor | None, count: int, stride: int, scores: Tensor, band: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of scores and w_q, and d(loss)/d(log kept), (G, 1, K)."""
        heads, width, _ = w_q.shape
        span = scores.shape[2]
        by_head = _swapped(d_total)
        d_band = torch.bmm(_swapped(scores).transpose(1, 2), by_head)  # (G, S, S)
        d_blocks = d_band.as_strided((heads, count, width, width), (span * span, stride * (span + 1), span, 1)).flatten(2)
        if kept is None:
            d_w, d_kept = d_blocks.sum(1), d_blocks.new_zeros(())
        else:
            d_w = torch.bmm(kept, d_blocks)
            d_kept = torch.bmm(d_blocks, w_q.flatten(1)[..., None]).transpose(1, 2) * kept
        d_scores = _swapped(torch.bmm(by_head, band.transpose(1, 2)))
        return d_scores, d_w.view_as(w_q), d_kept


def _mix(valid: Tensor | None, span: int) -> "type[_DenseMix] | type[_WindowMix]":
    return _DenseMix if valid is None and span <= _DENSE_SPAN else _WindowMix


class FullCore:
    """Decay full: out_j = sum_{k,b} v_{k,b,j} sum_i q_i key_{k,b,i} Lambda[i, j]^{age_k}, age_k = K-1-k.

    The power of each age is one D x D matrix for the whole batch, so the sum over i is a matrix product. Runs over
    windows in pieces; the backward pass forms keys and powers again, unless there is one piece, which is kept.
    """

    @staticmethod
    def forward(s: Tensor, q: Tensor, w_q: Tensor, log: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Windows s (K, W, B, D), q (G, B, D), w_q (G, W, W), log (G, D, D) -> (G, B, D), and what backward may use."""
        out: Tensor | None = None
        pieces = _pieces(s, len(w_q))
        kept: tuple[Tensor, ...] = ()
        for piece in pieces:
            kept = (_, _, left, power) = _left_and_power(s, q, w_q, log, piece)
            right = torch.matmul(left.flatten(2, 3), power).view_as(left)  # (k, G, W, B, D)
            out = _added(out, right.mul_(s[piece, None]).sum((0, 2)))
        return (torch.zeros_like(q) if out is None else out), (kept if len(pieces) == 1 else ())

    @staticmethod
    def backward(
        grad: Tensor, s: Tensor, q: Tensor, w_q: Tensor, log: Tensor, kept: Sequence[Tensor], need_s: bool
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Gradients of s (where needed), q, w_q and log."""
        heads, width = w_q.shape[:2]
        d_s = torch.zeros_like(s) if need_s else None
        d_q: Tensor | None = None
        d_log: Tensor | None = None
        d_w: Tensor | None = None  # transposed: rows (g, b), columns a
        for piece in _pieces(s, heads):
            age, keys, left, power = kept or _left_and_power(s, q, w_q, log, piece)
            d_right = (s[piece, None] * grad[:, None]).flatten(2, 3)  # (k, G, W B, D)
            d_power = torch.matmul(left.flatten(2, 3).transpose(2, 3), d_right)  # (k, G, D, D)
            d_log = _added(d_log, d_power.mul_(power).mul_(age).sum(0))
            d_left = torch.matmul(d_right, power.transpose(2, 3)).view_as(left)
            d_q = _added(d_q, (d_left * keys).sum((0, 2)))
            d_keys = d_left.mul_(q[:, None]).flatten(1, 2).flatten(2)  # (k, G W, B D)
            d_w = _added(d_w, torch.matmul(d_keys, s[piece].flatten(2).transpose(1, 2)).sum(0))
            if d_s is not None:
                right = torch.matmul(left.flatten(2, 3), power).view_as(left)
                from_keys = torch.matmul(_stacked(w_q).T, d_keys).view_as(s[piece])
                d_s[piece] = from_keys + (right * grad[:, None]).sum(1)
        if d_q is None or d_log is None or d_w is None:  # no window
            return d_s, torch.zeros_like(q), torch.zeros_like(w_q), torch.zeros_like(log)
        return d_s, d_q, d_w.view(heads, width, width).transpose(1, 2), d_log


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _pieces(s: Tensor, heads: int) -> list[slice]:
    """Runs of windows whose temporaries have about _CHUNK_ELEMENTS numbers."""
    size = max(1, _CHUNK_ELEMENTS // max(1, s[0].numel() * heads)) if len(s) else 1
    return [slice(i, min(i + size, len(s))) for i in range(0, len(s), size)]


def _stacked(w_q: Tensor) -> Tensor:
    """w_q as one matrix from taps to the keys of all heads: (G W, W), rows (g, b), columns a."""
    return w_q.transpose(1, 2).flatten(0, 1)


def _left_and_power(s: Tensor, q: Tensor, w_q: Tensor, log: Tensor, piece: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ages (k, 1, 1, 1), keys and q * keys (k, G, W, B, D), and Lambda^age (k, G, D, D) of some windows."""
    age = torch.arange(len(s) - 1 - piece.start, len(s) - 1 - piece.stop, -1, dtype=q.dtype, device=q.device)[:, None, None, None]
    keys = torch.matmul(_stacked(w_q), s[piece].flatten(2))  # (k, G W, B D)
    keys = keys.view(len(age), *w_q.shape[:2], *s.shape[2:])
    power = (age * log.clamp(min=SMALLEST)).exp_()
    return age, keys, keys * q[:, None], power


class ScalarReadout(torch.autograd.Function):
    """ScalarCore under autograd: apply(tokens, q, w_q, log or None, stride, age, valid or None) -> (B, G, D)."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, q: Tensor, w_q: Tensor, log: Tensor | None, stride: int, age: Tensor, valid: Tensor | None
    ) -> Tensor:
        """See ScalarCore."""
        q = _plain(q)
        out, saved = ScalarCore.forward(tokens, q, w_q, log, stride, age, valid)
        ctx.save_for_backward(tokens, q, w_q, log, *saved)
        ctx.stride = stride
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of tokens, q, w_q and log."""
        tokens, q, w_q, log, *saved = ctx.saved_tensors
        need = ctx.needs_input_grad[0]
        return *ScalarCore.backward(_plain(grad), tokens, q, w_q, log, ctx.stride, saved, need), None, None, None


class FullReadout(torch.autograd.Function):
    """FullCore under autograd: apply(s, q, w_q, log) -> (G, B, D)."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, q: Tensor, w_q: Tensor, log: Tensor) -> Tensor:
        """See FullCore."""
        out, kept = FullCore.forward(s, q, w_q, log)
        ctx.save_for_backward(s, q, w_q, log, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all four inputs."""
        s, q, w_q, log, *kept = ctx.saved_tensors
        return FullCore.backward(grad, s, q, w_q, log, kept, ctx.needs_input_grad[0])


class LayerCore:
    """The last output of plain layers: y = sum_h C Z^T q with q = S_K^T d, for G = S H heads, summed in groups of H.

    This is what meta-training runs: for small tasks the number of operations is the time.
    """

    @staticmethod
    def forward(
        tokens: Tensor, d: Tensor, w_q: Tensor, rate: Tensor | None, c: Tensor, heads: int, stride: int
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """tokens (B, T, D), which end with their last window, d (G, W), w_q (G, W, W), rate, c (G, D, D) -> (S, B, D), saved.

        rate is log(-log Lambda): None, (G,) or (G, D, D).
        """
        batch, width = len(tokens), d.shape[1]
        q = torch.bmm(d.expand(batch, -1, -1), tokens[:, -width:])  # (B, G, D)
        log = None if rate is None else rate.exp().neg_().clamp_(min=SMALLEST)
        saved: tuple[Tensor | None, ...]
        if log is not None and log.ndim == 3:
            s = tokens.unfold(1, width, stride).permute(1, 3, 0, 2).contiguous()  # (K, W, B, D)
            q = _swapped(q)
            z, kept = FullCore.forward(s, q, w_q, log)
            z, saved = _swapped(z), (s, *kept)
        else:
            count = (tokens.shape[1] - width) // stride + 1
            z, saved = ScalarCore.forward(tokens, q, w_q, log, stride, _countdown(count, q.dtype, q.device), None)
        z = _swapped(z.view(batch, len(c) // heads, -1))  # (S, B, H D)
        mix = c.transpose(1, 2) if heads == 1 else c.unflatten(0, (-1, heads)).transpose(2, 3).flatten(1, 2)  # (S, H D, D)
        return torch.bmm(z, mix), (tokens, d, w_q, log, q, z, mix, *saved)

    @staticmethod
    def backward(
        grad: Tensor, heads: int, stride: int, saved: Sequence[Any], need_tokens: bool
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor]:
        """Gradients of tokens (where needed), d, w_q, rate and c."""
        tokens, d, w_q, log, q, z, mix = saved[:7]
        width = d.shape[1]
        d_c = torch.bmm(grad.transpose(1, 2), z)  # (S, D, H D), the heads side by side
        if heads > 1:
            d_c = d_c.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)
        d_z = _swapped(torch.bmm(grad, mix.transpose(1, 2))).view(len(tokens), len(d), -1)  # (B, G, D)
        d_tokens: Tensor | None = None
        d_rate: Tensor | None = None
        if log is not None and log.ndim == 3:
            d_s, d_q, d_w, d_rate = FullCore.backward(_swapped(d_z), saved[7], q, w_q, log, saved[8:], need_tokens)
            d_q = _swapped(d_q)
            if d_s is not None:
                d_tokens = torch.zeros_like(tokens)
                for a in range(width):
                    d_tokens[:, a : a + (len(d_s) - 1) * stride + 1 : stride] += d_s[:, a].transpose(0, 1)
        else:
            d_tokens, d_q, d_w, d_rate = ScalarCore.backward(d_z, tokens, q, w_q, log, stride, saved[7:], need_tokens)
        d_d = torch.bmm(d_q, tokens[:, -width:].transpose(1, 2)).sum(0)
        if d_tokens is not None:
            d_tokens[:, -width:] += torch.matmul(d.T, d_q)
        if d_rate is not None:
            d_rate = d_rate.mul_(log)  # log = -exp(rate)
        return d_tokens, d_d, d_w, d_rate, d_c


class LayerReadout(torch.autograd.Function):
    """LayerCore under autograd: apply(tokens, d, w_q, rate, c, H, R) -> (S, B, D)."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, d: Tensor, w_q: Tensor, rate: Tensor | None, c: Tensor, heads: int, stride: int
    ) -> Tensor:
        """See LayerCore."""
        out, saved = LayerCore.forward(tokens, d, w_q, rate, c, heads, stride)
        ctx.save_for_backward(*saved)
        ctx.heads, ctx.stride = heads, stride
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of tokens, d, w_q, rate and c."""
        return *LayerCore.backward(grad, ctx.heads, ctx.stride, ctx.saved_tensors, ctx.needs_input_grad[0]), None, None
