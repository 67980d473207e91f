"""How far the kernels' gradients are from float64 over many random draws, on a GPU where there is one, else interpreted.

    python benchmarks/kernel_accuracy.py [--heads 1] [--draws 200] [--tokens 37] [--features 16] [--dtype bfloat16]

One stream, w_q = u v^T, one decay per head, Lambda from 0.4 to 1. For the output and every gradient: root mean square of the
error over that of the value, its median, 95th percentile and largest, and the share of draws beyond what the dtype is held to.
Inputs are the same numbers for both, so what is seen is the arithmetic's error. Interpreted, a draw of one head takes about
half a second.
"""

import argparse
import math
import os

import torch

from gdssm.bench.suite import TOLERANCE

NAMES = ("tokens", "u", "v", "d", "log_decay")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("heads", 1), ("draws", 200), ("tokens", 37), ("features", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=TOLERANCE, default="bfloat16")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, which gd_scan does
    dtype = getattr(torch, options.dtype)
    found: dict[str, list[float]] = {}
    for seed in range(options.draws):
        values, upstream = draw(seed, options, dtype)
        got, wanted = (
            gradients([t.to(device, kind) for t in values], upstream.to(device), backend)
            for kind, backend in ((dtype, "triton"), (torch.float64, "reference"))
        )
        for name, a, b in zip(("out", *(f"d_{name}" for name in NAMES)), got, wanted, strict=True):
            found.setdefault(name, []).append(float(((a.double() - b).norm() / b.norm()).detach()))
    limit = TOLERANCE[options.dtype]
    print(f"| {options.dtype}, heads: {options.heads}, draws: {options.draws} | median | 95 % | largest | beyond {limit:g} |")
    print("|---|---|---|---|---|")
    for name, errors in found.items():
        e = torch.tensor(errors, dtype=torch.float64)
        print(f"| {name} | {e.median():.4f} | {e.quantile(0.95):.4f} | {e.max():.4f} | {100 * (e > limit).double().mean():.1f} % |")


def draw(seed: int, options: argparse.Namespace, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Inputs in the order of NAMES and the output's gradient, in float64 with every number representable in the dtype."""
    g = torch.Generator().manual_seed(seed)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype).double()

    def normal(*shape: int) -> torch.Tensor:
        return rounded(torch.randn(*shape, generator=g, dtype=torch.float64) / 2)

    heads, tokens, features = options.heads, options.tokens, options.features
    log = rounded(torch.rand(heads, generator=g, dtype=torch.float64) * math.log(0.4))
    values = [normal(1, tokens, heads, features), *(normal(heads, 3) for _ in range(3)), log]
    return values, normal(1, tokens - 2, heads, features)


def gradients(values: list[torch.Tensor], upstream: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """The output and the gradients of all inputs."""
    from gdssm.ops import gd_scan

    stream, u, v, d, log = (t.requires_grad_() for t in values)
    out, _ = gd_scan(stream, (u, v), log, d, backend=backend)
    return [out, *torch.autograd.grad(out, [stream, u, v, d, log], upstream.to(out.dtype))]


if __name__ == "__main__":
    main()
