"""Runs the kernels under Triton's interpreter, in a process of its own, and prints one JSON line per case.

    TRITON_INTERPRET=1 python tests/interpreted.py [case ...]

Each case is gd_scan's outputs, last state and the gradient of every input against the reference backend in float64 on the
same numbers, as ratios of root mean squares. tests/test_kernels.py runs this and judges the lines. The interpreter runs one
program after another, so it shows neither races nor speed.
"""

import json
import math
import sys
import time
from itertools import pairwise

import torch

from gdssm.ops import ScanState, gd_scan
from gdssm.ops.kernels import launch, shipped, tiles
from gdssm.ops.kernels.shipped import Configuration, specialisation
from plain import log_decay_shape, ratio

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIELDS = ("decay", "rank", "stride", "dtype", "state", "layout", "tokens", "features", "per_segment")
# A covering array: every two options of the first five columns meet in a case, and every value of the others is in one.
# state: what the call starts from, nothing, a Z, or a Z and a tail. per_segment: chunks per segment of the large kernels, 0
# for what they choose.
CASES = [
    dict(zip(FIELDS, values, strict=True))
    for values in [
        ("none", 1, 2, "float32", "z", "batch", 37, 16, 0),
        ("none", 1, 1, "bfloat16", "nothing", "packed", 20, 16, 1),
        ("none", 3, 1, "float16", "tail", "queries", 9, 16, 1),
        ("head", 3, 2, "float32", "nothing", "shared", 37, 16, 1),
        ("head", 1, 2, "bfloat16", "tail", "lengths", 15, 20, 0),
        ("head", 1, 1, "float16", "z", "batch", 9, 32, 0),
        ("row", 1, 2, "float32", "tail", "shared", 37, 16, 1),
        ("row", 3, 1, "bfloat16", "z", "queries", 11, 16, 0),
        ("row", 1, 2, "float16", "nothing", "packed", 15, 16, 0),
        ("input", 3, 1, "float32", "z", "packed", 24, 16, 1),
        ("input", 1, 1, "bfloat16", "tail", "batch", 19, 16, 1),
        ("input", 1, 2, "float16", "nothing", "lengths", 13, 16, 0),
    ]
]
OTHERS = ("steps", "twice", "long", "wide", "tiny", "short", "opcheck", "compile")


def name_of(case):
    return "-".join(str(case[field]) for field in FIELDS)


def windows_of(case, begins, seen, width):
    """Windows that each sequence completes."""
    sizes = [stop - begin for begin, stop in pairwise(begins)]
    count = lambda n: max(0, (n - width) // case["stride"] + 1)  # noqa: E731
    return [count(seen + n) - count(seen) for n in sizes]


def draw(case, low=0.4, width=3):
    """Inputs with their gradients wanted, in float64 with every number representable in the case's dtype."""
    g = torch.Generator().manual_seed(case["tokens"])
    dtype, features, n_tokens, layout = DTYPES[case["dtype"]], case["features"], case["tokens"], case["layout"]
    heads, batch = 1 if layout == "batch" else 2, 2 if layout == "lengths" else 1
    packed = layout == "packed"
    begins = [0, 1, n_tokens - 4, n_tokens] if packed else [0, n_tokens]
    sequences = len(begins) - 1 if packed else batch
    seen = {"nothing": 0, "z": 0, "tail": 5}[case["state"]]
    counts = windows_of(case, begins, seen, width)
    count = sum(counts) if packed else counts[0]

    def normal(*shape):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) / 2).to(dtype).double()

    leaves = {"tokens": normal(batch, n_tokens, 1 if layout == "shared" else heads, features)}
    leaves |= {"u": normal(heads, width), "v": normal(heads, width)} if case["rank"] == 1 else {"w_q": normal(heads, width, width)}
    leaves |= {"queries": normal(batch, count, heads, features)} if layout == "queries" else {"d": normal(heads, width)}
    shape = log_decay_shape(case["decay"], batch, count, heads, features)
    if shape is not None:
        leaves["log_decay"] = (torch.rand(shape, generator=g, dtype=torch.float64) * math.log(low)).to(dtype).double()
    if case["state"] != "nothing":
        leaves["z"] = torch.randn(sequences, heads, features, features, generator=g, dtype=torch.float64) / 2
    if case["state"] == "tail":
        leaves["tail"] = normal(sequences, width - 1, heads, features)
    options = {"lengths": torch.tensor([n_tokens - 7, n_tokens])} if layout == "lengths" else {}
    options |= {"cu_seqlens": torch.tensor(begins)} if packed else {}
    upstream = normal(batch, count, heads, features), torch.randn(sequences, heads, features, features, generator=g).double()
    return leaves, {"stride": case["stride"], "structure": case["decay"], **options}, seen, upstream


