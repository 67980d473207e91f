"""The recurrences that the baselines are made of, in parallel forms of plain torch that are safe for every decay.

    diagonal     z_t = a_t * z_{t-1} + m_t                                     elementwise
    attention    Z_t = Lambda_t * Z_{t-1} + k_t u_t^T,   o_t = Z_t^T q_t       one decay per row of Z

Decays enter as a product or a difference of logarithms that is <= 0: nothing is divided by a small decay.
Axes: B batch, T tokens, H heads, N numbers of a diagonal state, I rows of Z (keys), J columns of Z (values).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_SHORT = 32  # tokens up to which one addition after the other is quicker than doubling
_CHUNK = 64  # scores of a chunk are one matrix product
_CHUNK_ROWS, _SHORT_ROWS = 16, 4  # a decay per row keeps a weight for every (t, s, row): long and short sequences


def diagonal(a: Tensor, m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """z_t = a_t * z_{t-1} + m_t for all t, real or complex: by doubling (Hillis and Steele, 1986), log2(T) steps.

    Short sequences go token by token, which is T operations of which none is done twice.
    a, m (B, T, N), |a| <= 1, or a (N,), the same at all times; z (B, N) the state before them -> states (B, T, N), the
    last one (B, N).
    """
    if 0 < m.shape[1] <= _SHORT:
        return _one_by_one(a, m, z)
    a = a.expand(m.shape)
    a = torch.cat([torch.ones_like(z)[:, None], a], dim=1)  # the state is the first term of the sums
    m = torch.cat([z[:, None], m], dim=1)
    shift, n = 1, m.shape[1]
    while shift < n:
        m = torch.cat([m[:, :shift], m[:, shift:] + a[:, shift:] * m[:, :-shift]], dim=1)
        a = torch.cat([a[:, :shift], a[:, shift:] * a[:, :-shift]], dim=1)
        shift *= 2
    return m[:, 1:], m[:, -1]


def _one_by_one(a: Tensor, m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    added = m.unbind(1)
    decays = [a] * len(added) if a.ndim == 1 else a.unbind(1)
    states = []
    for decay, new in zip(decays, added, strict=True):
        z = torch.addcmul(new, decay, z)
        states.append(z)
    return torch.stack(states, dim=1), z


def attention(
    q: Tensor, k: Tensor, v: Tensor, z: Tensor, log_decay: Tensor | None = None, beta: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """o_t = Z_t^T q_t with Z_t = Lambda_t * Z_{t-1} + k_t u_t^T, in chunks of tokens.

    q, k       (B, H, T, I)
    v          (B, H, T, J)
    z          (B, H, I, J), the state before them
    log_decay  log Lambda_t <= 0, (B, H, T, I) one per row, (B, H, T, 1) one per head, or None: Lambda = 1
    beta       (B, H, T, 1): the delta rule, u_t = beta_t (v_t - (Lambda_t * Z_{t-1})^T k_t); None: u_t = v_t

    Returns o (B, H, T, J) and the last Z.
    """
    length = q.shape[2]
    if length == 0:
        return v, z
    rows = log_decay is not None and log_decay.shape[-1] > 1
    size = _CHUNK if not rows else _CHUNK_ROWS if length > _SHORT else _SHORT_ROWS

    def split(values: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * -(-length // size) if values is None else values.split(size, dim=2)

    pieces = []
    logs, betas = split(log_decay), split(beta)
    for i, (q_c, k_c, v_c) in enumerate(zip(*(x.split(size, dim=2) for x in (q, k, v)), strict=True)):
        log = logs[i]
        o, z = _chunk(q_c, k_c, v_c, z, None if log is None else log.cumsum(2), betas[i])
        pieces.append(o)
    return torch.cat(pieces, dim=2), z


def attend_last(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    """The last o_t of `attention` from Z = 0, without the others: q (B, H, 1, I), the last query -> (B, H, 1, J)."""
    total = None if log_decay is None else log_decay.cumsum(2)
    u = v if beta is None else _corrected(k, beta * v, total, beta)
    kept = k if total is None else k * (total[:, :, -1:] - total).exp()
    return (q @ kept.mT) @ u


def _chunk(q: Tensor, k: Tensor, v: Tensor, z: Tensor, total: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """One chunk; total (B, H, T, I or 1) is log of the decay from the chunk's start to t, t included."""
    since = 1.0 if total is None else total.exp()  # decay of Z_0 at t
    u = v if beta is None else _corrected(k, beta * (v - (since * k) @ z), total, beta)
    o = (since * q) @ z + _scores(q, k, total).tril() @ u
    if total is None:
        return o, z + k.mT @ u
    end = total[:, :, -1:]
    return o, end.exp().mT * z + (k * (end - total).exp()).mT @ u


def _corrected(k: Tensor, wanted: Tensor, total: Tensor | None, beta: Tensor) -> Tensor:
    """u_t = wanted_t - beta_t sum_{s < t} (k_t . k_s) u_s, keys as the decay leaves them.

    One triangular system, whose solver takes the diagonal for 1 and does not look above it.
    """
    return torch.linalg.solve_triangular(beta * _scores(k, k, total), wanted, upper=False, unitriangular=True)


def _scores(q: Tensor, k: Tensor, total: Tensor | None) -> Tensor:
    """q_t . (decay from s to t) k_s for s <= t, (B, H, T, T); what stands above the diagonal is finite."""
    if total is None:
        return q @ k.mT
    age = (total[:, :, :, None] - total[:, :, None]).clamp(max=0)  # (B, H, T, S, I or 1); > 0 only above the diagonal
    if total.shape[-1] == 1:
        return (q @ k.mT) * age.squeeze(-1).exp()
    return torch.einsum("bhti,bhsi,bhtsi->bhts", q, k, age.exp())


def zero_order_hold(rate: Tensor, angle: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """exp(l step) and (exp(l step) - 1) / l for l = -rate + i angle, rate > 0: all (N,), the results complex.

    Real and imaginary parts of exp(x + i y) - 1 are expm1(x) cos(y) - 2 sin(y/2)^2 and exp(x) sin(y): for small steps
    the subtraction would lose half the digits.
    """
    x, y = -rate * step, angle * step
    minus_one = torch.complex(x.expm1() * y.cos() - 2 * (y / 2).sin().square(), x.exp() * y.sin())
    return minus_one + 1, minus_one / torch.complex(-rate, angle)
