"""What ships: every specialisation of a kernel that the launches choose for the shapes below, and a fingerprint of each.

Window 3, at any stride; of separate queries, keys and values window 2 at stride 2. D = 32, 64, 128: other D are padded to
these with masked columns, other windows have more or fewer taps, and neither is listed.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl

from . import backward, decode, forward, tiles

FEATURES = (32, 64, 128)
TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
_TOKENS = ("bfloat16", "float16", "float32")
_KERNELS = {
    kernel.__name__: kernel
    for kernel in (
        forward.output_kernel,
        forward.state_kernel,
        forward.carry_kernel,
        backward.chunk_kernel,
        backward.token_kernel,
        decode.step_kernel,
    )
}


@dataclass(frozen=True)
class Configuration:
    """One specialisation. rank 1: factors (u, v); else a full gate. variant: see configurations. stride: of token_kernel."""

    kernel: str
    features: int
    dtype: str
    decay: str
    rank: int
    variant: str = ""
    stride: int = 1

    def __str__(self) -> str:
        rank = f"rank {self.rank}" if self.rank else ""
        stride = "stride 2" if self.stride == 2 else ""
        size = f"D={self.features}" if self.features else ""
        return " ".join(part for part in (self.kernel, self.variant, size, self.dtype, self.decay, rank, stride) if part)


@dataclass(frozen=True)
class Specialisation:
    """A kernel, its constants, the types of its pointers (float32 where none is given), and its tile."""

    kernel: Any
    constants: dict[str, Any]
    types: dict[str, str]
    tile: tiles.Tiles

    def pointer(self, name: str) -> str:
        """Triton's name of what an argument points to."""
        return "i64" if name == "table" else self.types.get(name, "fp32")

    def __str__(self) -> str:
        own = [(name, str(self.constants.get(name, self.pointer(name)))) for name in self.kernel.arg_names]
        return f"{self.kernel.__name__} {own} {self.tile}"


def configurations() -> list[Configuration]:
    """Each specialisation once, under the first name that it has."""
    first: dict[str, Configuration] = {}
    for c in _named():
        first.setdefault(str(specialisation(c)), c)
    return list(first.values())


def _named() -> Iterator[Configuration]:
    """state_kernel: what segments add in the forward pass, "backward" states at chunk starts and what segments add there, and
    "adjoint", which no gate enters. step_kernel: dtypes of the weights and of Z. "streams": separate queries, keys, values."""
    for features in FEATURES:
        for dtype in _TOKENS:
            for rank in (1, 3):
                for stride in (1, 2):
                    yield Configuration("token_kernel", features, dtype, "", rank, "", stride)
                for weights in dict.fromkeys((dtype, "float32")):
                    for z in ("float32", "float64"):
                        yield Configuration("step_kernel", features, dtype, "", rank, f"weights={weights} Z={z}")
            for decay in tiles.KINDS:
                for rank in (1, 3):
                    yield Configuration("output_kernel", features, dtype, decay, rank)
                    yield Configuration("state_kernel", features, dtype, decay, rank)
                    yield Configuration("state_kernel", features, dtype, decay, rank, "backward")
                    yield Configuration("chunk_kernel", features, dtype, decay, rank)
                yield Configuration("state_kernel", features, dtype, decay, 1, "adjoint")
    for features in (64, 128):
        for dtype in ("bfloat16", "float32"):
            for kernel in ("output_kernel", "state_kernel", "chunk_kernel"):
                yield Configuration(kernel, features, dtype, "head", 1, "streams")
            yield Configuration("state_kernel", features, dtype, "head", 1, "streams backward")
            yield Configuration("state_kernel", features, dtype, "head", 1, "streams adjoint")
            yield Configuration("token_kernel", features, dtype, "", 1, "streams", 2)
    for decay in tiles.KINDS:
        yield Configuration("carry_kernel", 0, "", decay, 0)


