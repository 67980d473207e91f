"""One run of the benchmark: every program is checked against its float64 answer, then all take turns at every case."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import costs, measure
from .cases import Case, Preset, Shape
from .peers import PEERS, missing
from .programs import OWN, Decoder, Entry, Program

TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 8e-3}  # of this library's RMS error over the answer's RMS
LOOSE = 0.02  # beyond this a program computes something else, and is not timed
CHECKED = Shape(2, 70, 2, 16)
CHECKED_ON_GPU = (CHECKED, Shape(1, 200, 4, 64), Shape(1, 200, 4, 128))  # the kernels differ by D


def run(preset: Preset, name: str, peers: Sequence[str], device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of a run; say is told what is going on."""
    entries, skipped = dict(OWN), {}
    for peer in peers:
        reason = missing(PEERS[peer], device.type)
        if reason is None:
            entries[peer] = PEERS[peer]
        else:
            skipped[peer] = reason
            say(f"{peer}: skipped, {reason}")
    say(f"the machine's ceilings: copy of {preset.copy_mib} MiB, product of {preset.matmul} x {preset.matmul} matrices")
    found: dict[str, Any] = {
        "format": 1,
        "preset": name,
        "environment": environment(device),
        "ceilings": measure.ceilings(device, preset.copy_mib, preset.matmul),
        "programs": {key: entry.what for key, entry in entries.items()},
        "skipped": skipped,
        "checks": [],
        "cases": [],
    }
    wrong: set[tuple[str, str]] = set()
    for dtype in sorted({case.dtype for case in preset.cases}):
        for shape in CHECKED_ON_GPU if device.type == "cuda" else (CHECKED,):
            for key, entry in entries.items():
                if dtype in entry.dtypes and (key, dtype) not in wrong:
                    with _others_may_fail(key, dtype, say) as failed:
                        found["checks"].append(check := checked(key, entry, dtype, device, shape))
                        if check["outputs"] > LOOSE or (key in OWN and check["gradients"] > LOOSE):
                            failed.append(f"its {dtype} output is off by {check['outputs']:.1e}")
                    if failed:
                        wrong.add((key, dtype))
    for case in preset.cases:
        fits = {k: e for k, e in entries.items() if (k, case.dtype) not in wrong and suits(k, e, case, device.type, preset)}
        say(f"{case.mode} {tuple(case.shape)} {case.dtype}: {', '.join(fits)}")
        found["cases"].append(measured(case, fits, device, preset, say))
    if preset.long is not None:
        say(f"{preset.long.shape.tokens} tokens in one pass")
        found["long"] = measured(preset.long, {"gdssm": OWN["gdssm"]}, device, preset, say)
    found["growth"] = growth(found["cases"])
    return found


