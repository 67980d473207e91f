"""Buffers and launches of the forward and backward kernels."""

import contextlib
import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .backward import chunk_kernel, token_kernel
from .forward import carry_kernel, output_kernel, state_kernel


@dataclass(frozen=True)
class Problem:
    """One call: the stream's tensors, and where the sequences' windows lie.

    stream   (tokens, H or 1, D)   tokens of all sequences, one after another
    u, v     (H, R, W)             key and value filters; unit: v_r is the r-th unit vector
    d        (H, W)                query taps, or queries (rows, H, D)
    log      (H,) | (H, D) | (rows, H), float32
    table    (5, N) on the CPU     per sequence: first token, last token + 1, first window's first token, windows,
                                   first output row; None: N equal sequences whose first window starts at token `start`
    longest  windows of the longest sequence; rows: output rows of all
    """

    stream: Tensor
    u: Tensor
    v: Tensor
    d: Tensor
    queries: Tensor | None
    log: Tensor
    table: Tensor | None
    sequences: int
    start: int
    longest: int
    rows: int
    kind: int
    unit: bool
    stride: int

    @property
    def heads(self) -> int:
        return self.u.shape[0]

    @property
    def features(self) -> int:
        return self.stream.shape[2]

    @property
    def operands(self) -> tuple[tl.dtype, str]:
        """What products multiply: bfloat16; float16 as TF32, whose range does not overflow; float32 in three TF32 products."""
        if self.stream.dtype == torch.bfloat16:
            return tl.bfloat16, "tf32"
        return tl.float32, "tf32" if self.stream.dtype == torch.float16 else "tf32x3"

    @property
    def exact(self) -> bool:
        """Whether the tokens are float32, multiplied as three TF32 products."""
        return self.stream.dtype == torch.float32

    @property
    def half(self) -> bool:
        return self.stream.dtype == torch.bfloat16

    @property
    def stored(self) -> torch.dtype:
        """What chunk states and the gradients of queries, keys and values are stored in."""
        return torch.bfloat16 if self.half else torch.float32

    def places(self, chunk: int) -> tuple[Tensor, int]:
        """The table on the device with each sequence's first chunk added, and the number of chunks."""
        if self.table is None:
            span = self.stream.shape[0] // self.sequences
            return _even(self.sequences, span, self.start, self.longest, chunk, self.stream.device)
        chunks = (self.table[3] + chunk - 1) // chunk
        base = chunks.cumsum(0) - chunks
        return torch.cat([self.table, base[None]]).to(self.stream.device), int(chunks.sum())

    def constants(self, tile: tiles.Tiles) -> dict[str, object]:
        """Compile-time arguments that the large kernels share."""
        operand, precision = self.operands
        return {
            "QUERIES": self.queries is not None,
            "KIND": self.kind,
            "RANK": self.u.shape[1],
            "UNIT": self.unit,
            "W": self.u.shape[2],
            "D": self.features,
            "BD": tiles.padded(self.features),
            "C": tile.chunk,
            "BV": tile.columns,
            "OP": operand,
            "IP": precision,
            **tile.options(),
        }

    def strides(self) -> tuple[int, int, int]:
        """Elements from one token to the next, from one head to the next (0: one stream for all), and tokens per window."""
        return self.stream.shape[1] * self.features, self.features if self.stream.shape[1] > 1 else 0, self.stride


