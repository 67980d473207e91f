"""How a scan in chunks is cut: steps that fit a cache, and the decays inside a step.

A chunk is c windows. A step is n chunks of some heads and sequences. Steps go through the windows from the first to the
last; what does not fill a chunk is the last step, unless the first chunk is filled up (`filling`). Inside a step t_k is the
sum of log Lambda from a chunk's start to window k. Every exponent formed is <= 0, so nothing overflows however small Lambda is.

Axes: B batch, K windows, H heads, n chunks of a step, N = H B n, c windows of a chunk, X = 1 where all chunks have the same
decays, else B n.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64  # windows of a chunk; half as many where c x c tensors cost more than matrix products
_STEP = 1 << 18  # numbers in the windows of a step, about
_PADDED = 1 << 20  # numbers in all windows up to which a chunk is filled up, because a step costs more than copies
_CHUNKS = 8  # chunks of a step, if there are as many: few, and states in float64 cost more than the tokens


def chunk_of(slots: int, logs: Tensor) -> int:
    """Windows of a chunk."""
    return CHUNK if slots == 1 and logs.ndim == 1 else CHUNK // 2


def filling(count: int, c: int, per_window: int) -> int:
    """Windows to put before `count` others, of so many numbers each, so that chunks of c are full; 0 where it does not pay.

    Z must be 0 before them, and their keys: then they change nothing, whatever Lambda is.
    """
    return -count % c if c < count and count * per_window <= _PADDED else 0


class Step(NamedTuple):
    """n chunks of c windows of some heads and sequences; `first` is the first window."""

    heads: slice
    batch: slice
    first: int
    n: int
    c: int

    @property
    def stop(self) -> int:
        """The window after the last."""
        return self.first + self.n * self.c

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(H, B, n, c)."""
        return self.heads.stop - self.heads.start, self.batch.stop - self.batch.start, self.n, self.c

    def state(self, z: Tensor) -> Tensor:
        """The step's part of (H, B, ..)."""
        return z[self.heads, self.batch]

    def windows(self, x: Tensor) -> Tensor:
        """The step's windows in (B, K, H, D): a view (H, B, n, c, D)."""
        part = x[self.batch, self.first : self.stop, self.heads]
        return part.unflatten(1, (self.n, self.c)).permute(3, 0, 1, 2, 4)


def steps_of(heads: int, batch: int, count: int, features: int, c: int) -> list[Step]:
    """All windows of all heads and sequences, in order for each pair of them; c: windows of a chunk."""
    c = min(c, count)
    whole, size = count // c, max(1, _STEP // max(1, c * features))  # chunks of a step
    steps = []
    for some_heads, some in _groups(heads, batch, max(1, size // min(_CHUNKS, whole))):
        pairs = (some_heads.stop - some_heads.start) * (some.stop - some.start)
        blocks = -(-whole * pairs // size)
        edges = [whole * i // blocks for i in range(blocks + 1)]  # of about equal sizes
        steps += [Step(some_heads, some, a * c, b - a, c) for a, b in itertools.pairwise(edges) if b > a]
    rest = count - whole * c
    if rest:
        steps += [Step(some_heads, some, whole * c, 1, rest) for some_heads, some in _groups(heads, batch, size)]
    return steps


def _groups(heads: int, batch: int, pairs: int) -> list[tuple[slice, slice]]:
    """Pairs of a head and a sequence, so many at a time."""
    some_heads, some = min(heads, pairs), max(1, pairs // heads)
    return [
        (slice(h, min(h + some_heads, heads)), slice(b, min(b + some, batch)))
        for b in range(0, batch, some)
        for h in range(0, heads, some_heads)
    ]


class Decays(NamedTuple):
    """The decays of a step, 0 where a window comes later."""

    between: Tensor  # (H, X, c, 1, c), exp(t_k - t_m), m <= k
    from_start: Tensor  # (H, X, c, 1), exp(t_k)
    to_end: Tensor  # (H, X, 1, c, 1), exp(t_c - t_k)
    carry: Tensor  # (H B, n + 1, n + 1): from Z before the step (first) and each chunk's gain to Z before each chunk and after
    kept: Tensor  # (H, B or 1, 1, 1), of the whole step, in the dtype of the state


def decays_of(step: Step, logs: Tensor, dtype: torch.dtype) -> Decays:
    """logs (H,) or (H, B, K), those of all heads and sequences, in the dtype of the state."""
    _, batch, n, c = step.sizes
    if logs.ndim == 1:
        own = logs[step.heads, None, None, None].expand(-1, 1, n, c)
    else:
        own = step.state(logs)[..., step.first : step.stop].unflatten(2, (n, c))
    total = own.cumsum(3)  # (H, B or 1, n, c)
    before = pad(total[..., -1].cumsum(2), (1, 0))  # (H, B or 1, n + 1)
    carry = (before[..., :, None] - before[..., None, :]).to(dtype)
    carry = carry.masked_fill_(carry > 0, float("-inf")).exp_().tril_().expand(-1, batch, -1, -1).flatten(0, 1)
    total = total[:, 0, :1] if logs.ndim == 1 else total.flatten(1, 2)  # (H, X, c)
    later = torch.ones(c, c, dtype=torch.bool, device=logs.device).triu_(1)
    between = (total[..., :, None] - total[..., None, :]).to(dtype).masked_fill_(later, float("-inf")).exp_()
    to_end = (total[..., -1:] - total).exp_().to(dtype)
    return Decays(
        between[:, :, :, None],
        total.exp().to(dtype)[..., None],
        to_end[:, :, None, :, None],
        carry,
        before[..., -1].exp()[..., None, None],
    )
