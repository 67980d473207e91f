"""The model from its definition, in NumPy float64 loops over one sequence: the independent answer of the tests.

S_k = (s_{kR}, .., s_{kR+W-1})   M_k = S_k^T w_q S_k   Z_k = Lambda * Z_{k-1} + M_k   q_k = S_k^T d
out_k = Z_k^T q_k                y_k = sum_h C Z_k^T P q_k / (n_k + n0) + F q_k

Axes: T tokens, K windows, W window width, R stride, H heads, D features.
"""

import numpy as np
import torch

STRUCTURES = ("none", "head", "row", "full", "input")


def scan(tokens, w_q, lam, d, *, stride=1, z=None, seen=0, queries=None):
    """tokens (T, H, D), w_q (H, W, W), lam (K, H, D, D), d (H, W) -> outputs (K, H, D), last z (H, D, D).

    Windows that end within the first `seen` tokens are part of z already. queries (K, H, D) replace S_k^T d.
    """
    n_tokens, heads, features = tokens.shape
    width = w_q.shape[1]
    z = np.zeros((heads, features, features)) if z is None else np.array(z, dtype=np.float64)
    outputs = []
    for start in range(0, n_tokens - width + 1, stride):
        if start + width <= seen:
            continue
        k, row = len(outputs), []
        for h in range(heads):
            s = tokens[start : start + width, h]
            q = s.T @ d[h] if queries is None else queries[k, h]
            z[h] = lam[k, h] * z[h] + s.T @ w_q[h] @ s
            row.append(z[h].T @ q)
        outputs.append(row)
    return np.array(outputs).reshape(-1, heads, features), z


def layer(tokens, w_q, lam, d, c, *, stride, key_map=None, feedthrough=None, offset=None):
    """tokens (T, D), lam (H, D, D) -> y (K, D) and the last Z (H, D, D): the whole layer, sums over heads included."""
    heads, width = w_q.shape[:2]
    z = np.zeros((heads, tokens.shape[1], tokens.shape[1]))
    outputs = []
    for n, start in enumerate(range(0, len(tokens) - width + 1, stride), start=1):
        s = tokens[start : start + width]
        y = np.zeros(tokens.shape[1])
        for h in range(heads):
            q = s.T @ d[h]
            z[h] = lam[h] * z[h] + s.T @ w_q[h] @ s
            share = 1.0 if offset is None else 1 / (n + offset[h])
            y += share * c[h] @ z[h].T @ (q if key_map is None else key_map[h] @ q)
            y += 0 if feedthrough is None else feedthrough[h] @ q
        outputs.append(y)
    return np.array(outputs).reshape(-1, tokens.shape[1]), z


def lambda_grid(structure, log_decay, windows, heads, features):
    """Lambda of every window as (K, H, D, D), for the log_decay of one sequence in any structure."""
    if structure == "none":
        return np.ones((windows, heads, features, features))
    lam = np.exp(np.asarray(log_decay, dtype=np.float64))
    shaped = {
        "head": lambda: lam.reshape(1, heads, 1, 1),
        "row": lambda: lam.reshape(1, heads, features, 1),
        "full": lambda: lam.reshape(1, heads, features, features),
        "input": lambda: lam.reshape(windows, heads, 1, 1),
    }[structure]()
    return np.broadcast_to(shaped, (windows, heads, features, features))


def log_decay_shape(structure, batch, windows, heads, features):
    """The shape gd_scan wants for a structure; None for none."""
    shapes = {
        "head": (heads,),
        "row": (heads, features),
        "full": (heads, features, features),
        "input": (batch, windows, heads),
    }
    return shapes.get(structure)


def array(value):
    """As a NumPy array, tensors in float64."""
    return value.detach().double().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, dtype=np.float64)


def ratio(got, wanted):
    """RMS of the error over the RMS of the wanted values; infinite where shapes differ or a value is not finite."""
    got, wanted = array(got), array(wanted)
    if got.shape != wanted.shape or not np.isfinite(got).all():
        return np.inf
    error, size = np.sqrt(np.sum((got - wanted) ** 2)), np.sqrt(np.sum(wanted**2))
    if size == 0:
        return 0.0 if error == 0 else np.inf
    return error / size
