"""`gdssm bench`: its arithmetic, what a record holds, peers that are missing, and wrong use. Sizes are tiny."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gdssm import cli
from gdssm.bench import cases, command, costs, measure, peers, report, suite
from gdssm.bench.cases import Case, Preset, Shape
from gdssm.bench.programs import OWN, Entry

CPU = torch.device("cpu")
TINY = Preset(
    (
        Case("training", Shape(1, 70, 2, 8)),
        *(Case("forward", Shape(1, t, 1, 8), "float32", "tokens") for t in (64, 128, 256)),
        Case("decode", Shape(1, 20, 1, 8)),
    ),
    seconds=0.01,
    rounds=3,
    copy_mib=1,
    matmul=64,
    long=Case("forward", Shape(1, 300, 1, 8)),
)


def run(*arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return (int(stop.value.code or 0), *capsys.readouterr())


def test_exponents_of_known_curves():
    xs = [10, 100, 1000, 10000]
    assert measure.exponent(xs, [3 * x for x in xs]) == pytest.approx(1)
    assert measure.exponent(xs, [0.1 * x**1.5 for x in xs]) == pytest.approx(1.5)
    assert measure.exponent([1, 2], [1, 4]) == pytest.approx(2)
    for bad in (([1], [1]), ([2, 2], [1, 2]), ([1, 2], [0, 1]), ([1, 2], [1])):
        with pytest.raises(ValueError, match="two or more positive points"):
            measure.exponent(*bad)


def test_medians_and_quartiles():
    assert measure.timing([3.0, 1.0]) == (2.0, 1.0, 3.0, 2)
    assert measure.timing([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0, 4.0, 5)


def test_peak_memory_counts_what_is_held_at_once():
    """Two of 4 MB at once at most: the first sum is released before the third is made."""
    x = torch.ones(1_000_000)

    def call():
        y = x + 1
        y = y + 1
        return y.sum()

    assert measure.peak_bytes(call, CPU) == pytest.approx(8e6, rel=0.01)


def test_programs_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times, memory = measure.in_turn(calls, CPU, seconds=10, rounds=3)
    assert order == [*"ab", *"ababab"]
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}
    assert set(memory) == {"a", "b"}


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_operations_of_linear_attention_are_what_torch_counts(mode):
    case = Case(mode, Shape(2, 512, 3, 64))
    call = suite.call_of(peers.linear(case.shape, torch.float32, CPU), mode)
    with FlopCounterMode(display=False) as counter:
        call()
    assert costs.operations("linear", case, "cpu") == counter.get_total_flops()


def test_operations_by_hand():
    """Linear attention at c = 128: scores, their product with values, what a chunk adds, reading the state."""
    case = Case("forward", Shape(2, 256, 3, 16))
    assert costs.operations("linear", case, "cpu") == 2 * 256 * 3 * (4 * 128 * 16 + 4 * 16 * 16)
    assert costs.operations("softmax", case, "cpu") == 2 * 256 * 3 * 2 * 256 * 16
    c, d = 64, 64  # a window of the scan: three filters, scores, outputs, what it adds, reading the state
    window = 3 * 2 * 3 * d + 2 * c * d + 2 * c * d + 2 * d * d + 2 * d * d
    assert costs.operations("filters", Case("forward", Shape(2, 620, 3, 64)), "cpu") == 2 * 620 * 3 * window
    assert costs.operations("linear", Case("decode", Shape(2, 9, 3, 16)), "cpu") == 2 * 3 * 5 * 256


def test_bytes_are_every_input_and_output_once():
    forward, training = (Case(mode, Shape(1, 100, 2, 8)) for mode in ("forward", "training"))
    assert costs.moved("filters", forward, 4) == 2 * 1600 * 4
    assert costs.moved("linear", forward, 2) == 4 * 1600 * 2
    assert costs.moved("filters", training, 4) == 5 * 1600 * 4
    assert costs.moved("full-stride2", forward, 4) == 1.5 * 1600 * 4
    assert costs.moved("linear", Case("decode", Shape(3, 9, 2, 8)), 2) == 2 * 3 * 2 * 64 * 4


@pytest.mark.parametrize("name", ["gdssm", "gdssm-full", "gdssm-stride2", "gdssm-streams", "linear", "linear-filters", "sdpa"])
def test_programs_are_their_definitions(name):
    check = suite.checked(name, {**OWN, **peers.PEERS}[name], "float32", CPU, Shape(2, 21, 2, 4))
    assert max(check["outputs"], check["gradients"]) <= 1e-5
    assert check["ok"]


def test_a_wrong_program_is_found_and_not_timed(monkeypatch):
    entry = peers.PEERS["linear"]

    def wrong(*arguments):
        program = entry.build(*arguments)
        return program._replace(call=lambda *inputs: 1.1 * program.call(*inputs))

    monkeypatch.setitem(suite.PEERS, "linear", entry._replace(build=wrong))
    said = []
    record = suite.run(dataclasses.replace(TINY, long=None), "tiny", ("linear",), CPU, said.append)
    assert any("off by 1.0e-01; not timed" in line for line in said)
    assert "linear" not in record["cases"][0]["results"]


def test_an_exception_of_another_library_is_said_and_the_run_goes_on(monkeypatch):
    def no_kernel(*arguments):
        raise RuntimeError("no kernel image\nand much more")

    monkeypatch.setitem(suite.PEERS, "linear", peers.PEERS["linear"]._replace(build=no_kernel))
    monkeypatch.setitem(suite.PEERS, "sdpa", peers.PEERS["sdpa"]._replace(decode=no_kernel))
    said = []
    record = suite.run(dataclasses.replace(TINY, long=None), "tiny", ("linear", "sdpa"), CPU, said.append)
    assert "linear: float32: RuntimeError: no kernel image; not timed" in said
    assert "sdpa: decode: RuntimeError: no kernel image; not timed" in said
    assert set(record["cases"][0]["results"]) == {*OWN, "sdpa"}
    assert set(record["cases"][-1]["results"]) == {"gdssm"}
    monkeypatch.setitem(suite.OWN, "gdssm", OWN["gdssm"]._replace(build=no_kernel))
    with pytest.raises(RuntimeError, match="no kernel image"):
        suite.run(TINY, "tiny", (), CPU, said.append)


def test_decoding_is_told_at_powers_of_ten():
    case = Case("decode", Shape(1, 1000, 1, 4))
    result = suite.decoded(case, {"linear": peers.PEERS["linear"]}, CPU, print)["linear"]
    assert set(result["at"]) == {"1000"}
    assert result["at"]["1000"] > 0
    assert result["bytes"] == 2 * 16 * 4


def test_the_bound_is_the_larger_of_copying_and_multiplying():
    top = {"copy_bytes_per_second": 5, "matmul_float32_per_second": 10, "matmul_bfloat16_per_second": 100}
    assert report.bound({"bytes": 10, "operations": 100}, "bfloat16", top) == 2
    assert report.bound({"bytes": 10, "operations": 1000}, "float16", top) == 10
    assert report.bound({"bytes": 10, "operations": 100}, "float32", top) == 10


def test_every_name_has_a_peer_and_formulas():
    assert tuple(peers.PEERS) == cases.NAMES
    assert {name for names in peers.DEFAULT.values() for name in names} <= set(peers.PEERS)
    for device in ("cpu", "cuda"):
        for name in ("quick", "full"):
            for case in cases.preset(name, device).cases:
                for entry in {**OWN, **peers.PEERS}.values():
                    assert costs.operations(entry.kind, case, device) > 0
                    assert costs.moved(entry.kind, case, 2) > 0


def test_a_record_with_its_table_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "preset_of", lambda name, device: TINY)
    json_file, plot = tmp_path / "new" / "record.json", tmp_path / "new" / "picture.png"
    arguments = ("--against", "linear,fla", "--device", "cpu", "--json", str(json_file), "--plot", str(plot))
    code, out, err = run("bench", *arguments, capsys=capsys)
    assert code == 0
    assert "fla: skipped, runs on cuda only" in err
    record = json.loads(json_file.read_text())
    assert set(record) >= {"environment", "ceilings", "programs", "skipped", "checks", "cases", "growth", "long"}
    assert all(check["ok"] for check in record["checks"])
    case = record["cases"][0]
    assert case["shape"] == [1, 70, 2, 8]
    for result in case["results"].values():
        assert 0 < result["low"] <= result["median"] <= result["high"]
        assert result["peak_bytes"] > 0
    forward = record["growth"]["gdssm, forward"]
    assert forward["tokens"] == [64, 128, 256]
    assert "last_tenth" in record["cases"][-1]["results"]["gdssm"]
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "linear          skipped" not in out
    assert "fla             skipped: runs on cuda only" in out
    assert out.splitlines() == list(report.lines(record))
    assert sorted(p.name for p in json_file.parent.iterdir()) == ["picture.png", "record.json"]


def test_ratios_are_over_one_stream():
    results = {"gdssm": {"median": 2.0}, "linear": {"median": 5.0}}
    made = [{"mode": "training", "shape": [1, 2, 3, 4], "dtype": "float32", "sweep": s, "results": results} for s in ("", "tokens")]
    rows = report.headline({"cases": made})
    assert [(row["program"], row["ratio"]) for row in rows] == [("gdssm", 1.0), ("linear", 2.5)]


def test_a_package_that_is_missing_is_named():
    entry = Entry("x", OWN["gdssm"].build, needs=("no_such_package", "pip install no-such-package"))
    assert peers.missing(entry, "cpu") == "no_such_package is not installed: pip install no-such-package"
    assert peers.missing(OWN["gdssm"], "cuda") is None


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--against", "linaer"], "--against names 'linaer' (did you mean 'linear'?); allowed: linear, linear-filters, sdpa"),
        (["--against", ""], "--against names ''"),
        (["--json", "FILE/x"], "--json is 'FILE', which is a file; a directory is needed"),
        (["--plot", "."], "--plot is '.', which is a directory; a file is needed"),
        (["--preset", "long"], "--preset is 'long'"),
        (["--device", "tpu"], "--device is 'tpu'"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(arguments, fragment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    code, out, err = run("bench", *arguments, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fragment in err
    assert [p.name for p in tmp_path.iterdir()] == ["FILE"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing(capsys):
    code, out, err = run("bench", "--device", "cuda", capsys=capsys)
    assert (code, out) == (2, "")
    assert err == "gdssm: --device is 'cuda', but torch finds no CUDA GPU; allowed here: auto, cpu\n"


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_pages_show_the_record(page):
    """The table, and the numbers of the sentences, come from docs/records/performance-cpu.json."""
    root = Path(__file__).parent.parent
    record, text = json.loads((root / "docs/records/performance-cpu.json").read_text()), (root / page).read_text()
    assert report.markdown(record) in text
    assert all(check["ok"] for check in record["checks"] if check["program"].startswith("gdssm"))
    assert f"{record['growth']['gdssm, forward']['time']:.2f}" in text
    assert record["growth"]["gdssm, forward"]["tokens"][-1] == 262144
    assert record["long"]["shape"] == [1, 1_000_000, 1, 64]
    assert f"{record['long']['results']['gdssm']['median']:.1f} s" in text
    longest = next(c for c in record["cases"] if c["shape"][1] == 262144)
    size = 4 * 262144 * 8 * 64
    memory = [(size + longest["results"][name]["peak_bytes"]) / (2 * size) for name in ("gdssm", "gdssm-full")]
    if page == "docs/performance.md":
        assert f"| at most 1.2 | {memory[0]:.2f} ({memory[1]:.2f} with" in text


def test_the_command_line_without_torch():
    """A name is refused before anything heavy is imported: the peers' names are in a module without torch."""
    assert "torch" not in cases.__dict__
    assert sys.modules["gdssm.bench.cases"].NAMES == cases.NAMES
