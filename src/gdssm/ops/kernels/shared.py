"""What the kernels share: filters of the stream, products in the operands' precision, and powers of the decay.

Axes in a program: C windows of a chunk, D features (padded to a power of two with masked columns).
Every exponent formed here is <= 0, so nothing overflows however small Lambda is.
"""

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

HEAD = tl.constexpr(1)
ROW = tl.constexpr(2)
INPUT = tl.constexpr(3)

# Counts and flags: Triton is not to compile anew where one is 1 or a multiple of 16, so that what runs is what was compiled.
NUMBERS = [
    *("sequences", "heads", "stream_heads", "stride", "per_segment", "segments", "chunks", "longest", "rows_all", "levels"),
    *("starts", "stores", "ends", "logs", "reverse", "log_wanted", "log_step", "log_head", "log_feature"),
]


@triton.jit
def _probe():
    pass


# Triton's interpreter truncates to bfloat16 where a GPU rounds, and its matrix product takes no bfloat16.
INTERPRETED = tl.constexpr(isinstance(_probe, InterpretedFunction))


@triton.jit
def rounded(x, TO: tl.constexpr):
    """float32 to nearest in TO, ties to even."""
    if INTERPRETED and tl.bfloat16 == TO and x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(TO)


@triton.jit
def nearest_tf32(x):
    """To nearest in TF32, ties away from zero. A product would leave out the last 13 bits, which is wrong to one side."""
    if x.dtype != tl.float32:
        x = x.to(tl.float32)  # half precision is TF32 as it is
    elif INTERPRETED:
        x = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    else:
        bits = tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x.to(tl.int32, bitcast=True)], dtype=tl.int32, is_pure=True, pack=1
        )
        x = bits.to(tl.float32, bitcast=True)
    return x


@triton.jit
def product(a, b, OP: tl.constexpr, IP: tl.constexpr):
    """a @ b summed in float32, with both rounded to OP first; IP: the precision of products where OP is float32."""
    if tl.float32 == OP and IP == "tf32":
        a, b = nearest_tf32(a), nearest_tf32(b)
    if INTERPRETED:
        total = tl.dot(rounded(a, OP).to(tl.float32), rounded(b, OP).to(tl.float32), input_precision="ieee")
    else:
        total = tl.dot(a.to(OP), b.to(OP), input_precision=IP)
    return total


@triton.jit
def field(table, sequences, n, which: tl.constexpr):
    """Entry n of one row of the table of sequences (see launch.Sequences)."""
    return tl.load(table + which * sequences + n)


