"""The Triton backend without a GPU: its arithmetic under Triton's interpreter, and its kernels through Triton's compiler.

The interpreter must be chosen before Triton is imported, so it runs in a process of its own (interpreted.py); what that
prints is judged here. Neither interpreter nor compiler finds a race, and neither measures speed.
"""

import json
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import triton

from gdssm import GDSSM
from gdssm.ops import gd_scan, resolve_backend
from gdssm.ops.kernels import compiled, shipped, support, tiles
from gdssm.ops.kernels.compiled import Resources
from gdssm.ops.kernels.shipped import Configuration, fingerprint
from interpreted import CASES, name_of

TESTS = Path(__file__).parent
TOLERANCE = {"float32": 1e-5, "bfloat16": 8e-3, "float16": 2**-10}
SHIPPED = shipped.configurations()


@pytest.fixture(scope="module")
def lines():
    """What every case says of itself."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(TESTS / "interpreted.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_outputs_state_and_gradients_are_the_reference(lines, case):
    line = lines[name_of(case)]
    assert "failed" not in line, line
    gradients = {"d_tokens", "d_d" if case["layout"] != "queries" else "d_queries"}
    assert set(line["errors"]) >= {"out", "state", "tail"} | gradients
    assert max(line["errors"].values()) <= TOLERANCE[case["dtype"]], line


def test_the_cases_cover_every_two_options():
    """Every pair of a decay with every other option, and of rank, stride, dtype and state with one another."""
    columns = ("decay", "rank", "stride", "dtype", "state")
    for a in columns:
        for b in columns:
            if a < b:
                values = {(case[a], case[b]) for case in CASES}
                assert values == {(x[a], y[b]) for x in CASES for y in CASES}, (a, b)


OTHER_CASES = [("steps", 1e-5), ("long", 8e-3), ("wide", 1e-5), ("tiny", 1e-5), ("short", 0), ("compile", 0)]


@pytest.mark.parametrize(("case", "most"), OTHER_CASES)
def test_other_cases_are_the_reference(lines, case, most):
    """One token at a time; a hundred windows in bfloat16; 72 features; decays near 0; K = 0; torch.compile in one graph."""
    errors = lines[case]["errors"]
    assert errors
    for name, error in errors.items():
        assert error <= (8e-3 if name == "row out" and case == "steps" else most), (name, error)


def test_two_runs_are_equal_in_every_bit(lines):
    assert lines["twice"]["errors"]
    assert set(lines["twice"]["errors"].values()) == {0}


def test_the_custom_operators_pass_torchs_checks(lines):
    assert lines["opcheck"].get("errors") == {}, lines["opcheck"]


@pytest.mark.parametrize("case", [case for case in CASES if case["layout"] != "queries"], ids=name_of)
def test_what_is_launched_is_what_is_listed_as_shipped(lines, case):
    """Constants, types of pointers, tile and warps of every launch are those that are compiled without a GPU."""
    assert lines[name_of(case)]["launches"] >= 5
    assert lines[name_of(case)]["not listed"] == []


RECORD = json.loads((TESTS.parent / "docs" / "records" / "kernels.json").read_text(encoding="utf-8"))


def check(configuration, arch, found):
    assert found.stack == 0, f"{configuration} spills on sm_{arch}: {found}"
    assert found.shared <= compiled.SHARED_LIMIT[arch], (configuration, arch, found)
    assert found.blocks >= 1, (configuration, arch, found)


def test_the_record_has_every_kernel_as_it_is_now():
    """All shipped kernels for all architectures: no spills, shared memory within the part's limit.

    Where it fails: python benchmarks/kernel_resources.py --json docs/records/kernels.json
    """
    now = {str(c): fingerprint(c) for c in SHIPPED}
    assert {name: row["fingerprint"] for name, row in RECORD["kernels"].items()} == now
    for name, row in RECORD["kernels"].items():
        assert row.keys() == {"fingerprint", *map(str, compiled.ARCHITECTURES)}, name
        for arch in compiled.ARCHITECTURES:
            check(name, arch, Resources(*row[str(arch)]))
    page = (TESTS.parent / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert f"It has all {len(now) * len(compiled.ARCHITECTURES)} kernels" in page


def test_a_fingerprint_changes_with_the_tile_and_with_the_code_that_is_called(monkeypatch):
    c = Configuration("output_kernel", 64, "bfloat16", "head", 1)
    known = fingerprint(c)
    monkeypatch.setattr(tiles, "forward", lambda *sizes: tiles.Tiles(32, 32, 4))
    assert fingerprint(c) != known
    monkeypatch.undo()
    assert fingerprint(c) == known
    code = shipped._code("output_kernel")
    assert "def filtered(" in code
    assert "def step_kernel(" not in code
    assert "tiles overlap" not in code  # docstrings and comments do not count
    monkeypatch.setattr(shipped, "_code", lambda kernel: code + " ")
    assert fingerprint(c) != known


COMPILED = [
    (Configuration("output_kernel", 64, "bfloat16", "head", 1), 90),
    (Configuration("chunk_kernel", 128, "bfloat16", "head", 1), 80),
    (Configuration("chunk_kernel", 32, "float16", "input", 1), 90),
    (Configuration("state_kernel", 128, "bfloat16", "row", 1, "adjoint"), 100),
    (Configuration("carry_kernel", 0, "", "row", 0), 80),
    (Configuration("token_kernel", 32, "float32", "", 3), 90),
    (Configuration("step_kernel", 128, "bfloat16", "", 3, "weights=bfloat16 Z=float32"), 100),
]


def names(pairs):
    return [f"{configuration} sm_{arch}" for configuration, arch in pairs]


@pytest.mark.parametrize(("configuration", "arch"), COMPILED, ids=names(COMPILED))
def test_some_kernels_compile_without_a_gpu(configuration, arch):
    """Each kernel once; by the compiler that the record was made with they use what it says."""
    found = compiled.resources(configuration, arch)
    check(configuration, arch, found)
    recorded = RECORD["kernels"].get(str(configuration), {}).get(str(arch))
    if triton.__version__ == RECORD["triton"] and recorded is not None:
        assert list(astuple(found)) == recorded


EVERYTHING = [(c, arch) for c in SHIPPED for arch in compiled.ARCHITECTURES]


@pytest.mark.slow
@pytest.mark.parametrize(("configuration", "arch"), EVERYTHING, ids=names(EVERYTHING))
def test_every_shipped_kernel_compiles_without_a_gpu(configuration, arch):
    check(configuration, arch, compiled.resources(configuration, arch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"backend 'triton' takes CUDA tensors, got tokens on cpu; backend 'chunked' takes them"),
        ({"log_decay": torch.zeros(2, 3, 3)}, "takes decay none, head, row or input, got full; backend 'chunked' takes it"),
        ({"structure": "full", "log_decay": torch.zeros(2, 3, 3)}, "takes decay none, head, row or input, got full"),
        ({"tokens": torch.ones(2, 5, 2, 129)}, "takes D from 1 to 128 features, got 129; backend 'chunked' takes it"),
        ({"w_q": torch.ones(2, 9, 9), "d": torch.ones(2, 9)}, "takes windows of at most 8 tokens, got 9"),
        ({"tokens": torch.ones(2, 5, 2, 3).double()}, "bfloat16, float16 or float32 tokens and weights, got torch.float64"),
        ({"w_q": torch.ones(2, 3, 3).double()}, "bfloat16, float16 or float32 tokens and weights, got torch.float64"),
    ],
)
def test_what_the_kernels_do_not_take_is_named(changes, message):
    arguments = {"tokens": torch.ones(2, 5, 2, 3), "w_q": torch.ones(2, 3, 3), "log_decay": None, "d": torch.ones(2, 3)} | changes
    with pytest.raises(ValueError, match=message):
        gd_scan(**arguments, backend="triton")


def test_a_missing_triton_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(support, "INSTALLED", False)
    with pytest.raises(ImportError, match=r"needs Triton, which is not installed: pip install 'gdssm\[kernels\]'"):
        gd_scan(torch.ones(1, 5, 2, 3), torch.ones(2, 3, 3), None, torch.ones(2, 3), backend="triton")


def test_auto_is_the_kernels_where_they_are_not_refused():
    assert resolve_backend("auto", None) == "triton"
    assert resolve_backend("auto", "some reason") == resolve_backend("auto") == "chunked"
    assert GDSSM(4, decay="head", backend="triton").backend == "triton"


def test_choosing_another_backend_imports_no_triton():
    code = """
import sys, torch
from gdssm.ops import gd_scan
gd_scan(torch.ones(1, 5, 2, 3), torch.ones(2, 3, 3), None, torch.ones(2, 3))
print([name for name in ("triton", "gdssm.ops.kernels.scan") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
