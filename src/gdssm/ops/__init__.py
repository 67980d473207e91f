"""gd_scan: the recurrence with a windowed input gate and a multiplicative readout, one signature for all backends.

    S_k = (s_{kR}, .., s_{kR+W-1})       window k of the stream
    M_k = S_k^T w_q S_k                  input gate
    Z_k = Lambda * Z_{k-1} + M_k         diagonal recurrence (elementwise)
    out_k = Z_k^T q_k,  q_k = S_k^T d    multiplicative readout (arXiv 2410.11687, without the matrix C)

Axes: B batch, T tokens, K windows, W window width, R stride, H heads, D features.
A new backend is a file with a function `scan`, and one line in BACKENDS. The Triton kernels are no such file: they read
the stream as it is stored, so they come before the windows of the others are formed.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from . import chunked, decay, packing, reference
from .filters import causal_filters
from .kernels.support import MISSING, refusal
from .last import (
    absorb,
    check_ends,
    final_window,
    last_counts,
    last_output,
    last_output_and_pullback,
    last_product,
    last_window,
    next_count,
    next_windows,
)
from .linear import linear_scan
from .windows import Gate, ScanState, Windows, align, carry_dtype, compute_dtype, filtered, full_precision, windows_in, zero_state

__all__ = [
    "BACKENDS",
    "Gate",
    "ScanState",
    "Windows",
    "absorb",
    "align",
    "carry_dtype",
    "causal_filters",
    "check_ends",
    "compute_dtype",
    "filtered",
    "final_window",
    "full_precision",
    "gd_scan",
    "last_counts",
    "last_output",
    "last_output_and_pullback",
    "last_product",
    "last_window",
    "linear_scan",
    "next_count",
    "next_windows",
    "resolve_backend",
    "windows_in",
    "zero_state",
]

Scan = Callable[[Windows, Gate, decay.Decay, Tensor, Tensor], tuple[Tensor, Tensor]]
BACKENDS: dict[str, Scan] = {"reference": reference.scan, "chunked": chunked.scan}


KERNELS = "triton"


def resolve_backend(backend: str, refused: str | None = "not asked for") -> str:
    """The one place where a backend is chosen: its name. refused: why the kernels do not take the arguments, None: they do.

    "auto" is the kernels where they take the arguments, else "chunked". Raises ValueError for a name that is not known, and
    for "triton" where it is refused with a reason (ImportError where Triton is missing).
    """
    if backend == "auto":
        return KERNELS if refused is None else "chunked"
    if backend not in (*BACKENDS, KERNELS):
        raise ValueError(f"backend is {backend!r}; allowed: auto, {', '.join(BACKENDS)}, {KERNELS}")
    return backend


def _choose(backend: str, tokens: Tensor, w_q: Gate, log_decay: Tensor | None, dtype: torch.dtype, structure: str | None) -> str:
    """The backend for these arguments."""
    if backend != KERNELS and (backend != "auto" or tokens.device.type != "cuda"):
        return resolve_backend(backend)
    heads, width = _checked_gate(w_q)
    if structure is None and log_decay is not None and log_decay.shape == (heads, tokens.shape[3], tokens.shape[3]):
        structure = "full"
    refused = refusal(tokens, dtype, width, structure)
    if backend == KERNELS and refused is not None:
        raise ImportError(refused) if refused == MISSING else ValueError(refused)
    return resolve_backend(backend, refused)


@full_precision
def gd_scan(
    tokens: Tensor,
    w_q: Gate,
    log_decay: Tensor | None,
    d: Tensor | None,
    *,
    stride: int = 1,
    state: ScanState | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
    queries: Tensor | None = None,
    structure: str | None = None,
) -> tuple[Tensor, ScanState]:
    """Scan a stream of tokens: outputs for every window that ends in it, and the state to go on with.

    tokens     (B, T, H, D), floating point; (B, T, 1, D) is one stream read by all heads
    w_q        (H, W, W)    input gate; or its factors, a tuple of two (H, W) tensors (u, v), for w_q = u v^T,
               which is W times cheaper: one key S^T u and one value S^T v per window
    log_decay  log Lambda <= 0: None | (H,) | (H, D) | (H, D, D) | (B, K, H); row i of Z is (H, D)'s index i
    d          (H, W)       query taps; None with `queries`
    queries    (B, K, H, D) queries to use instead of S_k^T d
    structure  one of none, head, row, full, input: only needed where log_decay's shape fits two of them
    lengths    (B,) right padding: tokens past a length are not read, outputs there are zero,
               and each sequence's state is the one at its own end
    cu_seqlens (N + 1,) integers: tokens (1, T, H, D) hold N sequences one after another, sequence n from
               cu_seqlens[n] to cu_seqlens[n + 1]; each starts from its own state. out is then (1, sum of K_n, H, D),
               and so are queries and an input-dependent log_decay (1, sum of K_n, H); the state's batch is N
    state      what an earlier call returned; None starts at Z = 0
    backend    "reference", "chunked" (plain torch), "triton" (GPU kernels, decay none, head, row or input, D <= 128), or
               "auto": the kernels for CUDA tensors where they take the arguments, else "chunked"

    Returns out (B, K, H, D) in the tokens' dtype and the ScanState. K = 0 where no window ends in the tokens.
    Half-precision tokens are accumulated in float32; Z is carried in float64 from call to call. The kernels keep Z in
    float32 within a call, and multiply bfloat16 tokens in bfloat16 and TF32; one token that nobody differentiates is one launch, in
    which Z keeps the dtype it has. The sign of log_decay is checked on the CPU only, where the check costs no
    synchronisation.

    Raises ValueError for shapes that do not fit, a positive log_decay, lengths or cu_seqlens out of range, an unknown
    backend, arguments that backend "triton" does not take, and sequences whose strides are out of phase; TypeError for
    tokens that are not floating point; ImportError for backend "triton" without Triton.
    """
    resolve_backend(backend)
    begins = None
    if cu_seqlens is not None and tokens.ndim == 4:
        begins = packing.check_cu_seqlens(cu_seqlens, tokens.shape[0], tokens.shape[1], lengths)
    _check_shapes(tokens, w_q, d, stride, state, queries, tokens.shape[0] if begins is None else len(begins) - 1)
    factors = w_q if isinstance(w_q, tuple) else (w_q,)
    dtype = compute_dtype(tokens, *factors, d, queries)
    chosen = _choose(backend, tokens, w_q, log_decay, dtype, structure)
    if begins is None:
        return _scan(tokens, w_q, log_decay, d, stride, state, lengths, chosen, queries, structure)
    return _packed_scan(tokens, w_q, log_decay, d, stride, state, begins, chosen, queries, structure)


def _scan(
    tokens: Tensor,
    w_q: Gate,
    log_decay: Tensor | None,
    d: Tensor | None,
    stride: int,
    state: ScanState | None,
    lengths: Tensor | None,
    chosen: str,
    queries: Tensor | None,
    structure: str | None,
) -> tuple[Tensor, ScanState]:
    factors = w_q if isinstance(w_q, tuple) else (w_q,)
    heads, width = factors[0].shape[:2]
    batch, features = tokens.shape[0], tokens.shape[3]
    dtype = compute_dtype(tokens, *factors, d, queries)
    gate = (w_q[0].to(dtype), w_q[1].to(dtype)) if isinstance(w_q, tuple) else w_q.to(dtype)
    if chosen == KERNELS:
        from .kernels import scan as kernels

        if lengths is None and kernels.is_step(tokens, state, width, stride, log_decay, d, queries, *factors):
            assert state is not None
            _check_queries(queries, (batch, 1, heads, features))
            structure = _checked_structure(log_decay, structure, (batch, 1, heads, features))
            return kernels.step(tokens, w_q, log_decay, structure, d, queries, state)
        windows = kernels.place(tokens, heads, width, stride, state, lengths)
    else:
        stream = tokens if state is None and lengths is None else tokens.to(dtype)  # else it is copied in any case
        windows = align(stream.expand(-1, -1, heads, -1), width, stride, state, lengths)
    wanted = (batch, windows.count, heads, features)
    _check_queries(queries, wanted)
    lam = decay.make(log_decay, _checked_structure(log_decay, structure, wanted), tokens.device)
    z = _start(tokens, batch, heads, state)
    if chosen == KERNELS:
        out, z = kernels.scan(windows, gate, lam, d, queries, z)
        return out, ScanState(z, kernels.tail(windows, heads), windows.seen())
    asked = d if queries is None else queries
    assert asked is not None
    out, z = BACKENDS[chosen](windows, gate, lam, asked.to(dtype), z)
    return out.to(tokens.dtype), ScanState(z, windows.tail().to(dtype), windows.seen())


def _packed_scan(
    tokens: Tensor,
    w_q: Gate,
    log_decay: Tensor | None,
    d: Tensor | None,
    stride: int,
    state: ScanState | None,
    begins: list[int],
    chosen: str,
    queries: Tensor | None,
    structure: str | None,
) -> tuple[Tensor, ScanState]:
    """gd_scan with cu_seqlens: the kernels read sequences that begin here where they lie, the rest is padded for a batch."""
    heads, width = _checked_gate(w_q)
    features, sizes = tokens.shape[3], [stop - begin for begin, stop in pairwise(begins)]
    if chosen == KERNELS and (state is None or not (state.tail.requires_grad or bool(state.seen.any()))):
        from .kernels import scan as kernels

        table = kernels.table_of_packed(begins, width, stride)
        wanted = (1, int(table[3].sum()), heads, features)
        _check_queries(queries, wanted)
        lam = decay.make(log_decay, _checked_structure(log_decay, structure, wanted), tokens.device)
        flat = None if queries is None else queries[0]
        z = _start(tokens, len(sizes), heads, state)
        out, z = kernels.packed(tokens[0], w_q, lam, d, flat, z, table, 0, int(table[3].max()), wanted[1], stride)
        last = packing.tails(tokens, begins, width - 1).to(compute_dtype(tokens)).expand(-1, -1, heads, -1)
        return out[None], ScanState(z, last, torch.tensor(sizes))
    lengths = torch.tensor(sizes)
    padded = packing.unpack(tokens, sizes)
    valid = align(padded[..., :0].expand(-1, -1, heads, -1), width, stride, packing.without_features(state), lengths).valid
    assert valid is not None
    wanted = (1, int(valid.sum()), heads, features)
    _check_queries(queries, wanted)
    structure = _checked_structure(log_decay, structure, wanted)
    if structure == "input" and log_decay is not None:
        log_decay = packing.spread(log_decay, valid)
    queries = None if queries is None else packing.spread(queries, valid)
    out, after = _scan(padded, w_q, log_decay, d, stride, state, lengths, chosen, queries, structure)
    return out[valid][None], after


def _start(tokens: Tensor, batch: int, heads: int, state: ScanState | None) -> Tensor:
    """Z to start with, in the dtype that it is carried in."""
    dtype, features = carry_dtype(tokens.device), tokens.shape[3]
    if state is not None:
        return state.z.to(dtype)
    return torch.zeros(batch, heads, features, features, dtype=dtype, device=tokens.device)


def _check_queries(queries: Tensor | None, wanted: tuple[int, ...]) -> None:
    if queries is not None and queries.shape != wanted:
        raise ValueError(f"queries has shape {tuple(queries.shape)}; these tokens need {wanted}")


def _checked_structure(log_decay: Tensor | None, structure: str | None, shape: Sequence[int]) -> str:
    if structure is None:
        structure = decay.structure_of(log_decay, *shape)
    elif structure not in decay.STRUCTURES:
        raise ValueError(f"structure is {structure!r}; allowed: {', '.join(decay.STRUCTURES)}")
    else:
        batch, windows, heads, features = shape
        wanted = {"none": None, "head": (heads,), "row": (heads, features), "full": (heads, features, features)}
        expected = wanted.get(structure, (batch, windows, heads))
        given = None if log_decay is None else tuple(log_decay.shape)
        if given != expected:
            raise ValueError(f"log_decay has shape {given}; structure {structure!r} needs {expected}")
    decay.check_sign(log_decay)
    return structure


def _checked_gate(w_q: Gate) -> tuple[int, int]:
    """H and W."""
    if isinstance(w_q, Tensor):
        if w_q.ndim != 3 or w_q.shape[1] != w_q.shape[2] or w_q.shape[1] < 1:
            raise ValueError(f"w_q must be (H, W, W) with W >= 1, got shape {tuple(w_q.shape)}")
        return w_q.shape[0], w_q.shape[1]
    shapes = [tuple(factor.shape) for factor in w_q]
    if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] < 1:
        raise ValueError(f"w_q in factors must be two tensors (u, v), both (H, W) with W >= 1, got shapes {shapes}")
    return shapes[0]


def _check_shapes(
    tokens: Tensor, w_q: Gate, d: Tensor | None, stride: int, state: ScanState | None, queries: Tensor | None, batch: int
) -> None:
    if not tokens.is_floating_point():
        raise TypeError(f"tokens must be floating point, got {tokens.dtype}")
    if tokens.ndim != 4:
        raise ValueError(f"tokens must be (B, T, H, D), got shape {tuple(tokens.shape)}")
    heads, width = _checked_gate(w_q)
    if tokens.shape[2] not in (1, heads):
        raise ValueError(f"tokens have {tokens.shape[2]} heads, w_q has {heads}; allowed: the same, or 1 shared by all")
    if (d is None) == (queries is None):
        raise ValueError("give exactly one of d and queries")
    if d is not None and d.shape != (heads, width):
        raise ValueError(f"d must be (H, W) = {(heads, width)} like w_q, got shape {tuple(d.shape)}")
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be an integer >= 1, got {stride!r}")
    if state is not None:
        features = tokens.shape[3]
        wanted = ((batch, heads, features, features), (batch, width - 1, heads, features), (batch,))
        for name, tensor, shape in zip(ScanState._fields, state, wanted, strict=True):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"state.{name} has shape {tuple(tensor.shape)}; these tokens and weights need {shape}")
