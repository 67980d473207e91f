"""The plain-torch backend: windows in chunks, matrix products inside a chunk, Z carried between.

Decay none, head and input go by token_chunks, which reads the stream once; decay row and full by row_chunks; a single window,
which is what decoding one token after another asks for, by the definition.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import row_chunks
from .chunk_steps import chunk_of, filling
from .decay import Decay
from .token_chunks import TokenChunks
from .windows import Gate, Windows, as_queries, unrecorded


def scan(windows: Windows, w_q: Gate, decay: Decay, queries: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """queries (B, K, H, D) or taps (H, W), z (B, H, D, D) -> out (B, K, H, D), last z in its own dtype.

    z is 0 where nothing was seen before (windows.earlier is None).
    """
    dtype = queries.dtype
    if windows.count == 0:
        return windows.stream.new_zeros(len(z), 0, *z.shape[1:3], dtype=dtype), z
    if windows.count == 1 and windows.valid is None:
        return _one_window(windows.to(dtype), w_q, decay, queries, z)
    if decay.structure in ("row", "full"):
        windows = windows.to(dtype)
        return row_chunks.scan(windows, w_q, decay, as_queries(windows, queries), z)
    heads, valid = z.shape[1], windows.valid
    logs = decay.log.expand(heads) if decay.structure == "none" else decay.log
    if logs.ndim == 3:
        logs = logs.permute(2, 0, 1)  # (H, B, K)
    if valid is not None:  # no decay where a sequence has no window
        logs = (logs[:, None, None] if logs.ndim == 1 else logs) * valid
    if isinstance(w_q, tuple):
        keys, values = (taps[:, None] for taps in w_q)
    else:
        keys, values = w_q.transpose(1, 2), torch.eye(windows.width, dtype=dtype, device=z.device).expand_as(w_q)
    asked, d = (None, queries) if queries.ndim == 2 else (queries, queries.new_zeros(heads, windows.width))
    taps = torch.cat([keys, d[:, None], values], 1)  # (H, 2 s + 1, W)
    stream, lead = windows.stream, 0
    if windows.earlier is None and valid is None:  # Z is 0 before the first window
        lead = filling(windows.count, chunk_of(keys.shape[1], logs), windows.stride * stream[:, 0].numel())
    if lead:
        stream = pad(stream, (0, 0, 0, 0, lead * windows.stride, 0))
        asked = None if asked is None else pad(asked, (0, 0, 0, 0, lead, 0))
        logs = logs if logs.ndim == 1 else pad(logs, (lead, 0))
    place = (windows.start, lead + windows.count, windows.stride, lead)
    out, last = TokenChunks.apply(*unrecorded(stream, asked, taps, logs, z, valid), place)
    return out[:, lead:], last


def _one_window(windows: Windows, w_q: Gate, decay: Decay, queries: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Z is read and written in its own dtype, without a copy in another; all the rest is as small as a token."""
    s = windows.stream[:, windows.start : windows.start + windows.width].transpose(1, 2)  # (B, H, W, D)
    if isinstance(w_q, tuple):
        keys, values = torch.matmul(torch.stack(w_q, dim=1), s).to(z.dtype).split(1, dim=2)
    else:
        keys, values = torch.matmul(w_q.transpose(1, 2), s).to(z.dtype), s.to(z.dtype)
    q = torch.matmul(queries[:, None], s) if queries.ndim == 2 else queries.transpose(1, 2)  # (B, H, 1, D)
    before = z if decay.structure == "none" else decay.at(0) * z
    after = torch.baddbmm(before.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1))
    out = torch.bmm(q.to(z.dtype).flatten(0, 1), after).view_as(q)
    return out.transpose(1, 2).to(q.dtype), after.view_as(z)
