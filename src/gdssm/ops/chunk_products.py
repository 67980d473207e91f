"""The scan of keys, values and queries in chunks, as matrix products, and its gradients written out.

    Z_k = Lambda_k Z_{k-1} + sum_s key_{k,s} value_{k,s}^T        out_k = Z_k^T query_k

With t_k the sum of log Lambda from a chunk's start to window k, and K, V, Q the chunk's keys, values and queries as rows,

    A    = Q K^T * exp(t_k - t_m), m <= k
    out  = A V + exp(t_k) Q Z_start
    gain = (exp(t_c - t_m) K)^T V                  Z_end = exp(t_c) Z_start + gain

Z_start of all chunks of a step is one product of a triangular matrix with the gains; between steps Z is in float64. The
backward pass keeps Z before each step, loads keys, values and queries again and forms the rest again; g are the rows of d_out:

    P  = g V^T * exp(t_k - t_m), m <= k            dZ_start = (exp(t_k) Q)^T g
    dQ = P K + exp(t_k) g Z_start^T
    dK = P^T Q + exp(t_c - t_m) V dgain^T          dV = A^T g + exp(t_c - t_m) K dgain
    d log Lambda_k = <Z, dZ> at the chunk's start - sum_{m < k} (query_m . dquery_m - sum_s key_{m,s} . dkey_{m,s})

There the states are transposed, because a product with a transposed second factor is slower. All products are written into
contiguous buffers: into others torch multiplies one matrix after another.

Where the rows come from and where their gradients go is a Source: windows of one stream (token_chunks) or streams of
their own (linear).

Axes: H heads, B batch, n chunks of a step, N = H B n, c windows of a chunk, s slots (pairs of a key and a value per window),
D features of keys and queries, E of values.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from .chunk_steps import Decays, Step, chunk_of, decays_of, steps_of


class Rows(NamedTuple):
    """Keys (N, s c, D), queries (N, c, D) and values (N, s c, E) of a step's chunks, or their gradients."""

    k: Tensor
    q: Tensor
    v: Tensor


