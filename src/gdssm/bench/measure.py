"""Clocks, memory, the machine's ceilings and fitted exponents: what the numbers of the benchmark are made of."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]


class Timing(NamedTuple):
    """Seconds of repeated runs: median, quartiles (the runs' ends where there are fewer than four), how many."""

    median: float
    low: float
    high: float
    runs: int


def timing(seconds: Sequence[float]) -> Timing:
    """Summary of at least one run."""
    if len(seconds) < 4:
        return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(middle, low, high, len(seconds))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(call: Call, device: torch.device) -> float:
    """Seconds of one call, the device idle before and after."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def in_turn(
    calls: Mapping[str, Call], device: torch.device, *, seconds: float, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of every run of every call, in turn, and the peak memory of each call's first run, which is not timed.

    Every call is timed once, those that took less than `seconds` for one run at least twice; then as often as fits into
    `seconds` for all together, at most `rounds` times. On a GPU a run is as many calls as take about 10 ms, so that the time
    is the device's where it is longer than what Python and torch take to launch.
    """
    memory = {name: peak_bytes(call, device) for name, call in calls.items()}
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for i in range(rounds):
        for name, call in calls.items():
            if not found[name] or found[name][0] < seconds:
                found[name].append(once(_repeated(call, repeats[name]), device) / repeats[name])
        if i >= 1 and time.perf_counter() - start > seconds:
            break
    return found, memory


def _repeats(call: Call, device: torch.device) -> int:
    """Calls per run; the call has been made before, so nothing is left to be compiled or tuned."""
    return max(1, min(100, round(0.01 / once(call, device)))) if device.type == "cuda" else 1


def _repeated(call: Call, times: int) -> Call:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most memory that torch held at once for what a call allocated, its result included; not its inputs.

    From the allocator: on a GPU torch's own counter, on a CPU every allocation and release of the call in order.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profile:
        result = call()  # held until the profile ends
    del result
    kineto = profile.kineto_results
    assert kineto is not None
    sizes = sorted((event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]")
    held = most = 0
    for _, size in sizes:
        held += size
        most = max(most, held)
    return most


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """b of the least-squares fit y = a x^b on logarithms. ValueError for fewer than two points or numbers <= 0."""
    if len(xs) != len(ys) or len(set(xs)) < 2 or min(*xs, *ys) <= 0:
        raise ValueError(f"two or more positive points are needed, got x {list(xs)}, y {list(ys)}")
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True)]
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def ceilings(device: torch.device, copy_mib: int, matmul: int) -> dict[str, float]:
    """Bytes per second of a large copy (read and written) and operations per second of a large matrix product; best of five."""
    size = copy_mib * 2**20 // 4
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    copied = min(once(lambda: target.copy_(source), device) for _ in range(6))
    found = {"copy_bytes_per_second": 8 * size / copied}
    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
        matrix = torch.ones(matmul, matmul, device=device, dtype=dtype)
        multiplied = min(once(functools.partial(torch.matmul, matrix, matrix), device) for _ in range(6))
        found[f"matmul_{str(dtype).removeprefix('torch.')}_per_second"] = 2 * matmul**3 / multiplied
    return found
