"""The last window's readout alone, and reading without readout: what in-context regression needs.

    out = Z_K^T q = sum_m sum_{a,b} w_q[a, b] (q . Lambda^{K-m} s_{m,a}) s_{m,b} + Lambda^K Z_0^T q

No K x D x D tensor is formed. Decay none or head: one score per token, a W-tap stencil on the scores, one weighted
sum of tokens. Decay row: W scores per window against the decayed query. Decay full: for each window age one matrix
product of all queries with that age's D x D decay, shared by the whole batch. All G heads read one stream, so many
heads (or many seeds) share its products. The first and the last have their gradients written out (gradients.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import decay as decays
from .gradients import FullReadout, LayerCore, LayerReadout, ScalarReadout, overlap_add
from .windows import ScanState, Windows, align, carry_dtype, compute_dtype, windows_in


def last_window(
    tokens: Tensor,
    w_q: Tensor,
    log_decay: Tensor | None,
    d: Tensor,
    *,
    structure: str,
    stride: int,
    state: ScanState | None = None,
    lengths: Tensor | None = None,
    key_map: Tensor | None = None,
) -> tuple[Tensor, Tensor, Windows]:
    """Readout of each sequence's last window.

    tokens (B, T, D), w_q (G, W, W), log_decay as `structure` says (never "input"), d (G, W), key_map (G, D, D):
    returns Z^T P q (B, G, D), q (B, G, D) in the compute dtype, and the windows.
    ValueError where a sequence has no window that ends in these tokens.
    """
    dtype = compute_dtype(tokens, w_q)
    windows = align(tokens.to(dtype).unsqueeze(2), w_q.shape[1], stride, _shared(state), lengths)
    check_ends(windows)
    q = torch.bmm(d.to(dtype).expand(len(tokens), -1, -1), final_window(windows)[:, :, 0])  # (B, G, D)
    mapped = q if key_map is None else torch.einsum("gij,bgj->bgi", key_map.to(dtype), q)
    out = last_product(windows, w_q, log_decay, mapped, structure)
    if state is not None:
        gone = (last_counts(windows) - windows.before).to(q.device)  # windows of this call, per sequence
        z = _power(decays.make(log_decay, structure, q.device), gone) * state.z
        out = out + torch.einsum("bgij,bgi->bgj", z.to(dtype), mapped)
    return out, q, windows


def last_product(windows: Windows, w_q: Tensor, log_decay: Tensor | None, v: Tensor, structure: str) -> Tensor:
    """Z^T v of each sequence's last window, from Z = 0 before the first: w_q (G, W, W), v (B, G, D) -> (B, G, D).

    log_decay as `structure` says; v in the windows' dtype.
    """
    age, dtype = _ages(windows), v.dtype
    w_q, log = w_q.to(dtype), None if log_decay is None else log_decay.to(dtype)
    if structure == "full":
        assert log is not None
        return _full(windows, w_q, log, v, age)
    if structure == "row":
        assert log is not None
        return _row(windows, w_q, log, v, age)
    span = (windows.count - 1) * windows.stride + windows.width
    used = windows.stream[:, windows.start : windows.start + span, 0]
    out: Tensor = ScalarReadout.apply(used, v, w_q, log, windows.stride, age, windows.valid)
    return out


def last_output(tokens: Tensor, d: Tensor, w_q: Tensor, rate: Tensor | None, c: Tensor, heads: int, stride: int) -> Tensor:
    """The last window's output of plain layers, sum_h C Z^T q: tokens (B, T, D) -> (S, B, D), S H = G heads.

    rate is log(-log Lambda), None, (G,) or (G, D, D). ValueError where the tokens hold no window.
    """
    dtype = compute_dtype(tokens, w_q)
    used = _used(tokens, d.shape[1], stride).to(dtype)
    rate = None if rate is None else rate.to(dtype)
    out: Tensor = LayerReadout.apply(used, d.to(dtype), w_q.to(dtype), rate, c.to(dtype), heads, stride)
    return out


@torch.no_grad()
def last_output_and_pullback(
    tokens: Tensor, d: Tensor, w_q: Tensor, rate: Tensor | None, c: Tensor, heads: int, stride: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None, Tensor]]]:
    """last_output of tensors of one dtype, and the function of its gradient that gives those of d, w_q, rate and c.

    Without autograd, whose bookkeeping takes a fifth of a small training step.
    """
    out, saved = LayerCore.forward(_used(tokens, d.shape[1], stride), d, w_q, rate, c, heads, stride)

    @torch.no_grad()
    def pullback(grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        return LayerCore.backward(grad, heads, stride, saved, False)[1:]

    return out, pullback


def _used(tokens: Tensor, width: int, stride: int) -> Tensor:
    """The tokens up to the end of the last window. ValueError where they hold none."""
    count = (tokens.shape[1] - width) // stride + 1
    if count < 1:
        raise _no_window(width, 0)
    return tokens[:, : (count - 1) * stride + width]


def absorb(
    tokens: Tensor,
    w_q: Tensor,
    log_decay: Tensor | None,
    *,
    structure: str,
    stride: int,
    state: ScanState | None = None,
    lengths: Tensor | None = None,
) -> tuple[Windows, ScanState]:
    """Read tokens (B, T, H or 1, D) into the state, without outputs: one matrix product.

    w_q (H, W, W); structure "none" or "head" with log_decay None or (H,).
    """
    heads, width = w_q.shape[:2]
    windows = align(tokens.expand(-1, -1, heads, -1), width, stride, state, lengths)
    log = decays.make(log_decay, structure, tokens.device).log.expand(heads)[:, None]
    z = tokens.new_zeros(tokens.shape[0], heads, tokens.shape[3], tokens.shape[3], dtype=carry_dtype(tokens.device))
    if state is not None:
        gone = torch.full((len(z), 1), windows.count) if windows.valid is None else windows.valid.sum(1, keepdim=True)
        z = (gone.to(log.device)[:, None] * log).exp()[..., None] * state.z
    if windows.count:
        s = windows.stacked()  # (B, H, K, W, D)
        kept = (_ages(windows)[:, None] * log).exp().to(s.dtype)  # (1 or B, H, K)
        if windows.valid is not None:
            kept = kept * windows.valid[:, None]
        keys = torch.matmul(w_q.to(s.dtype).transpose(1, 2)[:, None], s) * kept[..., None, None]
        z = z + torch.matmul(keys.flatten(2, 3).transpose(2, 3), s.flatten(2, 3)).to(z.dtype)
    return windows, ScanState(z, windows.tail(), windows.seen())


def check_ends(windows: Windows) -> None:
    """ValueError where no window of a sequence ends in these tokens."""
    lacking = [] if windows.count else [0]
    if windows.valid is not None:
        lacking = (~windows.valid.any(1)).nonzero().flatten().tolist()
    if lacking:
        raise _no_window(windows.width, lacking[0])


def _no_window(width: int, sequence: int) -> ValueError:
    """The error for a sequence that is shorter than a window."""
    return ValueError(f"tokens: no window of {width} tokens ends in sequence {sequence}, so it has no last output")


def last_counts(windows: Windows) -> Tensor:
    """Windows seen at each sequence's last window, (B,) on the CPU."""
    here = torch.full((windows.stream.shape[0],), windows.count) if windows.valid is None else windows.valid.sum(1).cpu()
    return windows.before + here


