"""Backward kernels. Nothing of the forward pass is kept but its inputs: states at chunk starts are formed again.

`state_kernel` (forward.py) writes Z at every chunk's start and, in reverse, its adjoint dZ at every chunk's end. Then all
chunks are independent. With S_{k,m} = q_k . Lambda^{k-m} key_m and A_{k,m} = (g_k . value_m) Lambda^{k-m}, m <= k, for the
outputs' gradient g:

    dq_k     = sum_m A_{k,m} key_m + Lambda^{k-k0+1} Z g_k
    dkey_m   = sum_k A_{k,m} q_k + Lambda^{end-m} dZ value_m
    dvalue_m = sum_k S_{k,m} g_k + dZ^T Lambda^{end-m} key_m

The gradient of log Lambda at step t is what flows over it: pairs m < t <= k, what came in with Z, what leaves to dZ, and
Z . dZ across the whole chunk. All are sums of own terms. The usual shorter form, a running sum of q . dq - key . dkey
over the whole sequence, is a difference of two long sums, which half precision does not survive.

No atomics: a window's gradients of query, keys and values are written by the one program that has its chunk, sums over
windows go to one place per chunk and are added by torch, and `token_kernel` gathers for each token the W windows it is in.
"""

import triton
import triton.language as tl

from .shared import (
    HEAD,
    NUMBERS,
    ROW,
    decay_powers,
    field,
    filtered,
    lag_powers,
    pairs_at,
    product,
    queries_of,
    rounded,
    row_scores,
    rows_of,
    tap,
    value,
)


@triton.jit
def tap_products(stream, grad, rows, ok, cols, step, D: tl.constexpr, W: tl.constexpr, WP: tl.constexpr):
    """sum over windows and features of grad * token a, for each tap a: (WP,)."""
    at = tl.arange(0, WP)
    total = tl.zeros([WP], tl.float32)
    for a in tl.static_range(W):
        total += tl.where(at == a, tl.sum(tl.sum(grad * tap(stream, rows, ok, cols, a, step, D), 1), 0), 0.0)
    return total


@triton.jit
def sums_from(x, C: tl.constexpr):
    """sum of x_k over k >= t, for every t."""
    i = tl.arange(0, C)
    return tl.sum(tl.where(i[None, :] >= i[:, None], x[None, :], 0.0), 1)


@triton.jit
def sums_before(x, C: tl.constexpr):
    """sum of x_m over m < t, for every t."""
    i = tl.arange(0, C)
    return tl.sum(tl.where(i[None, :] < i[:, None], x[None, :], 0.0), 1)


@triton.jit
def row_gradients(pull, q, key, log, h, cols, levels, C: tl.constexpr, D: tl.constexpr, OP: tl.constexpr, IP: tl.constexpr):
    """Gradients of q, key and log Lambda (D,) through row_scores, for pull_{k,m} = g_k . value_m."""
    i = tl.arange(0, C)
    g = tl.load(log + h * D + cols, mask=cols < D, other=0.0)
    own = tl.sum(tl.where(i[:, None] == i[None, :], pull, 0.0), 1)[:, None]
    d_q = own * key
    d_key = own * q
    d_log = tl.zeros_like(g)
    after = tl.full(q.shape, 1.0, tl.float32)
    before = after * tl.exp(g)[None, :]
    for level in range(levels):
        part = tl.where(pairs_at(level, C), pull, 0.0)
        to_q = product(part, key * before, OP, IP) * after
        d_q += to_q
        d_log += tl.sum((i % (1 << level))[:, None] * q * to_q, 0)
        to_key = product(tl.trans(part), q * after, OP, IP) * before
        d_key += to_key
        d_log += tl.sum(((1 << level) - i % (1 << level))[:, None] * key * to_key, 0)
        power = tl.exp(g * (1 << level))[None, :]
        second = ((i >> level) & 1 == 1)[:, None]
        after = tl.where(second, after * power, after)
        before = tl.where(second, before, before * power)
    return d_q, d_key, d_log


