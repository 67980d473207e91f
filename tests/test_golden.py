"""The layer and the two-step block against recorded float64 outputs of the published v1 code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gdssm import GDSSM, TwoStepBlock
from gdssm.ops import BACKENDS
from plain import ratio

DATA = np.load(Path(__file__).parent / "data" / "published_forward.npz")
LAYERS = sorted({key.split("/")[0] for key in DATA if key.startswith("layer")})
BLOCKS = sorted({key.split("/")[0] for key in DATA if key.startswith("two_step")})


def record(name):
    return {key.split("/")[1]: DATA[key] for key in DATA if key.startswith(name + "/")}


def published_layer(saved, backend="auto"):
    layer = GDSSM(
        saved["c"].shape[0], window=len(saved["d"]), stride=int(saved["stride"]), decay="full", backend=backend, dtype=torch.float64
    )
    return layer.load_arrays(**{name: saved[name] for name in ("w_q", "lambda_bar", "c", "d")})


def published_block(saved, backend="auto"):
    block = TwoStepBlock(len(saved["C1"]), backend=backend, dtype=torch.float64)
    names = [f"{name}{i}" for name in ("wq", "lam", "C") for i in (1, 2, 3)] + ["D3"]
    return block.load_arrays(**{name: saved[name] for name in names})


def test_the_record_holds_every_case():
    assert LAYERS == ["layer0", "layer1", "layer2", "layer3"]
    assert BLOCKS == ["two_step0", "two_step1"]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_outputs_and_state(name, backend):
    saved = record(name)
    outputs, state = published_layer(saved, backend)(torch.from_numpy(saved["tokens"]))
    assert ratio(outputs, saved["outputs"]) <= 1e-12
    assert ratio(state.weights()[:, 0], saved["last_state"]) <= 1e-12  # C Z^T


@pytest.mark.parametrize("name", LAYERS)
def test_last_output(name):
    saved = record(name)
    assert ratio(published_layer(saved).last(torch.from_numpy(saved["tokens"])), saved["outputs"][:, -1]) <= 1e-12


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_step_last_output(name, backend):
    saved = record(name)
    block, tokens = published_block(saved, backend), torch.from_numpy(saved["tokens"])
    assert ratio(block(tokens)[0][:, -1], saved["outputs"][:, -1]) <= 1e-12
    assert ratio(block.last(tokens), saved["outputs"][:, -1]) <= 1e-12


@pytest.mark.parametrize("name", BLOCKS)
def test_two_step_outputs_do_not_see_the_future(name):
    """Later tokens change no earlier output; the published block's earlier outputs, which use the last P_1, are others."""
    saved = record(name)
    block, tokens = published_block(saved), torch.from_numpy(saved["tokens"])
    outputs = block(tokens)[0]
    for k in range(outputs.shape[1] - 1):
        changed = tokens.clone()
        changed[:, 2 * k + 3 :] = 7.0
        assert ratio(block(changed)[0][:, k], outputs[:, k]) <= 1e-12
        assert ratio(outputs[:, k], saved["outputs"][:, k]) > 1e-3