@contextmanager
def _others_may_fail(key: str, where: str, say: Callable[[str], None]) -> Iterator[list[str]]:
    """A list for what is wrong with a program, said at the end; an exception of another library is one more such reason."""
    failed: list[str] = []
    try:
        yield failed
    except Exception as error:
        if key in OWN:
            raise
        failed.append(f"{where}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300])
    for reason in failed:
        say(f"{key}: {reason}; not timed")


def suits(name: str, entry: Entry, case: Case, device: str, preset: Preset) -> bool:
    """Whether a program takes part in a case: what adds little is left out of sweeps, and what is slow out of large cases."""
    if case.dtype not in entry.dtypes or (case.mode == "decode" and entry.decode is None):
        return False
    if device == "cpu" and entry.most_tokens is not None and case.shape.tokens > entry.most_tokens:
        return False
    most = preset.slow_tokens if case.mode == "forward" else preset.slow_tokens // 16  # their backward pass is quadratic in T
    if entry.slow and case.shape.batch * case.shape.tokens > most:
        return False
    return not case.sweep or not (entry.slow or name in ("gdssm-stride2", "linear-filters", "fla-filters"))


def checked(name: str, entry: Entry, dtype: str, device: torch.device, shape: Shape) -> dict[str, Any]:
    """Outputs and gradients of a small case against the definition in float64: RMS error over RMS."""
    program = entry.build(shape, getattr(torch, dtype), device)
    out = program.call(*program.inputs)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    exact = [t.detach().double().requires_grad_() for t in program.inputs]
    wanted = program.exact(*exact)
    gradients = torch.autograd.grad(out, program.inputs, g)
    wanted_gradients = torch.autograd.grad(wanted, exact, g.double())
    errors = [error(a, b) for a, b in zip(gradients, wanted_gradients, strict=True)]
    limit = TOLERANCE[dtype] if name in OWN else LOOSE
    ok = (max(error(out, wanted), *errors) if name in OWN else error(out, wanted)) <= limit
    found = {"program": name, "dtype": dtype, "shape": list(shape), "outputs": error(out, wanted), "gradients": max(errors)}
    return {**found, "limit": limit, "ok": ok}


def error(found: Tensor, wanted: Tensor) -> float:
    """RMS of the difference over RMS of the wanted; 1e300 where a value is not finite."""
    found, wanted = found.detach().double(), wanted.detach()
    value = float((found - wanted).norm() / wanted.norm().clamp(min=1e-300))
    return value if value < 1e300 else 1e300


def measured(
    case: Case, entries: Mapping[str, Entry], device: torch.device, preset: Preset, say: Callable[[str], None]
) -> dict[str, Any]:
    """Times, memory, operations and bytes of one case."""
    if case.mode == "decode":
        return {**asdict(case), "shape": list(case.shape), "results": decoded(case, entries, device, say)}
    calls: dict[str, measure.Call] = {}
    for name, entry in entries.items():
        with _others_may_fail(name, case.mode, say):
            call = call_of(entry.build(case.shape, getattr(torch, case.dtype), device), case.mode)
            if device.type == "cuda":
                call()  # compiles, tunes, and takes the memory it needs
            calls[name] = call
    times, memory = measure.in_turn(calls, device, seconds=preset.seconds, rounds=preset.rounds)
    results = {}
    for name in calls:
        entry = entries[name]
        itemsize = getattr(torch, case.dtype).itemsize
        results[name] = {
            **measure.timing(times[name])._asdict(),
            "peak_bytes": memory[name],
            "operations": costs.operations(entry.kind, case, device.type),
            "bytes": costs.moved(entry.kind, case, itemsize),
        }
    return {**asdict(case), "shape": list(case.shape), "results": results}


def call_of(program: Program, mode: str) -> measure.Call:
    """The call that is timed."""
    if mode == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return program.call(*program.inputs)

        return forward
    with torch.no_grad():
        upstream = torch.ones_like(program.call(*program.inputs))
    return lambda: torch.autograd.grad(program.call(*program.inputs), program.inputs, upstream)


@torch.no_grad()
def decoded(case: Case, entries: Mapping[str, Entry], device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Per token: all programs in turn in pieces of a hundred tokens; the first and the last tenth by themselves, and "at" each
    power of ten from 1000 the tokens from its half on."""
    piece, results = min(100, max(1, case.shape.tokens // 10)), {}
    pieces = case.shape.tokens // piece
    decoders: dict[str, Decoder] = {}
    for name, entry in entries.items():
        with _others_may_fail(name, "decode", say):
            if entry.decode is not None:
                decoder = entry.decode(case.shape, getattr(torch, case.dtype), device)
                decoder.step(decoder.start)
                decoders[name] = decoder
    states = {name: d.start for name, d in decoders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(pieces + 1):
        for name, decoder in decoders.items():

            def go(name: str = name, step: Callable[[Any], Any] = decoder.step) -> None:
                for _ in range(piece):
                    states[name] = step(states[name])

            seconds[name].append(measure.once(go, device) / piece)
    for name, each in seconds.items():
        each = each[1:]
        tenth = max(1, len(each) // 10)
        results[name] = {
            **measure.timing(each)._asdict(),
            "first_tenth": measure.timing(each[:tenth]).median,
            "last_tenth": measure.timing(each[-tenth:]).median,
            "at": {
                str(tokens): measure.timing(each[tokens // piece // 2 : tokens // piece]).median
                for tokens in (10**n for n in range(3, 10))
                if tokens <= case.shape.tokens
            },
            "operations": costs.operations(entries[name].kind, case, device.type),
            "bytes": costs.moved("linear", case, 4) * decoders[name].itemsize / 4,
        }
    return results


def growth(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Exponents of time and memory against T for every program that ran at three lengths or more; per mode."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for case in cases:
        if case["sweep"] == "tokens":
            for name, result in case["results"].items():
                key = f"{name}, {case['mode']}"
                points.setdefault(key, []).append((case["shape"][1], result["median"], result["peak_bytes"]))
    found = {}
    for key, known in points.items():
        if len(known) >= 3:
            tokens, times, memory = zip(*sorted(known), strict=True)
            found[key] = {
                "tokens": list(tokens),
                "time": measure.exponent(tokens, times),
                "memory": measure.exponent(tokens, memory),
            }
    return found


def environment(device: torch.device) -> dict[str, Any]:
    """What the run was made with."""
    from .. import __version__

    made: dict[str, Any] = {
        "gdssm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }
    if device.type == "cuda":
        made["gpu"] = torch.cuda.get_device_name(device)
        made["cuda"] = torch.version.cuda
    return made


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
