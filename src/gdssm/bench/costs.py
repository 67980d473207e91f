"""Operations and bytes of each program, derived. No torch here.

Per token and head, with chunks of c tokens, D features, W taps, n slots of the gate (1 for u v^T, W for full rank):

    linear     forward 4 c D + 4 D^2: scores, their product with values, what a chunk adds, reading the state.
               backward 8 c D + 8 D^2 in plain torch, which keeps the scores, and 2 c D more where they are formed again
    filters    as linear with its filters on a GPU; in plain torch, per window, forward 2 W (2 n + 1) D + 4 n c D
               + (2 n + 2) D^2, backward 6 W (2 n + 1) D + 8 n c D + (6 n + 4) D^2: the backward pass forms keys, values,
               queries and states again, and keeps the scores
    softmax    forward 2 T D (the causal half), backward 2.5 times that
    mamba      per channel, state N = 16: forward 9 N + 6 H D + 4 N, backward twice that

A multiplication and an addition are two operations. Masked halves of chunks count, for they are computed. Bytes are the
least there is to move: every input and output once in the forward pass; in the backward pass the inputs and the gradient of
the output read, the gradients of the inputs written. Decoding reads and writes the state.
"""

from .cases import WIDTH, Case

CHUNKS = {"linear": 128, "linear-filters": 128}  # of plain torch; else 64
STATE = 16
STREAMS = {"linear": 3, "streams": 3, "softmax": 3}  # else 1


def operations(kind: str, case: Case, device: str) -> float:
    """Floating-point operations of one call (decode: of one token)."""
    shape, d, w = case.shape, case.shape.features, WIDTH
    if case.mode == "decode":
        return shape.batch * shape.heads * (5 * d * d + (6 * w * d if kind == "filters" else 0))
    c = CHUNKS.get(kind, 64) if device == "cpu" else 64
    width = shape.heads * d
    n = w if kind.startswith("full") else 1
    each = {
        "linear": (4 * c * d + 4 * d * d, (8 if device == "cpu" else 10) * c * d + 8 * d * d),
        "softmax": (2 * shape.tokens * d, 5 * shape.tokens * d),
        "mamba": (d * (13 * STATE + 6 * width), 2 * d * (13 * STATE + 6 * width)),
    }
    each["linear-filters"] = (each["linear"][0] + 6 * w * d, each["linear"][1] + 12 * w * d)
    stride = 2 if kind in ("full-stride2", "streams") else 1
    own = _windows(d, w, n, stride) if device == "cpu" else each["linear-filters"]
    forward, backward = each.get(kind, own)
    if kind == "streams":  # two tokens of its stream are one of the others
        forward, backward = (2 * forward, 2 * backward) if device == "cpu" else each["linear"]
    return shape.batch * shape.tokens * shape.heads * (forward + (backward if case.mode == "training" else 0))


def moved(kind: str, case: Case, itemsize: int) -> float:
    """Least bytes of one call (decode: of one token, state in float64 for this library's plain torch, else float32)."""
    shape = case.shape
    if case.mode == "decode":
        state = shape.batch * shape.heads * shape.features**2
        return 2 * state * (8 if kind == "filters" else 4)
    inputs = STREAMS.get(kind, 1) * shape.numbers * itemsize
    outputs = shape.numbers * itemsize * (0.5 if kind == "full-stride2" else 1)
    return inputs + outputs if case.mode == "forward" else 3 * inputs + 2 * outputs


def _windows(d: int, w: int, n: int, stride: int) -> tuple[float, float]:
    """Forward and backward of the plain-torch scan, per token."""
    c, filters = 64 if n == 1 else 32, 2 * w * (2 * n + 1) * d
    forward = filters + 4 * n * c * d + (2 * n + 2) * d * d
    backward = 3 * filters + 8 * n * c * d + (6 * n + 4) * d * d
    return forward / stride, backward / stride
