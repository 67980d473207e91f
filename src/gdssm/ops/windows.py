"""Where windows lie in a stream: shapes, stride phase, padding, and the state that goes on.

Axes: B batch, T tokens, K windows, W window width, R stride, H heads, D features.
Both backends get their windows from here, so they can differ in arithmetic only.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from .filters import causal_filters


class ScanState(NamedTuple):
    """What a scan needs to go on where it stopped.

    z     (B, H, D, D)    the recurrent state Z, kept in float64 (float32 where a device has no float64),
                          so that a sum over a million tokens does not drift
    tail  (B, W-1, H, D)  the last W-1 tokens; zeros where fewer were seen
    seen  (B,)            tokens seen per sequence, int64, on the CPU (it decides shapes)
    """

    z: Tensor
    tail: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Windows:
    """Every window that ends inside the tokens of one call.

    stream  (B, S, H, D)  tokens, after the tail of the state if there is one; padding is zeroed
    start   index in the stream of the first window's first token
    count   K
    valid   (B, K) bool, False where a sequence has no such window; None: all valid
    lengths, earlier      tokens read in this call (None: all), and seen before it (None: none), per sequence
    """

    stream: Tensor
    start: int
    count: int
    width: int
    stride: int
    valid: Tensor | None
    lengths: Tensor | None
    earlier: Tensor | None
    n_tokens: int

    def to(self, dtype: torch.dtype) -> "Windows":
        """The same windows of the stream in another dtype."""
        return self if self.stream.dtype == dtype else replace(self, stream=self.stream.to(dtype))

    def tap(self, a: int) -> Tensor:
        """Token a of every window, (B, K, H, D): a view."""
        first = self.start + a
        return self.stream[:, first : first + max(0, (self.count - 1) * self.stride + 1) : self.stride]

    def stacked(self) -> Tensor:
        """All windows, (B, H, K, W, D)."""
        return torch.stack([self.tap(a) for a in range(self.width)], dim=3).transpose(1, 2)

    @property
    def before(self) -> Tensor:
        """Windows each sequence had seen before this call, (B,) on the CPU."""
        if self.earlier is None:
            return torch.zeros(self.stream.shape[0], dtype=torch.int64)
        return windows_in(self.earlier, self.width, self.stride)

    def counts(self) -> Tensor:
        """Windows seen up to and including each of these, (B, K) int64 on the stream's device."""
        device = self.stream.device
        if self.valid is None:
            steps = torch.arange(1, self.count + 1, device=device).expand(self.stream.shape[0], -1)
        else:
            steps = self.valid.long().cumsum(1)
        return self.before.to(device)[:, None] + steps

    def seen(self) -> Tensor:
        """Tokens each sequence has seen after this call, (B,) on the CPU."""
        read = torch.full((self.stream.shape[0],), self.n_tokens) if self.lengths is None else self.lengths
        return read if self.earlier is None else self.earlier + read

    def tail(self) -> Tensor:
        """The last W-1 tokens of each sequence, (B, W-1, H, D)."""
        stream, keep = self.stream, self.width - 1
        if self.lengths is not None:
            index = (self.lengths[:, None] + torch.arange(keep)).to(stream.device)  # the stream starts with W-1 earlier tokens
            return torch.take_along_dim(stream, index[:, :, None, None], dim=1)
        missing = keep - stream.shape[1]
        if missing > 0:
            stream = torch.nn.functional.pad(stream, (0, 0, 0, 0, missing, 0))
        return stream[:, stream.shape[1] - keep :].clone()


def windows_in(seen: Tensor, width: int, stride: int) -> Tensor:
    """Windows completed after `seen` tokens: (seen - W) // R + 1, and 0 before the first."""
    return torch.where(seen >= width, (seen - width).div(stride, rounding_mode="floor") + 1, 0)


Gate = Tensor | tuple[Tensor, Tensor]
"""The input gate: w_q (H, W, W), or its factors u, v, both (H, W), for w_q = u v^T."""


def filtered(windows: Windows, taps: Tensor) -> Tensor:
    """S_k^T taps for taps (H, W): (B, K, H, D), zero where a sequence has no window."""
    if windows.stride == 1 and windows.count:
        read = windows.stream[:, windows.start : windows.start + windows.count + windows.width - 1]
        (by_head,) = causal_filters(read.expand(-1, -1, len(taps), -1).transpose(1, 2), taps)
        out = by_head.transpose(1, 2)
    else:
        out = windows.tap(0) * taps[:, 0, None]
        for a in range(1, windows.width):
            out = out + windows.tap(a) * taps[:, a, None]
    return out if windows.valid is None else out.masked_fill(~windows.valid[:, :, None, None], 0)


