"""Measured accuracy: constructions, backends, and sums over a million tokens.

    python benchmarks/accuracy.py [golden] [constructions] [float32] [backends] [streaming]

Prints the largest error of each part; all parts where none is named. `streaming` takes minutes (one token at a time).
"""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gdssm
from gdssm import construct, learners
from gdssm.ops import BACKENDS, ScanState, gd_scan

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "published_forward.npz"
DOUBLE = torch.float64
SPANS = {"forgetting": (0.7, 1.0), "weight_decay": (0.0, 0.1), "momentum": (0.0, 0.5)}


def ratio(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm().clamp(min=1e-300))


def golden() -> None:
    data, worst = np.load(GOLDEN), 0.0
    for i in range(4):
        case = {key: data[f"layer{i}/{key}"] for key in ("tokens", "w_q", "lambda_bar", "c", "d", "outputs")}
        tokens, wanted = torch.as_tensor(case["tokens"]), torch.as_tensor(case["outputs"])
        for backend in BACKENDS:
            layer = gdssm.GDSSM(tokens.shape[2], backend=backend, dtype=DOUBLE)
            layer.load_arrays(w_q=case["w_q"], lambda_bar=case["lambda_bar"], c=case["c"], d=case["d"])
            worst = max(worst, ratio(layer(tokens)[0], wanted), ratio(layer.last(tokens), wanted[:, -1]))
    print(f"published layer, 4 cases, backends {', '.join(BACKENDS)} and last: largest relative error {worst:.1e}")
    worst = 0.0
    for i in range(2):
        keys = [f"{name}{k}" for name in ("wq", "lam", "C") for k in (1, 2, 3)] + ["D3"]
        tokens, wanted = (torch.as_tensor(data[f"two_step{i}/{key}"]) for key in ("tokens", "outputs"))
        block = gdssm.TwoStepBlock(tokens.shape[2], dtype=DOUBLE).load_arrays(**{k: data[f"two_step{i}/{k}"] for k in keys})
        worst = max(worst, ratio(block.last(tokens), wanted[:, -1]))
    print(f"published two-step block, 2 cases, last output: largest relative error {worst:.1e}")


def constructions() -> None:
    rng, errors = np.random.default_rng(0), []
    for trial in range(200):
        d_x, d_y, n = (int(v) for v in rng.integers(1, 12, 3))
        k = int(rng.integers(1, 51))
        context = gdssm.LinearRegression(d_x, d_y, n, n_queries=3, noise_std=0.1).sample(4, seed=trial, dtype=DOUBLE)
        top = float(torch.linalg.eigvalsh(context.x.mT @ context.x / n).max())
        w0 = torch.as_tensor(rng.normal(size=(d_y, d_x)))
        shared: dict[str, Any] = {"lr": float(rng.uniform(0.1, 1.9)) / top, "steps": k, "w0": w0}
        shared |= {name: float(rng.uniform(*span)) for name, span in SPANS.items()}
        built = construct.gradient_descent(d_x, d_y, n_context=n, dtype=DOUBLE, **shared)
        explicit = learners.gradient_descent(context.x, context.y, context.x_query, **shared)
        errors.append(ratio(gdssm.as_predictor(built)(context), explicit))
    print(f"GD, 200 draws of d_x, d_y, N < 12, W0, k <= 50: largest {max(errors):.1e}, median {float(np.median(errors)):.1e}")


def float32() -> None:
    task = gdssm.LinearRegression(10, 10, 20, n_queries=64)
    for k in (1, 2, 5, 10, 20, 50, 100, 200):
        worst = 0.0
        for seed in range(10):
            context = task.sample(1, seed=seed, dtype=DOUBLE)
            top = float(torch.linalg.eigvalsh(context.x.mT @ context.x / 20).max())
            lr = 1.9 / top
            half = gdssm.Context(context.x.float(), context.y.float(), context.x_query.float())
            wanted = learners.gradient_descent(half.x.double(), half.y.double(), half.x_query.double(), lr=lr, steps=k)
            built = construct.gradient_descent(10, 10, lr=lr, n_context=20, steps=k)
            worst = max(worst, ratio(gdssm.as_predictor(built)(half), wanted))
        print(f"float32 against float64, lr lambda_max / N = 1.9, 64 queries, 10 tasks, k = {k:3}: largest {worst:.1e}")


