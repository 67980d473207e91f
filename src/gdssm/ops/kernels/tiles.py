"""Tile sizes: chunk length, columns of Z per program, warps. Needs no Triton.

Chosen from the compiler's report (docs/kernels.md): no register spills and shared memory within the smallest part's limit.
"""

from dataclasses import dataclass

KINDS = {"head": 1, "row": 2, "input": 3}  # no decay is one per head that is 1
LARGEST = 128  # features
WIDEST = 8  # tokens per window
SEGMENTS_PER_PROCESSOR = 2


@dataclass(frozen=True)
class Tiles:
    """One kernel's tile: C windows, BV columns of Z, and how many warps work on it."""

    chunk: int
    columns: int
    warps: int
    stages: int = 1

    def options(self) -> dict[str, object]:
        """What the compiler is told."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


CARRIED = Tiles(1, 1024, 4)  # of carry_kernel: numbers of Z per program


def padded(features: int) -> int:
    """The power of two, at least 32, that holds these features."""
    return max(32, 1 << (features - 1).bit_length())


def forward(features: int, kind: int, half: bool, full: bool) -> Tiles:
    """Tiles of output_kernel, and of state_kernel in front of it. full: a gate of a rank above 1."""
    size = padded(features)
    if half:
        columns = size if size <= 64 else 16 if full and kind == KINDS["input"] else 32
        return Tiles(32 if size <= 64 and kind == KINDS["head"] else 16, columns, 4)
    head = kind == KINDS["head"]
    if size <= 64:
        return Tiles(16, 32, 2 if size <= 32 and full and head else 4)
    return Tiles(16, 8, 4) if head and not full else Tiles(16, 16, 8)


def backward(features: int, kind: int, half: bool, full: bool) -> Tiles:
    """Tiles of chunk_kernel."""
    row, own = kind == KINDS["row"], kind == KINDS["input"]
    if half and not row:
        return Tiles(32, 32, 4 if features <= 32 or (full and kind == KINDS["head"]) else 2)
    if full and own and features > 64:
        return Tiles(16, 16, 2)
    if full:
        return Tiles(16, 32, 4 if row and features > 32 and not half else 2)
    return Tiles(16, 16, 2 if own and features <= 32 else 1)


def states(tile: Tiles, features: int, kind: int, exact: bool) -> Tiles:
    """Tiles of the state_kernels in front of an output_kernel or a chunk_kernel of this tile: its chunks. exact: float32 tokens."""
    if padded(features) > 64:
        return Tiles(tile.chunk, 32, 8 if tile.chunk == 32 or (exact and kind == KINDS["input"]) else 4)
    return Tiles(tile.chunk, 32, 8 if tile.chunk == 16 and padded(features) == 64 else 4)


def tokens(features: int, full: bool) -> Tiles:
    """Tiles of token_kernel, of about 2048 numbers: the chunk is its tokens."""
    return Tiles(max(16, 2048 // padded(features)), padded(features), 8 if full else 4)


def across(features: int, tile: Tiles) -> int:
    """Programs side by side that have all columns."""
    return -(-features // tile.columns)


def segments(programs: int, chunks: int, processors: int) -> int:
    """Chunks per segment, so that about SEGMENTS_PER_PROCESSOR programs run on every processor."""
    wanted = max(1, -(-SEGMENTS_PER_PROCESSOR * processors // max(1, programs)))
    return max(1, -(-chunks // min(wanted, max(1, chunks))))


def decode(features: int) -> Tiles:
    """Tiles of step_kernel: few columns each, so that one sequence of few heads still fills a device."""
    return Tiles(1, min(padded(features), 16), 8 if features > 64 else 4 if features > 32 else 1)
