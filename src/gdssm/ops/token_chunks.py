"""Decay none, head or input: keys, values and queries formed chunk by chunk from the windows of one stream.

    row_f = sum_a taps[f, a] token_a         f: s keys, the query, s values of a window, for w_q = sum_s u_s v_s^T

The windows of a chunk, X (W x c D), are copied out of the stream, and the rows are the product taps X of a small matrix with
it. They exist for one step at a time (chunk_steps), so a pass needs little memory beyond its input and output; the backward
pass forms them again. d_taps = d_rows X^T, dX = taps^T d_rows, and dX adds up where windows overlap.

Axes: H heads, B batch, n chunks of a step, N = H B n, c windows of a chunk, s slots, F = 2 s + 1, W window width, R stride,
D features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunk_products import Chunks, Rooms, Rows
from .chunk_steps import Step

Place = tuple[int, int, int, int]
"""Index of the first window's first token, K, R, and the number of first windows that are there to fill a chunk."""


class Stream:
    """Rows from a stream (B, S, H, D) by taps (H, F, W); queries (B, K, H, D) if given are used as they are.

    valid (B, K): where a sequence has no window its rows are zero; so are those of windows that fill a chunk.
    """

    def __init__(self, stream: Tensor, queries: Tensor | None, taps: Tensor, valid: Tensor | None, place: Place) -> None:
        self.stream, self.queries, self.taps, self.valid = stream, queries, taps, valid
        self.start, self.count, self.stride, self.lead = place
        self.slots, self.width = taps.shape[1] // 2, taps.shape[2]
        self.spread: dict[tuple[int, ...], Tensor] = {}
        self.room = Rooms(taps.dtype, taps.device)
        self.d_stream: Tensor | None = None
        self.d_queries: Tensor | None = None
        self.d_taps: Tensor | None = None  # in float64
        self.halo: Tensor | None = None

    def _taps(self, step: Step) -> Tensor:
        """The taps of each chunk, (N, F, W)."""
        heads, batch, n, _ = step.sizes
        key = (step.heads.start, heads, batch * n)
        if key not in self.spread:
            self.spread[key] = self.taps[step.heads].repeat_interleave(batch * n, 0)
        return self.spread[key]

    def _tokens(self, step: Step) -> Tensor:
        """The windows of each chunk, (N, W, c D)."""
        part = self.stream[step.batch, :, step.heads]
        heads, batch, n, c = step.sizes
        step_b, step_t, step_h, step_d = part.stride()
        first, hop = self.start + step.first * self.stride, self.stride * step_t
        shape, steps = (heads, batch, n, self.width, c, part.shape[3]), (step_h, step_b, c * hop, step_t, hop, step_d)
        found = self.room("tokens", *shape)
        found.copy_(part.as_strided(shape, steps, part.storage_offset() + first * step_t))
        return found.view(heads * batch * n, self.width, -1)

    def load(self, step: Step) -> Rows:
        """See the module's equation."""
        heads, batch, n, c = step.sizes
        chunks, s = heads * batch * n, self.slots
        found = self.room("rows", chunks, 2 * s + 1, c * self.stream.shape[3])
        torch.bmm(self._taps(step), self._tokens(step), out=found)
        flat = found.view(chunks, (2 * s + 1) * c, -1)
        rows = Rows(flat[:, : s * c], flat[:, s * c : (s + 1) * c], flat[:, (s + 1) * c :])
        if self.queries is not None:
            rows.q.unflatten(0, step.sizes[:3]).copy_(step.windows(self.queries))
        self._clear(step, found)
        return rows

    def _clear(self, step: Step, rows: Tensor) -> None:
        """Rows (N, F, c D), or their gradients, become zero where there is no window."""
        heads, batch, n, c = step.sizes
        if self.lead and step.first == 0:
            rows.view(heads, batch, n, rows.shape[1], c, -1)[:, :, 0, :, : self.lead] = 0
        if self.valid is not None:
            mask = self.valid[step.batch, step.first : step.stop].reshape(-1, 1, c, 1)
            rows.view(heads, batch * n, rows.shape[1], c, -1).mul_(mask)

    def differentiate(self, needed: tuple[bool, bool, bool]) -> None:
        """Make room for the gradients of stream, queries and taps that are needed."""
        if needed[0]:
            batch, tokens, heads, features = self.stream.shape
            self.d_stream = torch.empty(batch, tokens, heads, features, dtype=self.stream.dtype, device=self.stream.device)
            self.d_stream[:, : self.start] = 0
            self.d_stream[:, self.start + (self.count - 1) * self.stride + self.width :] = 0
            over = max(0, self.width - self.stride)
            self.halo = self.taps.new_zeros(heads, batch, over, features)  # of a later step's first W - R tokens
        if needed[1] and self.queries is not None:
            self.d_queries = torch.empty_like(self.queries)
        if needed[2]:
            self.d_taps = torch.zeros_like(self.taps, dtype=torch.float64)

    def store(self, step: Step, grads: Rows) -> None:
        """The gradients of the stream, the queries and the taps."""
        heads, batch, n, c = step.sizes
        chunks = heads * batch * n
        if self.slots == 1:  # the three lie one behind another
            size = grads.q[0].numel()
            joined = grads.k.as_strided((chunks, 3, size), (size, chunks * size, 1))
        else:
            joined = torch.cat([x.view(chunks, -1, c * x.shape[2]) for x in grads], 1)  # (N, F, c D)
        self._clear(step, joined)
        shape = (heads, batch, n, self.width, c, self.stream.shape[3])
        x = self.room("tokens", *shape).view(chunks, self.width, -1)
        if self.d_queries is not None:
            step.windows(self.d_queries).copy_(joined[:, self.slots].reshape(*step.sizes, -1))
        if self.d_taps is not None:
            self.d_taps[step.heads] += torch.bmm(joined, x.mT).unflatten(0, (heads, -1)).sum(1, dtype=torch.float64)
        if self.d_stream is not None:
            torch.bmm(self._taps(step).mT, joined, out=x)
            self._add_up(step, x.view(shape))

    def _add_up(self, step: Step, d_x: Tensor) -> None:
        """d_x (H, B, n, W, c, D), of the tokens of each window: added where windows overlap, and written."""
        assert self.d_stream is not None
        assert self.halo is not None
        (heads, batch, n, width, c, features), hop = d_x.shape, self.stride
        own, over = n * c * hop, self.halo.shape[2]
        length = own + over
        total = self.room("total", heads, batch, length, features)
        if width < hop:
            total.zero_()
        steps = (batch * length * features, length * features, c * hop * features, hop * features, 1)
        halo = step.state(self.halo)
        total[:, :, own:] = halo
        for a in range(width):
            place = total.as_strided((heads, batch, n, c, features), steps, a * features)
            if a < hop:
                place.copy_(d_x[:, :, :, a])
            else:
                place.add_(d_x[:, :, :, a])
        halo.copy_(total[:, :, :over])
        first = self.start + step.first * hop
        found = self.d_stream[step.batch, first : first + length, step.heads]
        found.copy_(total[:, :, : found.shape[1]].permute(1, 2, 0, 3))  # gaps after the last window may end past the stream


