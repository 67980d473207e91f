"""What gd_scan calls: from its checked arguments to the operators, and back.

The stream goes to the kernels as it is stored, in half precision or shared by all heads. Filters (H, R, W) are w_q's
factors: u, v as given (R = 1), or w_q = sum_b w_q[:, b] e_b^T (R = W).
"""

import torch
from torch import Tensor

from ..decay import Decay
from ..windows import Gate, ScanState, Windows, align, compute_dtype, windows_in
from . import decode
from .operator import scan as scan_operator
from .tiles import KINDS


def _filters(gate: Gate) -> tuple[Tensor, Tensor, bool]:
    """Key and value filters (H, R, W), and whether the values are the window's tokens."""
    if isinstance(gate, tuple):
        return gate[0].float().unsqueeze(1), gate[1].float().unsqueeze(1), False
    u = gate.float().transpose(1, 2)
    return u, torch.eye(u.shape[1], device=u.device).expand_as(u), True


def _kind(structure: str) -> int:
    return KINDS["head" if structure == "none" else structure]


def place(tokens: Tensor, heads: int, width: int, stride: int, state: ScanState | None, lengths: Tensor | None) -> Windows:
    """align without copies that the kernels do not need.

    One stream for all heads stays one where the state's tails are one too, and a state that has seen nothing puts no empty
    tail in front.
    """
    if state is not None and not state.tail.requires_grad and lengths is None and not bool(state.seen.any()):
        state = None
    if state is not None and tokens.shape[2] == 1 < heads:
        if state.tail.stride(2) == 0:
            state = state._replace(tail=state.tail[:, :, :1])
        else:
            tokens = tokens.expand(-1, -1, heads, -1)
    return align(tokens, width, stride, state, lengths)


def scan(windows: Windows, gate: Gate, decay: Decay, d: Tensor | None, queries: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, K, H, D) in the stream's dtype and the last z in its own."""
    stream = windows.stream
    batch, count = stream.shape[0], windows.count
    table = None if windows.valid is None else _table(windows)
    flat = None if queries is None else queries.flatten(0, 1)
    out, z = packed(stream.flatten(0, 1), gate, decay, d, flat, z, table, windows.start, count, batch * count, windows.stride)
    return out.view(batch, count, *out.shape[1:]), z


def packed(
    stream: Tensor,
    gate: Gate,
    decay: Decay,
    d: Tensor | None,
    queries: Tensor | None,
    z: Tensor,
    table: Tensor | None,
    start: int,
    longest: int,
    rows: int,
    stride: int,
) -> tuple[Tensor, Tensor]:
    """stream (tokens, H or 1, D), queries (rows, H, D), table as in launch.Problem: outputs (rows, H, D) and the last z."""
    u, v, unit = _filters(gate)
    if rows == 0 or longest == 0:
        return stream.new_zeros(rows, u.shape[0], stream.shape[2]), z
    log = u.new_zeros(u.shape[0]) if decay.structure == "none" else decay.log.float()
    if decay.structure == "input":
        log = log.flatten(0, 1)
    taps = u.new_zeros(u.shape[0], u.shape[2]) if d is None else d.float()
    return scan_operator(stream, u, v, taps, queries, log, z, table, start, longest, rows, _kind(decay.structure), unit, stride)


def _table(windows: Windows) -> Tensor:
    """Where each sequence's valid windows lie (they follow one another): (5, B) on the CPU, see launch.Problem."""
    assert windows.valid is not None
    batch, span = windows.stream.shape[:2]
    valid = windows.valid.cpu().long()
    skipped = valid.argmax(1) if windows.count else torch.zeros(batch, dtype=torch.int64)
    n = torch.arange(batch)
    first = n * span + windows.start + skipped * windows.stride
    return torch.stack([n * span, (n + 1) * span, first, valid.sum(1), n * windows.count + skipped])


def table_of_packed(begins: list[int], width: int, stride: int) -> Tensor:
    """The same for sequences that follow one another: sequence n is tokens begins[n] .. begins[n + 1] - 1."""
    begin, stop = torch.tensor(begins[:-1]), torch.tensor(begins[1:])
    count = windows_in(stop - begin, width, stride)
    return torch.stack([begin, stop, begin, count, count.cumsum(0) - count])


def tail(windows: Windows, heads: int) -> Tensor:
    """The tail of every head, in the dtype that other backends return."""
    last = windows.tail()
    return last.to(compute_dtype(last)).expand(-1, -1, heads, -1)


def is_step(tokens: Tensor, state: ScanState | None, width: int, stride: int, *others: Tensor | None) -> bool:
    """Whether this is one token that completes a window in every sequence, and nobody wants gradients."""
    if state is None or tokens.shape[1] != 1:
        return False
    after = state.seen + 1 - width
    if bool(((after < 0) | (after % stride != 0)).any()):
        return False
    given = (tokens, state.z, state.tail, *others)
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given))


def step(
    tokens: Tensor, gate: Gate, log_decay: Tensor | None, structure: str, d: Tensor | None, queries: Tensor | None, state: ScanState
) -> tuple[Tensor, ScanState]:
    """One token, one launch; Z stays in its dtype."""
    u, v = gate if isinstance(gate, tuple) else (gate, None)
    out, z, last = decode.step(tokens, state.tail, u, v, d, queries, log_decay, state.z, _kind(structure))
    return out, ScanState(z, last, state.seen + 1)
