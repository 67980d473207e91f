"""Forward kernels: states at segment and chunk starts, and outputs.

A sequence is cut into chunks of C windows and segments of several chunks. One program takes one segment of one head of
one sequence and BV columns of Z, and goes through the segment's chunks with Z in registers:

    out_k = Lambda^{k-k0+1} Z^T q_k + sum_{m <= k} sum_r (q_k . Lambda^{k-m} key_{m,r}) value_{m,r}
    Z     = Lambda^n Z + sum_m sum_r Lambda^{end-m} key_{m,r} value_{m,r}^T

With one segment per sequence that is all: the stream is read once and the outputs are written once. Where batch and
heads are too few to fill the device, `state_kernel` first forms what each segment adds, and `carry_kernel` chains these.
"""

import triton
import triton.language as tl

from .shared import (
    HEAD,
    INPUT,
    NUMBERS,
    ROW,
    decay_powers,
    field,
    filtered,
    lag_powers,
    product,
    queries_of,
    rounded,
    row_scores,
    rows_of,
    value,
)


@triton.jit(do_not_specialize=NUMBERS)
def state_kernel(
    stream,
    u,
    v,
    d,
    queries,
    right,
    log,
    start,
    chunk_states,
    end,
    segment_log,
    table,
    sequences,
    heads,
    step,
    head_step,
    stride,
    per_segment,
    segments,
    chunks,
    starts,
    stores,
    ends,
    logs,
    REVERSE: tl.constexpr,
    QUERIES: tl.constexpr,
    KIND: tl.constexpr,
    RANK: tl.constexpr,
    UNIT: tl.constexpr,
    W: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    C: tl.constexpr,
    BV: tl.constexpr,
    IP: tl.constexpr,
):
    """Z through a segment; REVERSE: the adjoint of Z, from the segment's end to its start, with keys q and values `right`.

    Where starts, the state to begin with is read; where stores, the state at each chunk's start (REVERSE: end) is written;
    where ends, the last one; where logs, the logarithm of an input-dependent decay over the segment.
    """
    tiles: tl.constexpr = (D + BV - 1) // BV
    pid = tl.program_id(0)
    segment = (pid // tiles) % segments
    nh = pid // (tiles * segments)
    n, h = nh // heads, nh % heads
    first, count = field(table, sequences, n, 2), field(table, sequences, n, 3).to(tl.int32)
    out_row, chunk_base = field(table, sequences, n, 4), field(table, sequences, n, 5)
    stream += h * head_step
    u += h * RANK * W
    v += h * RANK * W
    d += h * W
    i = tl.arange(0, C)
    rows = i * stride
    cols = tl.arange(0, BD)
    cols_v = (pid % tiles) * BV + tl.arange(0, BV)
    square = cols[:, None] * D + cols_v[None, :]
    inside = (cols < D)[:, None] & (cols_v < D)[None, :]
    place = (nh * segments + segment).to(tl.int64) * D * D
    known = (cols < D * starts)[:, None] & (cols_v < D)[None, :]
    z = tl.load(start + place + square, mask=known, other=0.0).to(tl.float32)
    whole = 0.0
    begin = segment * per_segment
    stop = tl.minimum(begin + per_segment, tl.cdiv(count, C))
    for step_at in range(begin, stop):
        c = begin + stop - 1 - step_at if REVERSE else step_at
        left = tl.minimum(count - c * C, C)
        ok = i < left
        s = stream + (first + c * C * stride) * step
        line = ((out_row + c * C) * heads + h) * D
        if stores != 0:
            there = chunk_states + (h.to(tl.int64) * chunks + chunk_base + c) * D * D + square
            tl.store(there, rounded(z, chunk_states.dtype.element_ty), mask=inside)
        begun, ended, total = decay_powers(log, h, heads, out_row + c * C, left, cols, C, D, KIND)
        z = z * total
        if REVERSE:
            q = queries_of(s, d, queries + line, rows, i, ok, cols, step, heads, D, W, QUERIES, tl.float32)
            z += product(tl.trans(q * begun), rows_of(right + line, i, ok, cols_v, heads, D), tl.float32, IP)
        else:
            for r in range(RANK):
                key = filtered(s, u + r * W, rows, ok, cols, step, D, W)
                val = value(s, v, rows, ok, cols_v, step, r, D, W, UNIT)
                z += product(tl.trans(key * ended), val, tl.float32, IP)
        if KIND == INPUT:
            whole += tl.sum(tl.load(log + (out_row + c * C + i) * heads + h, mask=ok, other=0.0), 0)
    if ends != 0:
        tl.store(end + place + square, z.to(tl.float64), mask=inside)
    if KIND == INPUT and (logs != 0 and pid % tiles == 0):
        tl.store(segment_log + nh * segments + segment, whole)


@triton.jit(do_not_specialize=[*NUMBERS, "features", "windows"])
def carry_kernel(
    local,
    segment_log,
    log,
    start,
    segment_starts,
    end,
    table,
    sequences,
    heads,
    segments,
    features,
    windows,
    reverse,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Chain the segments' own states (N H, segments, D D) in float64: the state at each one's start, and the last.

    A segment is `windows` windows. reverse: adjoints, from the last segment to the first.
    """
    size = features * features
    blocks = tl.cdiv(size, BLOCK)
    pid = tl.program_id(0)
    nh = pid // blocks
    n, h = nh // heads, nh % heads
    count = field(table, sequences, n, 3).to(tl.int32)
    at = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    z = tl.load(start + nh.to(tl.int64) * size + at, mask=inside, other=0.0)
    if KIND == ROW:
        g = tl.load(log + h * features + at // features, mask=inside, other=0.0).to(tl.float64)
    elif KIND == HEAD:
        g = tl.load(log + h).to(tl.float64)
    for step_at in range(0, segments):
        s = tl.where(reverse != 0, segments - 1 - step_at, step_at)
        place = (nh * segments + s).to(tl.int64) * size + at
        tl.store(segment_starts + place, z, mask=inside)
        if KIND == INPUT:
            z = z * tl.exp(tl.load(segment_log + nh * segments + s).to(tl.float64))
        else:
            z = z * tl.exp(tl.minimum(tl.maximum(count - s * windows, 0), windows) * g)
        z += tl.load(local + place, mask=inside, other=0.0)
    tl.store(end + nh.to(tl.int64) * size + at, z, mask=inside)


@triton.jit(do_not_specialize=NUMBERS)
def output_kernel(
    stream,
    u,
    v,
    d,
    queries,
    log,
    start,
    out,
    end,
    table,
    sequences,
    heads,
    step,
    head_step,
    stride,
    per_segment,
    segments,
    levels,
    ends,
    QUERIES: tl.constexpr,
    KIND: tl.constexpr,
    RANK: tl.constexpr,
    UNIT: tl.constexpr,
    W: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    C: tl.constexpr,
    BV: tl.constexpr,
    OP: tl.constexpr,
    IP: tl.constexpr,
):
    """Outputs of a segment from the state at its start; where ends, the state after it is written (one segment per sequence)."""
    IN_PARTS: tl.constexpr = KIND == ROW or (BD > 64 and tl.float32 == OP)
    tiles: tl.constexpr = (D + BV - 1) // BV
    pid = tl.program_id(0)
    segment = (pid // tiles) % segments
    nh = pid // (tiles * segments)
    n, h = nh // heads, nh % heads
    first, count = field(table, sequences, n, 2), field(table, sequences, n, 3).to(tl.int32)
    out_row = field(table, sequences, n, 4)
    stream += h * head_step
    u += h * RANK * W
    v += h * RANK * W
    d += h * W
    i = tl.arange(0, C)
    rows = i * stride
    cols = tl.arange(0, BD)
    cols_v = (pid % tiles) * BV + tl.arange(0, BV)
    square = cols[:, None] * D + cols_v[None, :]
    inside = (cols < D)[:, None] & (cols_v < D)[None, :]
    place = (nh * segments + segment).to(tl.int64) * D * D
    z = tl.load(start + place + square, mask=inside, other=0.0).to(tl.float32)
    begin = segment * per_segment
    for c in range(begin, tl.minimum(begin + per_segment, tl.cdiv(count, C))):
        left = tl.minimum(count - c * C, C)
        ok = i < left
        s = stream + (first + c * C * stride) * step
        line = ((out_row + c * C) * heads + h) * D
        begun, ended, total = decay_powers(log, h, heads, out_row + c * C, left, cols, C, D, KIND)
        q = queries_of(s, d, queries + line, rows, i, ok, cols, step, heads, D, W, QUERIES, OP)
        if KIND == ROW:
            o = product(q * begun, z, OP, IP)
        else:
            o = product(q, z, OP, IP) * begun
        z = z * total
        for r in range(RANK):
            key = rounded(filtered(s, u + r * W, rows, ok, cols, step, D, W), OP)
            val = rounded(value(s, v, rows, ok, cols_v, step, r, D, W, UNIT), OP)
            if IN_PARTS:  # few features at a time, so that fewer registers hold query and key
                scores = tl.zeros([C, C], tl.float32)
                for f in range(0, D, 16):
                    few = f + tl.arange(0, 16)
                    some_q = queries_of(s, d, queries + line, rows, i, ok, few, step, heads, D, W, QUERIES, OP)
                    some_key = filtered(s, u + r * W, rows, ok, few, step, D, W)
                    if KIND == ROW:
                        scores += row_scores(some_q, some_key, log, h, few, levels, C, D, OP, IP)
                    else:
                        scores += product(some_q, tl.trans(some_key), OP, IP)
            else:
                scores = product(q, tl.trans(key), OP, IP)
            if KIND != ROW:
                scores *= lag_powers(log, h, heads, out_row + c * C, left, C, KIND)
            o += product(scores, val, OP, IP)
            z += product(tl.trans(key * ended), val, OP, IP)
        there = out + line + ((i * (heads * D))[:, None] + cols_v[None, :])
        tl.store(there, rounded(o, out.dtype.element_ty), mask=ok[:, None] & (cols_v < D)[None, :])
    if ends != 0:
        tl.store(end + place + square, z.to(tl.float64), mask=inside)