def final_window(windows: Windows) -> Tensor:
    """Each sequence's last window, (B, W, H, D)."""
    stream = windows.stream
    if windows.valid is None:
        first = windows.start + (windows.count - 1) * windows.stride
        return stream[:, first : first + windows.width]
    position = torch.arange(windows.count, device=stream.device)
    final = (windows.valid * position).amax(1)  # (B,)
    index = windows.start + final[:, None] * windows.stride + torch.arange(windows.width, device=stream.device)
    return torch.take_along_dim(stream, index[:, :, None, None], dim=1)


def next_count(state: ScanState, width: int, stride: int) -> Tensor:
    """Windows seen once one more token is read, (B,); ValueError where that token would complete no window."""
    after = state.seen + 1
    if bool(((after < width) | ((after - width) % stride != 0)).any()):
        raise ValueError(
            f"state: after {state.seen.tolist()} tokens the next one completes no window (window {width}, stride {stride})"
        )
    return windows_in(after, width, stride)


def next_windows(tail: Tensor, queries: Tensor) -> Tensor:
    """The window that each query would complete: tail (B, W-1, D), queries (B, M, D) -> (B, M, W, D)."""
    before = tail.unsqueeze(1).expand(-1, queries.shape[1], -1, -1)
    return torch.cat([before, queries.unsqueeze(2)], dim=2)


def _shared(state: ScanState | None) -> ScanState | None:
    """All heads read one stream, so one head's tail is the stream's."""
    return None if state is None else state._replace(tail=state.tail[:, :, :1])


def _ages(windows: Windows) -> Tensor:
    """Windows between each window and its sequence's last one, (1 or B, K); 0 where there is no window."""
    if windows.valid is None:
        return torch.arange(windows.count - 1, -1, -1, device=windows.stream.device)[None]
    return (windows.valid.long().flip(1).cumsum(1).flip(1) - 1).clamp(min=0)


def _power(lam: decays.Decay, age: Tensor) -> Tensor:
    """Lambda^age for age (B,), broadcastable to Z (B, G, D, D)."""
    log = lam.log
    if lam.structure in ("none", "head"):
        log = log.reshape(-1, 1, 1)
    elif lam.structure == "row":
        log = log[:, :, None]
    return (age[:, None, None, None] * log).exp()


def _row(windows: Windows, w_q: Tensor, log: Tensor, q: Tensor, age: Tensor) -> Tensor:
    """W scores per window against the query decayed by the window's age: log (G, D), q (B, G, D) -> (B, G, D)."""
    power = (age[:, None, :, None] * log.clamp(min=decays.SMALLEST)[:, None]).exp()  # (1 or B, G, K, D)
    if windows.valid is not None:
        power = power * windows.valid[:, None, :, None]
    decayed = (q[:, :, None] * power).transpose(1, 2)  # (B, K, G, D)
    s = torch.stack([windows.tap(a)[:, :, 0] for a in range(windows.width)], dim=2)  # (B, K, W, D)
    scores = torch.matmul(decayed, s.transpose(2, 3))  # (B, K, G, W)
    weights = torch.matmul(scores.transpose(1, 2), w_q)  # (B, G, K, W)
    span = (windows.count - 1) * windows.stride + windows.width
    return torch.matmul(overlap_add(weights, windows.stride), windows.stream[:, windows.start : windows.start + span, 0])


def _full(windows: Windows, w_q: Tensor, log: Tensor, q: Tensor, age: Tensor) -> Tensor:
    """log (G, D, D), q (B, G, D) -> (B, G, D), with the windows of all sequences lined up by age."""
    s = torch.stack([windows.tap(a)[:, :, 0] for a in range(windows.width)], dim=2)  # (B, K, W, D)
    if windows.valid is not None:  # sequences end at different windows: move each one's windows to the end
        place = (windows.count - 1 - age)[:, :, None, None].expand_as(s)
        s = torch.zeros_like(s).scatter_add(1, place, s * windows.valid[:, :, None, None])
    return FullReadout.apply(s.permute(1, 2, 0, 3).contiguous(), q.transpose(0, 1), w_q, log).transpose(0, 1)
