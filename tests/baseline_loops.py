"""The baselines from their definitions, in NumPy loops: one sequence (T, D) -> outputs (T, D_out), the last state."""

import math

import numpy as np

from plain import array


def weights(layer):
    return {name: array(p) for name, p in layer.named_parameters()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def linear_attention_loop(layer, tokens):
    p = weights(layer)
    z, outputs = np.zeros(layer.state_shape), []
    for s in tokens:
        y = 0
        for h in range(len(z)):
            z[h] = z[h] + np.outer(p["w_k"][h] @ s, p["w_v"][h] @ s)
            y = y + p["c"][h] @ z[h].T @ p["w_q"][h] @ s
        outputs.append(y)
    return np.array(outputs), z


def gated_attention_loop(layer, tokens):
    p = weights(layer)
    z, outputs = np.zeros(layer.state_shape), []
    for s in tokens:
        y = 0
        for h in range(len(z)):
            q, k, v = (p[name][h] @ s for name in ("w_q", "w_k", "w_v"))
            if layer.normalize_keys:
                q, k = q / np.sqrt(q @ q), k / np.sqrt(k @ k)
            if layer.gate != "none":
                z[h] = (sigmoid(p["w_gate"][h] @ s + p["b_gate"][h]) ** (1 / layer.tau))[:, None] * z[h]
            if layer.delta:
                v = sigmoid(p["w_beta"][h] @ s + p["b_beta"][h]) * (v - z[h].T @ k)
            z[h] = z[h] + np.outer(k, v)
            y = y + p["c"][h] @ z[h].T @ q
        outputs.append(y)
    return np.array(outputs), z


def s5_loop(layer, tokens):
    """With the whole conjugate-symmetric system: 2 Re(C z) is the sum over both of each pair."""
    p = weights(layer)
    pole, step = -np.exp(p["log_rate"]) + 1j * p["angle"], np.exp(p["log_step"])
    pole, step = np.concatenate([pole, pole.conj()]), np.concatenate([step, step])
    b, c = p["b"][0] + 1j * p["b"][1], p["c"][0] + 1j * p["c"][1]
    b, c = np.concatenate([b, b.conj()]), np.concatenate([c, c.conj()], axis=1)
    z, outputs = np.zeros(len(pole), complex), []
    for s in tokens:
        z = np.exp(pole * step) * z + (np.exp(pole * step) - 1) / pole * (b @ s)
        o = c @ z
        assert np.abs(o.imag).max() <= 1e-12 * (1 + np.abs(o.real).max())
        o = o.real + p["f"] * s
        if layer.gate == "glu":
            o = gelu(o) * sigmoid(p["w_gate"] @ gelu(o))
        elif layer.gate == "input":
            o = o * (p["w_gate"] @ s)
        outputs.append(o)
    z = z[: len(z) // 2]
    return np.array(outputs), np.stack([z.real, z.imag], axis=-1)


def rg_lru_loop(layer, tokens):
    p = weights(layer)
    z, outputs = np.zeros(layer.state_shape), []
    for s in tokens:
        r, i = sigmoid(p["w_r"] @ s + p["b_r"]), sigmoid(p["w_i"] @ s + p["b_i"])
        a = np.exp(-layer.factor * np.log1p(np.exp(p["theta"])) * r)
        z = a * z + np.sqrt(1 - a**2) * i * s
        outputs.append(gelu(p["w_o"] @ s) * z if "w_o" in p else z)
    return np.array(outputs), z


def gated_rnn_loop(layer, tokens):
    p = weights(layer)
    z, outputs = np.zeros(layer.state_shape), []
    for s in tokens:
        z = np.exp(-np.exp(p["log_rate"])) * z + (p["w_1"] @ s + p["b_1"]) * (p["w_2"] @ s + p["b_2"])
        y = p["c"] @ ((p["u_1"] @ z) * (p["u_2"] @ (z if layer.readout == "state" else s)))
        outputs.append(y + p["f"] @ s if "f" in p else y)
    return np.array(outputs), z
