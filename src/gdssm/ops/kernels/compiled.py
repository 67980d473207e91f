"""Compiles shipped kernels without a GPU and reports what they use: registers, stack (spills), shared memory.

Neither this nor the interpreter finds a race between threads, and neither says how fast a kernel is.
"""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .shared import NUMBERS
from .shipped import Configuration, specialisation

ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes per block
_REGISTERS = 65536  # 32-bit registers of a multiprocessor
_SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}  # bytes of a multiprocessor
_WARPS = 64
_MULTIPLES = ("step", "head_step", "role_step")  # of 16, for the features listed
_COUNTS = (*NUMBERS, *_MULTIPLES, "features", "windows")


@dataclass(frozen=True)
class Resources:
    """Of one block: registers per thread, stack bytes per thread (0: no spills), shared bytes; blocks per multiprocessor."""

    registers: int
    stack: int
    shared: int
    warps: int
    blocks: int


def compile_kernel(c: Configuration, arch: int) -> tuple[bytes, dict[str, Any], int]:
    """The cubin, the metadata and the warps of a configuration for compute capability arch / 10."""
    made = specialisation(c)
    signature, attributes = {}, {}
    for index, name in enumerate(made.kernel.arg_names):
        if name in made.constants:
            signature[name] = "constexpr"
        elif name in _COUNTS:
            signature[name] = "i32"
        else:
            signature[name] = f"*{made.pointer(name)}"
        if signature[name].startswith("*") or name in _MULTIPLES:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(made.kernel, signature, constexprs=made.constants, attrs=attributes)
    options = {"num_warps": made.tile.warps, "num_stages": made.tile.stages, "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return built.asm["cubin"], built.metadata._asdict(), made.tile.warps


@functools.lru_cache
def _cuobjdump() -> str:
    return triton.knobs.nvidia.cuobjdump.path


def resources(c: Configuration, arch: int) -> Resources:
    """What a configuration uses on that architecture."""
    cubin, metadata, warps = compile_kernel(c, arch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        told = subprocess.run([_cuobjdump(), "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", told)[0]) for name in ("REG", "STACK"))
    shared = int(metadata["shared"])
    by_registers = _REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = _SHARED[arch] // (shared + 1024)
    return Resources(registers, stack, shared, warps, min(by_registers, by_shared, _WARPS // warps))