class TokenChunks(torch.autograd.Function):
    """apply(stream, queries or None, taps, logs, z, valid or None, place) -> out, z.

    The arguments are Stream's; logs (H,) or (H, B, K), log Lambda, and z (B, H, D, D), the state before the windows, have the
    dtype of the state. out (B, K, H, D) has the stream's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        queries: Tensor | None,
        taps: Tensor,
        logs: Tensor,
        z: Tensor,
        valid: Tensor | None,
        place: Place,
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        kept: list[Tensor] | None = [] if any(ctx.needs_input_grad) else None
        out = stream.new_empty(stream.shape[0], place[1], *stream.shape[2:])
        chunks = _chunks(Stream(stream, queries, taps, valid, place), logs)
        last = chunks.forward(z.transpose(0, 1), out, kept).transpose(0, 1)
        ctx.place, ctx.made = place, chunks.made
        ctx.save_for_backward(stream, queries, taps, logs, valid, *(kept or ()))
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_z: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of stream, queries, taps, logs and z."""
        stream, queries, taps, logs, valid, *kept = ctx.saved_tensors
        source = Stream(stream, queries, taps, valid, ctx.place)
        source.differentiate(ctx.needs_input_grad[:3])
        d_logs = torch.zeros_like(logs) if ctx.needs_input_grad[3] else None
        chunks = _chunks(source, logs)
        chunks.made = ctx.made
        d_before = chunks.backward(d_out, d_z.transpose(0, 1), kept, d_logs).transpose(0, 1)
        d_taps = None if source.d_taps is None else source.d_taps.to(taps.dtype)
        return source.d_stream, source.d_queries, d_taps, d_logs, d_before, None, None


def _chunks(source: Stream, logs: Tensor) -> Chunks:
    features = source.stream.shape[3]
    return Chunks(source, (features, features, source.count), logs, source.taps.dtype)