@triton.jit
def tap(stream, rows, ok, cols, a, step, D: tl.constexpr):
    """Token a of every window, (C, cols) float32; zero where there is no window. stream: where the chunk begins."""
    inside = ok[:, None] & (cols < D)[None, :]
    return tl.load(stream + ((rows * step)[:, None] + cols[None, :] + a * step), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def filtered(stream, taps, rows, ok, cols, step, D: tl.constexpr, W: tl.constexpr):
    """S^T taps of every window. The W tiles overlap: all but the first find their lines in the L1 cache."""
    total = tl.load(taps) * tap(stream, rows, ok, cols, 0, step, D)
    for a in tl.static_range(1, W):
        total += tl.load(taps + a) * tap(stream, rows, ok, cols, a, step, D)
    return total


@triton.jit
def value(stream, v, rows, ok, cols, step, r, D: tl.constexpr, W: tl.constexpr, UNIT: tl.constexpr):
    """S^T v_r; with UNIT v_r is the r-th unit vector, so the value is a token."""
    if UNIT:
        total = tap(stream, rows, ok, cols, r, step, D)
    else:
        total = filtered(stream, v + r * W, rows, ok, cols, step, D, W)
    return total


@triton.jit
def rows_of(base, i, ok, cols, heads, D: tl.constexpr):
    """Rows i of a (rows, H, D) tensor for one head, from where the chunk and the head begin: (C, cols), as stored."""
    inside = ok[:, None] & (cols < D)[None, :]
    return tl.load(base + ((i * (heads * D))[:, None] + cols[None, :]), mask=inside, other=0.0)


@triton.jit
def queries_of(
    stream, d, queries, rows, i, ok, cols, step, heads, D: tl.constexpr, W: tl.constexpr, QUERIES: tl.constexpr, OP: tl.constexpr
):
    """Queries given as a tensor, or formed from the stream; as an operand."""
    if QUERIES:
        q = rounded(rows_of(queries, i, ok, cols, heads, D), OP)
    else:
        q = rounded(filtered(stream, d, rows, ok, cols, step, D, W), OP)
    return q


@triton.jit
def log_sums(log, h, heads, row, n, C: tl.constexpr, KIND: tl.constexpr):
    """log Lambda from a chunk's start to each of its n windows (that window's step included), as a float32 number and
    what it lacks, so that differences of two of them keep their digits. After n windows it stays. Head and input."""
    i = tl.arange(0, C)
    if KIND == INPUT:
        wide = tl.cumsum(tl.load(log + (row + i) * heads + h, mask=i < n, other=0.0).to(tl.float64), 0)
    else:
        g = tl.load(log + h, volatile=True)  # or all lags would be kept in registers from chunk to chunk
        wide = tl.minimum(i + 1, n) * g.to(tl.float64)
    sums = wide.to(tl.float32)
    return sums, (wide - sums.to(tl.float64)).to(tl.float32)


@triton.jit
def decay_powers(log, h, heads, row, n, cols, C: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr):
    """For the n windows of a chunk: Lambda from its start to each (that window's step included), from each to its
    end, and over the whole chunk. (C, 1), (C, 1) and a number; by row (C, D), (C, D) and (D, 1)."""
    i = tl.arange(0, C)
    if KIND == ROW:
        g = tl.load(log + h * D + cols, mask=cols < D, other=0.0)
        begun = tl.exp(tl.minimum(i + 1, n)[:, None] * g[None, :])
        ended = tl.exp(tl.maximum(n - 1 - i, 0)[:, None] * g[None, :])
        total = tl.exp(n * g)[:, None]
    else:
        sums, lack = log_sums(log, h, heads, row, n, C, KIND)
        begun = tl.exp(sums)[:, None]
        last, last_lack = tl.min(sums, 0), tl.sum(tl.where(i == C - 1, lack, 0.0), 0)
        ended = tl.exp(tl.minimum((last - sums) + (last_lack - lack), 0.0))[:, None]
        total = tl.exp(last)
    return begun, ended, total


@triton.jit
def lag_powers(log, h, heads, row, n, C: tl.constexpr, KIND: tl.constexpr):
    """Lambda from window m to window k, (C, C) with rows k; 0 above the diagonal. For one number per head or window."""
    i = tl.arange(0, C)
    causal = i[:, None] >= i[None, :]
    sums, lack = log_sums(log, h, heads, row, n, C, KIND)
    lags = (sums[:, None] - sums[None, :]) + (lack[:, None] - lack[None, :])
    return tl.where(causal, tl.exp(tl.minimum(lags, 0.0)), 0.0)


@triton.jit
def pairs_at(level, C: tl.constexpr):
    """Pairs (k, m) in one block of 2^(level+1) windows with m in its first half and k in its second, (C, C) bool."""
    block = tl.arange(0, C) >> level
    return (block[:, None] == block[None, :] + 1) & (block[None, :] % 2 == 0)


@triton.jit
def row_scores(q, key, log, h, cols, levels, C: tl.constexpr, D: tl.constexpr, OP: tl.constexpr, IP: tl.constexpr):
    """q_k . Lambda^{k-m} key_m with one decay per feature, (C, C) with rows k >= m.

    Pairs are split by the block of 2, 4, 8, .. windows whose halves they lie in. With a reference point
    at the second half's start, k0, Lambda^{k-m} = Lambda^{k-k0} Lambda^{k0-m}: a matrix product with powers <= 1.
    One more product per doubling of C, and no power of a whole chunk is ever divided out.
    """
    i = tl.arange(0, C)
    g = tl.load(log + h * D + cols, mask=cols < D, other=0.0)
    after = q.to(tl.float32)
    scores = tl.where(i[:, None] == i[None, :], tl.sum(after * key, 1)[:, None], 0.0)
    before = key * tl.exp(g)[None, :]
    for level in range(levels):
        scores += tl.where(pairs_at(level, C), product(after, tl.trans(before), OP, IP), 0.0)
        power = tl.exp(g * (1 << level))[None, :]
        second = ((i >> level) & 1 == 1)[:, None]
        after = tl.where(second, after * power, after)
        before = tl.where(second, before, before * power)
    return scores