def as_queries(windows: Windows, queries: Tensor) -> Tensor:
    """Queries (B, K, H, D) as they are; taps (H, W) as the queries S_k^T d that they make."""
    return filtered(windows, queries) if queries.ndim == 2 else queries


F = TypeVar("F", bound=Callable[..., Any])


def full_precision(method: F) -> F:
    """Switch autocast off inside a method of (self, .., tensors): the state's sums are never formed in half precision."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        if not torch.is_autocast_enabled(device):
            return method(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return method(*args, **kwargs)

    return cast(F, wrapped)


def carry_dtype(device: torch.device) -> torch.dtype:
    """Z is carried in float64; Apple's GPUs have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that products are formed in: the widest given, never below float32."""
    dtype = torch.float32
    for t in tensors:
        if t is not None:
            dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def zero_state(batch: int, heads: int, width: int, features: int, *, dtype: torch.dtype, device: torch.device) -> ScanState:
    """The state before any token."""
    return ScanState(
        torch.zeros(batch, heads, features, features, dtype=carry_dtype(device), device=device),
        torch.zeros(batch, width - 1, heads, features, dtype=dtype, device=device),
        torch.zeros(batch, dtype=torch.int64),
    )


def check_lengths(lengths: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """Lengths as int64 on the CPU, or ValueError."""
    if lengths is None:
        return None
    lengths = torch.as_tensor(lengths, device="cpu")
    if lengths.is_floating_point() or lengths.dtype == torch.bool or lengths.shape != (batch,):
        raise ValueError(f"lengths must be {batch} integers, one per sequence, got {lengths.dtype} of shape {tuple(lengths.shape)}")
    if batch and (int(lengths.min()) < 0 or int(lengths.max()) > tokens):
        raise ValueError(f"lengths must lie in 0..{tokens} (the tokens given), got {lengths.tolist()}")
    return lengths.long()


def align(tokens: Tensor, width: int, stride: int, state: ScanState | None, lengths: Tensor | None) -> Windows:
    """Place the windows that end inside `tokens` (B, T, H, D).

    A window is placed by its last token, so a sequence that has not yet seen W-1 tokens joins
    a batch of longer ones: windows it lacks are not valid. Raises ValueError when the sequences'
    strides are out of phase, because then they have no common window positions.
    """
    batch, n_tokens, heads, features = tokens.shape
    if state is None and lengths is None:
        count = max(0, (n_tokens - width) // stride + 1)
        return Windows(tokens, 0, count, width, stride, None, None, None, n_tokens)
    lengths = check_lengths(lengths, batch, n_tokens)
    seen = torch.zeros(batch, dtype=torch.int64) if state is None else state.seen
    before = seen.tolist()
    if len({(n - width + 1) % stride for n in before}) > 1:
        raise ValueError(
            f"state: the sequences have seen {before} tokens, which differ modulo the stride {stride}, "
            "so their windows do not line up; continue them in separate batches"
        )
    longest = max(before, default=0)
    end = max(0, width - 1 - longest)  # index in tokens of the first window's last token
    end += -(longest - width + 1 + end) % stride
    count = max(0, -(-(n_tokens - end) // stride))

    tail = tokens.new_zeros(batch, width - 1, heads, features) if state is None else state.tail.to(tokens.dtype)
    if lengths is not None:
        padding = torch.arange(n_tokens) >= lengths[:, None]
        tokens = tokens.masked_fill(padding.to(tokens.device)[:, :, None, None], 0)
    stream = torch.cat([tail, tokens], dim=1)

    valid = None
    if lengths is not None or min(before, default=0) != longest:
        ends = end + stride * torch.arange(count)
        valid = ends >= (width - 1 - seen)[:, None]
        if lengths is not None:
            valid &= ends < lengths[:, None]
        valid = valid.to(tokens.device)
    return Windows(stream, end, count, width, stride, valid, lengths, seen, n_tokens)


def unrecorded(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors, detached where no gradients are recorded: a Function cannot see that, and would keep what only they need."""
    return tensors if torch.is_grad_enabled() else tuple(None if t is None else t.detach() for t in tensors)