class Rooms:
    """Buffers by name, used again by every step: rooms(name, *shape); what it held before is lost."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.made: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor."""
        size = math.prod(shape)
        if name not in self.made or len(self.made[name]) < size:
            self.made[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self.made[name][:size].view(shape)


class Source(Protocol):
    """Where keys, values and queries come from."""

    slots: int

    def load(self, step: Step) -> Rows:
        """The step's keys, queries and values, good until the next load."""

    def store(self, step: Step, grads: Rows) -> None:
        """Take their gradients, each contiguous; load was called for this step last. grads may be overwritten."""


class Chunks:
    """A scan: sizes, decays, and the buffers that its steps share.

    sizes: D, E, K; logs (H,) or (H, B, K): log Lambda in the dtype of the state; dtype: that of the products.
    """

    def __init__(self, source: Source, sizes: tuple[int, int, int], logs: Tensor, dtype: torch.dtype) -> None:
        self.source, self.logs, self.dtype = source, logs, dtype
        self.features, self.values, self.count = sizes
        self.room = Rooms(dtype, logs.device)
        self.made: dict[tuple[int, ...], Decays] = {}  # decays that are the same everywhere

    def steps(self, batch: int) -> list[Step]:
        """The steps of so many sequences."""
        c = chunk_of(self.source.slots, self.logs)
        return steps_of(len(self.logs), batch, self.count, max(self.features, self.values), c)

    def decays(self, step: Step) -> Decays:
        """Those of a step; one decay per head is the same everywhere, and made once."""
        if self.logs.ndim == 3:
            return decays_of(step, self.logs, self.dtype)
        key = (step.heads.start, *step.sizes)
        if key not in self.made:
            self.made[key] = decays_of(step, self.logs, self.dtype)
        return self.made[key]

    def _scores(self, step: Step, w: Decays, rows: Rows, out: Tensor) -> Tensor:
        """A (N, c, s c)."""
        (heads, _, _, c), s = step.sizes, self.source.slots
        torch.bmm(rows.q, rows.k.mT, out=out)
        out.view(heads, -1, c, s, c).mul_(w.between)
        return out

    def _grown(self, step: Step, w: Decays, rows: Rows) -> Tensor:
        """Keys times the decay to the chunk's end, (N, s c, D)."""
        grown, shape = self.room("grown", *rows.k.shape), (step.sizes[0], -1, self.source.slots, step.c, self.features)
        torch.mul(rows.k.view(shape), w.to_end, out=grown.view(shape))
        return grown

    def _starts(self, w: Decays, gained: Tensor, start: Tensor) -> Tensor:
        """The state before each chunk from each chunk's gain (N, D, E) and the state before the step (H, B, D, E)."""
        pairs, n = len(w.carry), w.carry.shape[1] - 1
        starts = self.room("starts", pairs, n, gained[0].numel())
        torch.mul(w.carry[:, :n, :1], start.reshape(pairs, 1, -1), out=starts)
        return starts.baddbmm_(w.carry[:, :n, 1:], gained.view_as(starts)).view_as(gained)

    def forward(self, z: Tensor, out: Tensor, kept: list[Tensor] | None) -> Tensor:
        """Fill out (B, K, H, E), append Z before each step to kept, and return Z after the last: z (H, B, D, E)."""
        z = z.clone()
        for step in self.steps(len(out)):
            w, before = self.decays(step), step.state(z)
            (heads, batch, n, c), d, e = step.sizes, self.features, self.values
            chunks, start = heads * batch * n, before.to(self.dtype, copy=True)
            rows = self.source.load(step)
            size = (chunks, c, c * self.source.slots)
            room = self.room("scores", *size) if kept is None else torch.empty(size, dtype=self.dtype, device=z.device)
            scores, grown = self._scores(step, w, rows, room), self._grown(step, w, rows)
            asked = self.room("asked", chunks, c, d)
            torch.mul(_by_head(rows.q, heads), w.from_start, out=_by_head(asked, heads))
            gained = torch.bmm(grown.mT, rows.v, out=self.room("gained", chunks, d, e))
            y = torch.bmm(scores, rows.v, out=self.room("out", chunks, c, e))
            y.baddbmm_(asked, self._starts(w, gained, start))
            step.windows(out).copy_(y.view(*step.sizes, e))
            added = torch.bmm(w.carry[:, -1:, 1:], gained.view(heads * batch, n, -1))
            before.mul_(w.kept).add_(added.view_as(before))
            if kept is not None:
                kept += [start, scores]
        return z

    def backward(self, d_out: Tensor, d_z: Tensor, kept: list[Tensor], d_logs: Tensor | None) -> Tensor:
        """Give the source its gradients, add to d_logs (like logs), and return the gradient of the first Z.

        d_out (B, K, H, E), d_z (H, B, D, E): the gradient of the last Z.
        """
        d_z = d_z.mT.contiguous()  # (H, B, E, D)
        for i, step in reversed(list(enumerate(self.steps(len(d_out))))):
            d_after, start, scores = step.state(d_z), kept[2 * i].mT, kept[2 * i + 1]
            rows = self.source.load(step)
            grads = self._gradients(step, rows, start, scores, d_out, d_after)
            if d_logs is not None:
                self._log(step, rows, grads, (start * d_after).sum((2, 3)), d_logs)
            self.source.store(step, grads)
        return d_z.mT

    def _gradients(self, step: Step, rows: Rows, start: Tensor, scores: Tensor, d_out: Tensor, d_after: Tensor) -> Rows:
        """start, d_after (H, B, E, D); d_after, the gradient of Z after the step, becomes that of Z before it."""
        (heads, batch, n, c), s, d, e = step.sizes, self.source.slots, self.features, self.values
        chunks, w = heads * batch * n, self.decays(step)
        grown = self._grown(step, w, rows)
        gained = torch.bmm(rows.v.mT, grown, out=self.room("gained", chunks, e, d))
        starts = self._starts(w, gained, start)
        g, g_read = self.room("out", chunks, c, e), self.room("read", chunks, c, e)
        g.view(*step.sizes, e).copy_(step.windows(d_out))
        torch.mul(_by_head(g, heads), w.from_start, out=_by_head(g_read, heads))
        d_starts = torch.bmm(g_read.mT, rows.q, out=self.room("d_starts", chunks, e, d))
        d_gained = self._carried(w, d_starts, d_after)

        d_scores = torch.bmm(g, rows.v.mT, out=self.room("d_scores", *scores.shape))
        d_scores.view(heads, -1, c, s, c).mul_(w.between)
        room = self.room("grads", chunks * c * (s * d + d + s * e))
        d_k, d_q, d_v = room.split([chunks * s * c * d, chunks * c * d, chunks * s * c * e])
        d_q = torch.bmm(g_read, starts, out=d_q.view(chunks, c, d)).baddbmm_(d_scores, rows.k)
        d_k = torch.bmm(rows.v, d_gained, out=d_k.view(chunks, s * c, d))
        d_k.view(heads, -1, s, c, d).mul_(w.to_end)
        d_k.baddbmm_(d_scores.mT, rows.q)
        d_v = torch.bmm(scores.mT, g, out=d_v.view(chunks, s * c, e)).baddbmm_(grown, d_gained.mT)
        return Rows(d_k, d_q, d_v)

    def _carried(self, w: Decays, d_starts: Tensor, d_after: Tensor) -> Tensor:
        """The gradient of each chunk's gain (N, E, D); d_after becomes the gradient of Z before the step."""
        pairs, n = len(w.carry), w.carry.shape[1] - 1
        flat, last = d_starts.view(pairs, n, -1), d_after.reshape(pairs, 1, -1).to(self.dtype)
        d_gained = self.room("gained", *d_starts.shape)
        torch.mul(w.carry[:, -1, 1:, None], last, out=d_gained.view_as(flat))
        d_gained.view_as(flat).baddbmm_(w.carry[:, :n, 1:].mT, flat)
        d_after.mul_(w.kept).add_(torch.bmm(w.carry[:, :n, :1].mT, flat).view_as(d_after))
        return d_gained

    def _log(self, step: Step, rows: Rows, grads: Rows, first: Tensor, d_logs: Tensor) -> None:
        """first (H, B): <Z, dZ> at the step's start. Every chunk is summed by itself, because the terms cancel."""
        (heads, batch, n, c), dtype = step.sizes, d_logs.dtype
        shape = (heads * batch, n, self.features * self.values)
        starts, d_after = self.room("starts", *shape), self.room("gained", len(rows.q), self.values, self.features).view(shape)
        both = torch.mul(starts[:, 1:], d_after[:, :-1], out=self.room("products", *shape)[:, 1:])
        firsts = torch.cat([first[..., None], both.sum(2).to(dtype).view(heads, batch, n - 1)], 2)  # (H, B, n)
        asked = torch.mul(rows.q, grads.q, out=self.room("asked", *rows.q.shape)).sum(2)
        keys = torch.mul(rows.k, grads.k, out=self.room("grown", *rows.k.shape)).sum(2)
        flow = (asked.to(dtype) - keys.view(len(keys), -1, c).sum(1, dtype=dtype)).view(heads, batch, n, c)
        if d_logs.ndim == 3:
            d_log = firsts[..., None] - pad(flow[..., :-1].cumsum(3), (1, 0))
            step.state(d_logs)[..., step.first : step.stop] = d_log.flatten(2)
            return
        after = torch.arange(c - 1, -1, -1, dtype=dtype, device=flow.device)
        d_logs[step.heads] += (firsts * c - flow.matmul(after)).sum((1, 2))


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(N, ..) -> (H, N / H, ..)."""
    return x.unflatten(0, (heads, -1))