def run(leaves, options, seen, upstream, dtype, backend):
    """Outputs, last Z, and the gradients for sum(out * g) + sum(Z * g_z)."""
    inputs = {name: (t if name == "z" else t.to(dtype)).clone().requires_grad_() for name, t in leaves.items()}
    state = None
    if "z" in inputs:
        z = inputs["z"]
        width = (inputs["u"] if "u" in inputs else inputs["w_q"]).shape[1]
        tail = inputs.get("tail", torch.zeros(len(z), width - 1, *z.shape[1:3], dtype=dtype))
        state = ScanState(z, tail, torch.full((len(z),), seen))
    gate = (inputs["u"], inputs["v"]) if "u" in inputs else inputs["w_q"]
    out, after = gd_scan(
        inputs["tokens"],
        gate,
        inputs.get("log_decay"),
        inputs.get("d"),
        queries=inputs.get("queries"),
        state=state,
        backend=backend,
        **options,
    )
    loss = (out * upstream[0].to(out.dtype)).sum() + (after.z * upstream[1]).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"out": out, "state": after.z, "tail": after.tail} | {f"d_{n}": x for n, x in zip(inputs, gradients, strict=True)}


class Watched:
    """A kernel that notes how it is launched, in the words of shipped.Specialisation."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def call(*arguments, **options):
            values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | options
            types = {n: shipped.TYPES[str(v.dtype)[6:]] for n, v in values.items() if torch.is_tensor(v) and v.is_floating_point()}
            constants = {n: v for n, v in options.items() if n in self.kernel.arg_names}
            size = constants.get("C", constants.get("CT", 1)), constants.get("BV", constants.get("BLOCK", constants.get("BD")))
            tile = tiles.Tiles(*size, options["num_warps"], options["num_stages"])
            self.launches.append(str(shipped.Specialisation(self.kernel, constants, types, tile)))
            return self.kernel[grid](*arguments, **options)

        return call


def watch():
    """A list that will hold every launch."""
    launches = []
    for name in ("output_kernel", "state_kernel", "carry_kernel", "chunk_kernel", "token_kernel"):
        setattr(launch, name, Watched(getattr(launch, name), launches))
    return launches


def listed(case):
    """What shipped.py says that a call of this kind may launch."""
    decay = "head" if case["decay"] == "none" else case["decay"]
    found = [Configuration("carry_kernel", 0, "", decay, 0)]
    for kernel, variant in (
        ("output", ""),
        ("state", ""),
        ("state", "backward"),
        ("state", "adjoint"),
        ("chunk", ""),
        ("token", ""),
    ):
        rank = 1 if variant == "adjoint" else case["rank"]
        for stride in (1, 2):
            found.append(Configuration(f"{kernel}_kernel", case["features"], case["dtype"], decay, rank, variant, stride))
    return {str(specialisation(c)) for c in found}


def compared(case, **how):
    leaves, options, seen, upstream = draw(case, **how)
    wanted = run(leaves, options, seen, upstream, torch.float64, "reference")
    tiles_of = tiles.segments
    if case["per_segment"]:
        launch.tiles.segments = lambda *sizes: case["per_segment"]
    try:
        got = run(leaves, options, seen, upstream, DTYPES[case["dtype"]], "triton")
    finally:
        launch.tiles.segments = tiles_of
    assert got["out"].dtype == got["d_tokens"].dtype == DTYPES[case["dtype"]]
    assert got["state"].dtype == torch.float64
    return {name: ratio(got[name], wanted[name]) for name in wanted}


def steps():
    """Token by token from nothing, each call one launch once there are W - 1 tokens, for all structures of decay."""
    found = {}
    for decay, rank, dtype in (("none", 1, "float32"), ("head", 3, "float32"), ("row", 1, "bfloat16"), ("input", 3, "float32")):
        case = dict(zip(FIELDS, (decay, rank, 1, dtype, "nothing", "shared", 6, 16, 0), strict=True))
        leaves, options, _, _ = draw(case)
        exact = {name: t for name, t in leaves.items() if name != "tokens"}
        own = {name: t.to(DTYPES[dtype]) for name, t in exact.items()}

        def go(tokens, weights, state, backend, at, options=options):
            log = weights.get("log_decay")
            if log is not None and options["structure"] == "input":
                log = log[:, at]
            gate = (weights["u"], weights["v"]) if "u" in weights else weights["w_q"]
            return gd_scan(tokens, gate, log, weights["d"], state=state, backend=backend, **options)

        wanted, last = go(leaves["tokens"], exact, None, "reference", slice(None))
        outputs, state = [], None
        for t in range(6):
            k = max(0, t - 2)
            at = slice(k, k + (t >= 2))
            out, state = go(leaves["tokens"][:, t : t + 1].to(DTYPES[dtype]), own, state, "triton", at)
            outputs.append(out)
        found |= {
            f"{decay} out": ratio(torch.cat(outputs, 1), wanted),
            f"{decay} state": ratio(state.z, last.z),
            f"{decay} tail": ratio(state.tail, last.tail),
        }
        assert state.seen.tolist() == [6]
    return found


def twice():
    """Two runs, the number of values that differ in any bit."""
    case = CASES[2]
    leaves, options, seen, upstream = draw(case)
    first, second = (run(leaves, options, seen, upstream, DTYPES[case["dtype"]], "triton") for _ in range(2))
    return {name: int((first[name] != second[name]).sum()) for name in first}


def long():
    """bfloat16 over more than a hundred windows."""
    return compared(dict(zip(FIELDS, ("input", 1, 1, "bfloat16", "z", "shared", 105, 16, 0), strict=True)), low=0.8)


def wide():
    """Outputs and last state with more than 64 features, where scores are summed over few features at a time."""
    case = dict(zip(FIELDS, ("head", 1, 1, "float32", "nothing", "batch", 6, 72, 0), strict=True))
    leaves, options, _, _ = draw(case)
    found = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        tokens, u, v, d, log = (leaves[name].to(dtype) for name in ("tokens", "u", "v", "d", "log_decay"))
        out, state = gd_scan(tokens, (u, v), log, d, backend=backend, **options)
        found.append((out, state.z))
    return {name: ratio(got, wanted) for name, got, wanted in zip(("out", "state"), *found, strict=True)}


def tiny():
    """Decays that forget at once beside others that do not: nothing overflows, gradients stay finite."""
    found = {}
    for decay in ("head", "row", "input"):
        case = dict(zip(FIELDS, (decay, 1, 1, "float32", "z", "batch", 9, 16, 0), strict=True))
        leaves, options, seen, upstream = draw(case)
        leaves["log_decay"].view(-1)[::2] = -800.0
        wanted = run(leaves, options, seen, upstream, torch.float64, "reference")
        got = run(leaves, options, seen, upstream, torch.float32, "triton")
        found |= {f"{decay} {name}": ratio(got[name], wanted[name]) for name in wanted}
    return found


def short():
    """Fewer tokens than a window: no outputs, the state goes on."""
    tokens, z = torch.randn(1, 2, 2, 16), torch.randn(1, 2, 16, 16, dtype=torch.float64)
    state = ScanState(z, torch.zeros(1, 2, 2, 16), torch.zeros(1, dtype=torch.int64))
    out, after = gd_scan(tokens, torch.ones(2, 3, 3), None, torch.ones(2, 3), state=state, backend="triton")
    assert out.shape == (1, 0, 2, 16)
    assert after.seen.tolist() == [2]
    return {"state": ratio(after.z, z), "tail": ratio(after.tail, tokens)}


def small_arguments():
    leaves, _, _, _ = draw(dict(zip(FIELDS, ("head", 1, 1, "float32", "z", "batch", 5, 16, 0), strict=True)))
    u, v = (leaves[name].float().unsqueeze(1).contiguous() for name in ("u", "v"))
    stream, d, log, z = leaves["tokens"][0].float(), leaves["d"].float(), leaves["log_decay"].float(), leaves["z"]
    return [stream, u, v, d, None, log, z, None, 0, 3, 3, tiles.KINDS["head"], False, 1]


def opcheck():
    """torch's own checks of the custom operators: schema, fake implementation, autograd, tracing."""
    from gdssm.ops.kernels import decode, operator

    arguments = small_arguments()
    leaves = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(operator.scan, leaves)
    traced = ("test_schema", "test_faketensor")  # neither is differentiated
    grad, grad_end = torch.ones(3, 1, 16), torch.ones(1, 1, 16, 16, dtype=torch.float64)
    torch.library.opcheck(operator.scan_backward, [grad, grad_end, True, True, *arguments], test_utils=traced)
    stream, u, v, d, _, log, z = arguments[:7]
    token, tail = stream[None, 2:3], stream[None, :2]
    torch.library.opcheck(decode.step, [token, tail, u[:, 0], v[:, 0], d, None, log, z, tiles.KINDS["head"]], test_utils=traced)
    return {}