@functools.lru_cache(maxsize=64)
def _even(sequences: int, span: int, start: int, count: int, chunk: int, device: torch.device) -> tuple[Tensor, int]:
    n = torch.arange(sequences, dtype=torch.int64)
    chunks = -(-count // chunk)
    rows = [n * span, (n + 1) * span, n * span + start, torch.full_like(n, count), n * count, n * chunks]
    return torch.stack(rows).to(device), sequences * chunks


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@dataclass(frozen=True)
class _Plan:
    """Chunks and segments of one pass."""

    tile: tiles.Tiles
    table: Tensor
    chunks: int
    per_segment: int
    segments: int
    programs: int


def _plan(p: Problem, tile: tiles.Tiles) -> _Plan:
    table, chunks = p.places(tile.chunk)
    each = -(-p.longest // tile.chunk)
    programs = p.sequences * p.heads * tiles.across(p.features, tile)
    per = tiles.segments(programs, each, _processors(p.stream.device))
    segments = -(-each // per)
    return _Plan(tile, table, chunks, per, segments, programs * segments)


def _states(
    p: Problem,
    plan: _Plan,
    right: Tensor | None,
    start: Tensor | None,
    store: Tensor | None,
    end: Tensor | None,
    logs: Tensor | None,
) -> None:
    """state_kernel through all segments: from `start` or zero, chunk states into `store`, last states into `end`."""
    none = p.stream  # stands where a kernel reads no tensor
    wide = start if start is not None else end  # stands for the other, in its dtype
    tile = tiles.states(plan.tile, p.features, p.kind, p.exact)
    constants = p.constants(tile)
    del constants["OP"]
    # Adjoints are the same code whatever the gate, and states whatever the queries.
    constants |= {"RANK": 1, "UNIT": False} if right is not None else {"QUERIES": False}
    programs = p.sequences * p.heads * tiles.across(p.features, tile) * plan.segments
    state_kernel[(programs,)](
        p.stream,
        p.u,
        p.v,
        p.d,
        none if p.queries is None else p.queries,
        none if right is None else right,
        p.log,
        wide if start is None else start,
        none.new_empty(0, dtype=p.stored) if store is None else store,
        wide if end is None else end,
        none.new_empty(0, dtype=torch.float32) if logs is None else logs,
        plan.table,
        p.sequences,
        p.heads,
        *p.strides(),
        plan.per_segment,
        plan.segments,
        plan.chunks,
        *(int(t is not None) for t in (start, store, end, logs)),
        REVERSE=right is not None,
        **constants,
    )


def _segment_starts(p: Problem, plan: _Plan, z: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor]:
    """States at the segments' starts (with `right` the adjoints at their ends), and the one that comes out."""
    size = (p.sequences * p.heads, plan.segments)
    local = torch.empty(*size, p.features**2, dtype=torch.float64, device=z.device)
    logs = torch.empty(size, dtype=torch.float32, device=z.device) if p.kind == tiles.KINDS["input"] else None
    _states(p, plan, right, None, None, local, logs)
    starts, end = torch.empty_like(local), torch.empty_like(z)
    blocks = -(-(p.features**2) // tiles.CARRIED.columns)
    carry_kernel[(p.sequences * p.heads * blocks,)](
        local,
        p.u if logs is None else logs,
        p.log,
        z,
        starts,
        end,
        plan.table,
        p.sequences,
        p.heads,
        plan.segments,
        p.features,
        plan.per_segment * plan.tile.chunk,
        int(right is not None),
        KIND=p.kind,
        BLOCK=tiles.CARRIED.columns,
        **tiles.CARRIED.options(),
    )
    return starts, end


def _chunk_states(p: Problem, plan: _Plan, z: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor]:
    """States at all chunks' starts (H, chunks, D D), with `right` adjoints at their ends; and what comes out."""
    store = torch.empty(p.heads, plan.chunks, p.features**2, dtype=p.stored, device=z.device)
    if plan.segments == 1:
        end = torch.empty_like(z)
        _states(p, plan, right, z, store, end, None)
        return store, end
    starts, end = _segment_starts(p, plan, z, right)
    _states(p, plan, right, starts, store, None, None)
    return store, end


def forward(p: Problem, z: Tensor, covered: bool) -> tuple[Tensor, Tensor]:
    """Outputs (rows, H, D) in the stream's dtype, and the last state (N, H, D, D); z and it in float64."""
    with on_device(p.stream.device):
        plan = _plan(p, tiles.forward(p.features, p.kind, p.half, p.unit))
        new = torch.empty if covered else torch.zeros
        out = new(p.rows, p.heads, p.features, dtype=p.stream.dtype, device=p.stream.device)
        alone = plan.segments == 1
        start, end = (z, torch.empty_like(z)) if alone else _segment_starts(p, plan, z, None)
        output_kernel[(plan.programs,)](
            p.stream,
            p.u,
            p.v,
            p.d,
            p.stream if p.queries is None else p.queries,
            p.log,
            start,
            out,
            end,
            plan.table,
            p.sequences,
            p.heads,
            *p.strides(),
            plan.per_segment,
            plan.segments,
            plan.tile.chunk.bit_length() - 1,
            int(alone),
            **p.constants(plan.tile),
        )
    return out, end


def backward(
    p: Problem, z: Tensor, grad: Tensor, grad_end: Tensor, covered: bool, need_stream: bool, need_log: bool
) -> tuple[Tensor, ...]:
    """Gradients of stream, u, v, d, queries, log and z; an empty tensor where there is none. z and grad_end: float64."""
    with on_device(p.stream.device):
        tile = tiles.backward(p.features, p.kind, p.half, p.unit)
        plan = _plan(p, tiles.states(tile, p.features, p.kind, p.exact))
        states, _ = _chunk_states(p, plan, z, None)
        adjoints, d_z = _chunk_states(p, plan, grad_end, grad)
        d_query, d_roles, d_taps, d_log = _chunk_gradients(p, plan, tile, states, adjoints, grad, covered, need_log)
        d_stream = _token_gradients(p, plan, d_query, d_roles) if need_stream else p.stream.new_empty(0)
    rank = p.u.shape[1]
    taps = d_taps.sum(1)  # (H, 1 + 2 R, W)
    d_v = p.u.new_empty(0) if p.unit else taps[:, 1 + rank :].clone()
    queries = p.u.new_empty(0) if p.queries is None else d_query
    return d_stream, taps[:, 1 : 1 + rank].clone(), d_v, taps[:, 0].clone(), queries, d_log, d_z


def _chunk_gradients(
    p: Problem, plan: _Plan, tile: tiles.Tiles, states: Tensor, adjoints: Tensor, grad: Tensor, covered: bool, need_log: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rank, width = p.u.shape[1:]
    device, shape = p.stream.device, (p.rows, p.heads, p.features)
    new = torch.empty if covered else torch.zeros
    own = p.stored if p.queries is None else p.queries.dtype
    d_query = new(shape, dtype=own, device=device)
    d_roles = torch.empty(2 * rank, *shape, dtype=p.stored, device=device)
    across = tiles.across(p.features, tile)
    parts = plan.chunks * across
    d_taps = torch.zeros(p.heads, parts, 1 + 2 * rank, width, dtype=torch.float32, device=device)
    sizes = {"head": (p.heads, parts), "row": (p.heads, plan.chunks, p.features), "input": (across, p.rows, p.heads)}
    size = next(size for name, size in sizes.items() if tiles.KINDS[name] == p.kind)
    d_log = new(size if need_log else (0,), dtype=torch.float32, device=device)
    longest = -(-p.longest // tile.chunk)
    chunk_kernel[(p.sequences * p.heads * longest * across,)](
        p.stream,
        p.u,
        p.v,
        p.d,
        p.stream if p.queries is None else p.queries,
        grad,
        p.log,
        states,
        adjoints,
        plan.table,
        d_query,
        d_roles,
        d_taps,
        d_log,
        p.sequences,
        p.heads,
        *p.strides(),
        longest,
        plan.chunks,
        p.rows,
        p.rows * p.heads * p.features,
        tile.chunk.bit_length() - 1,
        int(need_log),
        WP=triton.next_power_of_2(width),
        **p.constants(tile),
    )
    if need_log:
        d_log = d_log.sum(0 if p.kind == tiles.KINDS["input"] else 1)
    return d_query, d_roles, d_taps, d_log


def _token_gradients(p: Problem, plan: _Plan, d_query: Tensor, d_roles: Tensor) -> Tensor:
    d_stream = torch.empty_like(p.stream)
    tile = tiles.tokens(p.features, p.unit)
    span = p.stream.shape[0] // p.sequences if p.table is None else int((p.table[1] - p.table[0]).max())
    longest = -(-span // tile.chunk)
    token_kernel[(p.sequences * p.stream.shape[1] * longest,)](
        d_query,
        d_roles,
        p.u,
        p.v,
        p.d,
        plan.table,
        d_stream,
        p.sequences,
        p.heads,
        p.stream.shape[1],
        longest,
        p.rows * p.heads * p.features,
        QUERIES=p.queries is not None,
        RANK=p.u.shape[1],
        UNIT=p.unit,
        W=p.u.shape[2],
        STRIDE=p.stride,
        D=p.features,
        BD=tiles.padded(p.features),
        CT=tile.chunk,
        **tile.options(),
    )
    return d_stream