def backends() -> None:
    generator = torch.Generator().manual_seed(0)
    worst: dict[tuple[str, str], float] = {}

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    for length in (3, 5, 17, 64, 1001):
        for stride in (1, 2):
            k = (length - 3) // stride + 1
            shapes = {"none": None, "head": (2,), "row": (2, 5), "full": (2, 5, 5), "input": (3, k, 2)}
            for structure, shape in shapes.items():
                for dtype in (torch.float64, torch.float32, torch.bfloat16):
                    weights = torch.float32 if dtype == torch.bfloat16 else dtype
                    inputs = [
                        normal(3, length, 2, 5).to(dtype),
                        normal(2, 3, 3).to(weights),
                        normal(2, 3).to(weights),
                        normal(3, 2, 5, 5),
                    ]
                    if shape:
                        inputs.append((torch.rand(shape, generator=generator, dtype=DOUBLE) / 2 + 0.5).log().to(weights))
                    upstream = normal(3, k, 2, 5).to(dtype), normal(3, 2, 5, 5)
                    found = differentiated(inputs, upstream, stride, structure, "chunked")
                    wanted = differentiated([t.double() for t in inputs], upstream, stride, structure, "reference")
                    for name, a, b in zip(
                        ("output", "state", "tokens", "w_q", "d", "initial state", "log decay"), found, wanted, strict=False
                    ):
                        kind = name if name in ("output", "state") else "gradients"
                        worst[str(dtype)[6:], kind] = max(worst.get((str(dtype)[6:], kind), 0.0), ratio(a, b))
    for (kind, name), value in worst.items():
        print(f"chunked against the float64 reference, {kind:8} {name:9}: largest RMS ratio {value:.1e}")


def differentiated(
    inputs: list[Tensor], upstream: tuple[Tensor, Tensor], stride: int, structure: str, backend: str
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    tokens, w_q, d, z = leaves[:4]
    state = ScanState(z, torch.zeros(3, 2, 2, 5, dtype=w_q.dtype), torch.zeros(3, dtype=torch.int64))
    log = leaves[4] if len(leaves) > 4 else None
    out, after = gd_scan(tokens, w_q, log, d, stride=stride, state=state, backend=backend, structure=structure)
    gradients = torch.autograd.grad([out, after.z], leaves, [upstream[0].to(out.dtype), upstream[1]])
    return [out, after.z, *gradients]


def streaming() -> None:
    n, d = 1_000_000, 4
    tokens = torch.rand(1, n, 1, d, generator=torch.Generator().manual_seed(0)) - 0.5
    w_q = torch.zeros(2, 3, 3)
    w_q[0, 0, 1] = w_q[1, 0, 0] = 1
    taps = torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3)
    exact = tokens[0, :, 0].double()
    wanted = torch.stack([exact[: n - 2].T @ exact[1 : n - 1], exact[: n - 2].T @ exact[: n - 2]])[None]

    def run(piece: int) -> tuple[float, float]:
        state = None
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for start in range(0, n, piece):
            _, state = gd_scan(tokens[:, start : start + piece], w_q, None, taps, state=state)
        assert state is not None
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        error = (state.z - wanted).abs().amax((0, 2, 3)) / wanted.abs().amax((0, 2, 3))
        return float(error.max()), grown

    with torch.no_grad():
        for piece in (1000, 1):
            error, grown = run(piece)
            print(
                f"1,000,000 tokens in pieces of {piece:4}: error over largest entry {error:.1e}, memory grew by {grown:.0f} MB",
                flush=True,
            )


PARTS: dict[str, Callable[[], None]] = {
    "golden": golden,
    "constructions": constructions,
    "float32": float32,
    "backends": backends,
    "streaming": streaming,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        if name not in PARTS:
            sys.exit(f"part is {name!r}; allowed: {', '.join(PARTS)}")
        PARTS[name]()
