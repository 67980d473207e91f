"""Time and memory of one training step: forward, backward, clipping and Adam's update; sampling is not counted.

    python benchmarks/training_step.py [--threads 2] [--repeats 200]

Prints the median over repeats for both decays at four sizes, batch 64, beside the published code's step on a 2-core
machine (measured once, not here), and the growth of peak memory over the step's inputs, each case in its own process.
The unit of work `add` (adding two 64 x 10 matrices) is timed in the same run: it shows how fast the machine was.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = ((10, 10), (100, 10), (10, 64), (1000, 64))
PUBLISHED_MS = {(10, 10): 1.7, (100, 10): 14.6, (10, 64): 75.0, (1000, 64): 11_600.0}
BATCH = 64


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in kB. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def reset_peak() -> int:
    """Let the peak start from what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def measure(decay: str, n: int, d: int, threads: int, repeats: int) -> dict[str, float]:
    import torch

    from gdssm.ensemble import Adam, Ensemble
    from gdssm.settings import ModelConfig
    from gdssm.tasks import LinearRegression
    from gdssm.tokens import interleave
    from gdssm.train import build_model, training_step

    torch.set_num_threads(threads)

    def prepared(n: int, d: int) -> tuple[Adam, torch.Tensor, torch.Tensor, torch.Tensor]:
        task = LinearRegression(d, d, n)
        ensemble = Ensemble([build_model(ModelConfig(decay=decay), task, 0)])
        context = task.sample(BATCH, seed=0)
        assert context.y_query is not None
        tokens = interleave(context.x, context.y, context.x_query)
        return Adam(ensemble), tokens, context.y_query[:, 0], torch.full_like(ensemble.flat[0], 1e-3)

    small = prepared(2, 2)
    for _ in range(5):  # load every library before memory is counted
        training_step(*small, clip=1.0)
    case = prepared(n, d)
    before = reset_peak()
    times, adds = [], []
    matrix = torch.ones(64, 10)
    for _ in range(repeats + 10):
        start = time.perf_counter()
        training_step(*case, clip=1.0)
        middle = time.perf_counter()
        torch.add(matrix, matrix)
        times.append(middle - start)
        adds.append(time.perf_counter() - middle)
    return {
        "ms": statistics.median(times[10:]) * 1e3,
        "best_ms": min(times[10:]) * 1e3,
        "add_us": statistics.median(adds[10:]) * 1e6,
        "mb": (resident("VmHWM") - before) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        decay, n, d = options.case[0], int(options.case[1]), int(options.case[2])
        print(json.dumps(measure(decay, n, d, options.threads, options.repeats)))
        return
    print(f"one training step, batch {BATCH}, {options.threads} threads, median of {options.repeats}")
    print("decay     N   d   median ms   best ms   published ms   ratio   peak memory MB   add us")
    for decay in ("head", "full"):
        for n, d in CASES:
            repeats = options.repeats if n * d < 10_000 else min(options.repeats, 50)
            command = [sys.executable, __file__, "--threads", str(options.threads), "--repeats", str(repeats)]
            out = subprocess.run([*command, "--case", decay, str(n), str(d)], capture_output=True, text=True, check=True)
            found, published = json.loads(out.stdout), PUBLISHED_MS[n, d]
            print(
                f"{decay:5} {n:5} {d:3} {found['ms']:11.2f} {found['best_ms']:9.2f} {published:14.1f} "
                f"{published / found['ms']:7.1f} {found['mb']:16.0f} {found['add_us']:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