def specialisation(c: Configuration) -> Specialisation:
    """What the launches make of a configuration."""
    streams = "streams" in c.variant
    kind, half, own = tiles.KINDS.get(c.decay, 0), c.dtype == "bfloat16", TYPES.get(c.dtype, "")
    stored = "bf16" if half else "fp32"
    shapes: dict[str, Any] = {"RANK": c.rank, "UNIT": c.rank > 1, "W": 2 if streams else 3, "D": c.features, "QUERIES": streams}
    if c.kernel == "carry_kernel":
        wide = dict.fromkeys(("local", "start", "segment_starts", "end"), "fp64")
        return _made(c, {"KIND": kind, "BLOCK": tiles.CARRIED.columns}, wide, tiles.CARRIED)
    shapes["BD"] = tiles.padded(c.features)
    if c.kernel == "token_kernel":
        tile = tiles.tokens(c.features, c.rank > 1)
        types = {"d_query": own if streams else stored, "d_roles": stored, "d_stream": own}
        return _made(c, {**shapes, "CT": tile.chunk, "STRIDE": c.stride}, types, tile)
    if c.kernel == "step_kernel":
        tile = tiles.decode(c.features)
        weights, z = (TYPES[part.partition("=")[2]] for part in c.variant.split())
        types = {"token": own, "queries": own, "out": own, "z": z, "after": z} | dict.fromkeys(("u", "v", "d", "log"), weights)
        return _made(c, {**shapes, "BV": tile.columns}, types, tile)
    tile = tiles.forward(c.features, kind, half, c.rank > 1)
    if c.kernel == "chunk_kernel" or c.variant.endswith(("backward", "adjoint")):
        tile = tiles.backward(c.features, kind, half, c.rank > 1)
    if c.kernel == "state_kernel":
        tile = tiles.states(tile, c.features, kind, c.dtype == "float32")
        adjoint = c.variant.endswith("adjoint")
        shapes |= {"REVERSE": adjoint, "QUERIES": adjoint and streams}
    constants = {**shapes, "KIND": kind, "C": tile.chunk, "BV": tile.columns, "WP": triton.next_power_of_2(shapes["W"])}
    constants |= {"OP": tl.bfloat16 if half else tl.float32, "IP": "tf32x3" if c.dtype == "float32" else "tf32"}
    types = dict.fromkeys(("stream", "queries", "right", "grad", "out"), own) | {"start": "fp64", "end": "fp64"}
    types |= dict.fromkeys(("chunk_states", "states", "adjoints", "d_roles"), stored) | {"d_query": own if streams else stored}
    return _made(c, constants, types, tile)


def _made(c: Configuration, constants: dict[str, Any], types: dict[str, str], tile: tiles.Tiles) -> Specialisation:
    kernel = _KERNELS[c.kernel]
    return Specialisation(kernel, {name: value for name, value in constants.items() if name in kernel.arg_names}, types, tile)


def fingerprint(c: Configuration) -> str:
    """Changes with the kernel's code or that of what it calls, comments aside, with its constants, types and tile."""
    return hashlib.sha256(f"{_code(c.kernel)} {specialisation(c)}".encode()).hexdigest()[:12]


def _decorators(node: ast.FunctionDef) -> list[ast.expr]:
    """Of a function, without their arguments."""
    return [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]


@functools.lru_cache
def _definitions() -> dict[str, ast.stmt]:
    """Top-level device functions and constants of the modules of kernels, without docstrings."""
    found: dict[str, ast.stmt] = {}
    for name in ("shared", "forward", "backward", "decode"):
        for node in ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, _decorators(node)):
                if ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
                found[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node
    return found


@functools.lru_cache
def _code(kernel: str) -> str:
    """The source of a kernel and of everything it names, one after another."""
    names, seen = [kernel], dict[str, None]()
    while names:
        name = names.pop()
        if name not in seen and name in _definitions():
            seen[name] = None
            names += sorted({node.id for node in ast.walk(_definitions()[name]) if isinstance(node, ast.Name)})
    return "\n".join(ast.unparse(_definitions()[name]) for name in seen)