def compile():
    """torch.compile through gd_scan in one graph: outputs and a gradient are those without it."""
    stream, u, v, d, _, log, _ = small_arguments()[:7]

    def outputs(tokens, u, v, log, d):
        return gd_scan(tokens, (u, v), log, d, backend="triton", structure="head")[0]

    found = []
    for function in (outputs, torch.compile(outputs, backend="aot_eager", fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in (stream[None], u[:, 0], v[:, 0], log, d)]
        out = function(*leaves)
        found.append([out.detach(), *torch.autograd.grad((out**2).sum(), leaves)])
    return {str(i): ratio(a, b) for i, (a, b) in enumerate(zip(*found, strict=True))}


def main(chosen):
    launches = watch()
    cases = {name_of(case): case for case in CASES}
    known = {name_of(case): (lambda case=case: compared(case)) for case in CASES} | {name: globals()[name] for name in OTHERS}
    for name in chosen or known:
        begin = time.perf_counter()
        launches.clear()
        try:
            line = {"errors": known[name]()}
        except Exception as error:
            line = {"failed": f"{type(error).__name__}: {error}"[-2000:]}
        if name in cases and cases[name]["layout"] != "queries":  # shipped.py lists none of those at window 3
            line["launches"] = len(launches)
            line["not listed"] = sorted(set(launches) - listed(cases[name]))
        print(json.dumps({"case": name, "seconds": round(time.perf_counter() - begin, 1), **line}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