@triton.jit(do_not_specialize=NUMBERS)
def chunk_kernel(
    stream,
    u,
    v,
    d,
    queries,
    grad,
    log,
    states,
    adjoints,
    table,
    d_query,
    d_roles,
    d_taps,
    d_log,
    sequences,
    heads,
    step,
    head_step,
    stride,
    longest,
    chunks,
    rows_all,
    role_step,
    levels,
    log_wanted,
    QUERIES: tl.constexpr,
    KIND: tl.constexpr,
    RANK: tl.constexpr,
    UNIT: tl.constexpr,
    W: tl.constexpr,
    WP: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    C: tl.constexpr,
    BV: tl.constexpr,
    OP: tl.constexpr,
    IP: tl.constexpr,
):
    """Gradients of one chunk of one head, in BV columns of its queries, keys and values.

    d_query (rows, H, D); d_roles (2 RANK, rows, H, D), keys before values; d_taps (H, chunks, tiles, 1 + 2 RANK, W), sums
    over the chunk and the columns; d_log (H, chunks, tiles) head, (H, chunks, D) row, (tiles, rows, H) input, where log_wanted.
    """
    tiles: tl.constexpr = (D + BV - 1) // BV
    pid = tl.program_id(0)
    part = pid % tiles
    c = (pid // tiles) % longest
    nh = pid // (tiles * longest)
    n, h = nh // heads, nh % heads
    first, count = field(table, sequences, n, 2), field(table, sequences, n, 3).to(tl.int32)
    out_row, chunk = field(table, sequences, n, 4), field(table, sequences, n, 5) + c
    if c * C >= count:
        return
    stream += h * head_step + (first + c * C * stride) * step
    d += h * W
    u += h * RANK * W
    v += h * RANK * W
    i = tl.arange(0, C)
    cols = part * BV + tl.arange(0, BV)
    real = cols < D
    left = tl.minimum(count - c * C, C)
    ok = i < left
    rows = i * stride
    line = ((out_row + c * C) * heads + h) * D
    there = (i * (heads * D))[:, None] + cols[None, :]
    grad += line
    queries += line
    d_query += line
    d_roles += line
    own = ok[:, None] & real[None, :]
    square = (h.to(tl.int64) * chunks + chunk) * D * D
    place = h.to(tl.int64) * (chunks * tiles) + chunk * tiles + part
    far = tl.full([], 0, tl.int64) + role_step
    taps_at = d_taps + place * ((1 + 2 * RANK) * W) + tl.arange(0, WP)
    tap_ok = tl.arange(0, WP) < W
    begun, ended, total = decay_powers(log, h, heads, out_row + c * C, left, cols, C, D, KIND)
    q = queries_of(stream, d, queries, rows, i, ok, cols, step, heads, D, W, QUERIES, tl.float32)

    d_q = tl.zeros([C, BV], tl.float32)
    across = tl.zeros([BV], tl.float32)
    for j in range(0, D, BV):
        others = j + tl.arange(0, BV)
        at = square + cols[:, None] * D + others[None, :]
        inside = real[:, None] & (others < D)[None, :]
        state = tl.load(states + at, mask=inside, other=0.0)
        d_q += product(rows_of(grad, i, ok, others, heads, D), tl.trans(state), OP, IP)
        wanted = real[:, None] & (others < D * log_wanted)[None, :]
        across += tl.sum(state.to(tl.float32) * tl.load(adjoints + at, mask=wanted, other=0.0).to(tl.float32), 1)
    d_q = d_q * begun
    log_rows = tl.zeros([BV], tl.float32)
    log_ends = tl.zeros([C], tl.float32)
    if KIND == ROW:
        log_rows += tl.sum((i + 1)[:, None] * q * d_q, 0) + left * tl.sum(total, 1) * across
    else:
        log_ends += sums_from(tl.sum(q * d_q, 1), C) + total * tl.sum(across, 0)

    for r in range(RANK):
        scores = tl.zeros([C, C], tl.float32)
        d_val = tl.zeros([C, BV], tl.float32)
        for j in range(0, D, BV):
            others = j + tl.arange(0, BV)
            inside = (others < D)[:, None] & real[None, :]
            other_q = queries_of(stream, d, queries, rows, i, ok, others, step, heads, D, W, QUERIES, tl.float32)
            other_key = filtered(stream, u + r * W, rows, ok, others, step, D, W)
            if KIND == ROW:
                scores += row_scores(other_q, other_key, log, h, others, levels, C, D, tl.float32, IP)
                _, until, _ = decay_powers(log, h, heads, out_row + c * C, left, others, C, D, KIND)
                weighted = other_key * until
            else:
                scores += product(other_q, tl.trans(other_key), tl.float32, IP)
                weighted = other_key * ended
            adjoint = tl.load(adjoints + square + others[:, None] * D + cols[None, :], mask=inside, other=0.0)
            d_val += product(weighted, adjoint, OP, IP)
        if KIND != ROW:
            scores = scores * lag_powers(log, h, heads, out_row + c * C, left, C, KIND)
        d_val += product(tl.trans(scores), rows_of(grad, i, ok, cols, heads, D), tl.float32, IP)
        tl.store(d_roles + (RANK + r) * far + there, rounded(d_val, d_roles.dtype.element_ty), mask=own)
        if not UNIT:
            tl.store(taps_at + (1 + RANK + r) * W, tap_products(stream, d_val, rows, ok, cols, step, D, W, WP), mask=tap_ok)

        pull = tl.zeros([C, C], tl.float32)
        d_key = tl.zeros([C, BV], tl.float32)
        for j in range(0, D, BV):
            others = j + tl.arange(0, BV)
            inside = real[:, None] & (others < D)[None, :]
            val = value(stream, v, rows, ok, others, step, r, D, W, UNIT)
            adjoint = tl.load(adjoints + square + cols[:, None] * D + others[None, :], mask=inside, other=0.0)
            pull += product(rows_of(grad, i, ok, others, heads, D), tl.trans(val), tl.float32, IP)
            d_key += product(val, tl.trans(adjoint), OP, IP)

        # Formed again: kept from above, they would be in registers through both loops.
        if KIND == ROW:
            _, ended, _ = decay_powers(log, h, heads, out_row + c * C, left, cols, C, D, KIND)
        d_key = d_key * ended
        key = filtered(stream, u + r * W, rows, ok, cols, step, D, W)
        q = queries_of(stream, d, queries, rows, i, ok, cols, step, heads, D, W, QUERIES, tl.float32)
        if KIND == ROW:
            log_rows += tl.sum((left - 1 - i)[:, None] * key * d_key, 0)
            to_q, to_key, to_log = row_gradients(pull, q, key, log, h, cols, levels, C, D, tl.float32, IP)
            d_q += to_q
            d_key += to_key
            log_rows += to_log
        else:
            log_ends += sums_before(tl.sum(key * d_key, 1), C)
            flow = tl.where((i[:, None] > i[None, :]) & (part == 0), scores * pull, 0.0)
            log_ends += sums_from(tl.sum(flow, 1) - tl.sum(flow, 0), C)  # over t go the pairs with m < t <= k
            pull = pull * lag_powers(log, h, heads, out_row + c * C, left, C, KIND)
            d_q += product(pull, key, tl.float32, IP)
            d_key += product(tl.trans(pull), q, tl.float32, IP)
        tl.store(d_roles + r * far + there, rounded(d_key, d_roles.dtype.element_ty), mask=own)
        tl.store(taps_at + (1 + r) * W, tap_products(stream, d_key, rows, ok, cols, step, D, W, WP), mask=tap_ok)

    tl.store(d_query + there, rounded(d_q, d_query.dtype.element_ty), mask=own)
    if not QUERIES:
        tl.store(taps_at, tap_products(stream, d_q, rows, ok, cols, step, D, W, WP), mask=tap_ok)
    if log_wanted != 0:
        if KIND == ROW:
            tl.store(d_log + (h.to(tl.int64) * chunks + chunk) * D + cols, log_rows, mask=real)
        elif KIND == HEAD:
            tl.store(d_log + place, tl.sum(tl.where(ok, log_ends, 0.0), 0))
        else:
            behind = part * (tl.full([], 0, tl.int64) + rows_all)
            tl.store(d_log + (behind + out_row + c * C + i) * heads + h, log_ends, mask=ok)


@triton.jit
def window_gradient(roles, past, count, before, cols, heads, D: tl.constexpr, STRIDE: tl.constexpr):
    """A role's gradient at the windows that begin `past` tokens after the first; zero where none does.

    roles: where window `before` begins, so that offsets from there fit in 32 bits.
    """
    k = past // STRIDE
    ok = (past >= 0) & (past % STRIDE == 0) & (k < count)
    return rows_of(roles, k - before, ok, cols, heads, D).to(tl.float32)


@triton.jit
def role_gradient(roles, taps, past, count, before, cols, heads, W: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr):
    """sum over taps a of taps[a] times the role's gradient at the window whose token a this token is."""
    total = tl.load(taps) * window_gradient(roles, past, count, before, cols, heads, D, STRIDE)
    for a in tl.static_range(1, W):
        total += tl.load(taps + a) * window_gradient(roles, past - a, count, before, cols, heads, D, STRIDE)
    return total


@triton.jit(do_not_specialize=NUMBERS)
def token_kernel(
    d_query,
    d_roles,
    u,
    v,
    d,
    table,
    d_stream,
    sequences,
    heads,
    stream_heads,
    longest,
    role_step,
    QUERIES: tl.constexpr,
    RANK: tl.constexpr,
    UNIT: tl.constexpr,
    W: tl.constexpr,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    CT: tl.constexpr,
):
    """Gradient of CT tokens of a sequence: each gathers the W windows it is in; a shared stream sums over heads."""
    pid = tl.program_id(0)
    tile = pid % longest
    sh = pid // longest
    n, stream_head = sh // stream_heads, sh % stream_heads
    begin, stop = field(table, sequences, n, 0), field(table, sequences, n, 1)
    first, count = field(table, sequences, n, 2), field(table, sequences, n, 3).to(tl.int32)
    out_row = field(table, sequences, n, 4)
    at = tile * CT
    if begin + at >= stop:
        return
    i = tl.arange(0, CT)
    past = at + i - (first - begin).to(tl.int32)
    before = at // STRIDE
    cols = tl.arange(0, BD)
    far = tl.full([], 0, tl.int64) + role_step
    line = (out_row + before) * heads * D
    total = tl.zeros([CT, BD], tl.float32)
    per = heads // stream_heads
    for h in range(stream_head * per, stream_head * per + per):
        here = line + h * D
        if not QUERIES:
            total += role_gradient(d_query + here, d + h * W, past, count, before, cols, heads, W, D, STRIDE)
        for r in range(RANK):
            at_taps = (h * RANK + r) * W
            keys, values = d_roles + r * far + here, d_roles + (RANK + r) * far + here
            total += role_gradient(keys, u + at_taps, past, count, before, cols, heads, W, D, STRIDE)
            if UNIT:
                total += window_gradient(values, past - r, count, before, cols, heads, D, STRIDE)
            else:
                total += role_gradient(values, v + at_taps, past, count, before, cols, heads, W, D, STRIDE)
    there = d_stream + ((begin + at) * stream_heads + stream_head) * D + ((i * (stream_heads * D))[:, None] + cols[None, :])
    tl.store(there, rounded(total, d_stream.dtype.element_ty), mask=(i < stop - begin - at)[:, None] & (cols < D)[None, :])
