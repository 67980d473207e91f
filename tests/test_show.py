"""How values are shown: short texts without numbers, trees that treescope can draw, and a word where it is not there."""

import importlib.util
import subprocess
import sys

import pytest
import torch

import gdssm
from gdssm import analysis, show


def state(lengths: list[int] | None = None) -> gdssm.State:
    tokens = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return gdssm.GDSSM(4, dtype=torch.float64)(tokens, None, None if lengths is None else torch.tensor(lengths))[1]


def test_a_tensor_is_its_type_and_shape() -> None:
    assert show.summary(torch.zeros(2, 3)) == "float32[2, 3]"
    assert show.summary(torch.tensor(1, dtype=torch.int64)) == "int64[]"
    assert show.summary(torch.zeros(4, device="meta", dtype=torch.bfloat16)) == "bfloat16[4] on meta"


def test_a_state_is_its_shapes_and_what_it_has_read() -> None:
    layer = "layer=GDSSM(4, window=3, stride=2, n_heads=1)"
    assert repr(state()) == f"State(z=float64[2, 1, 4, 4], tail=float64[2, 2, 4], seen=9, {layer})"
    assert "seen=5..9, " in repr(state([9, 5]))
    assert "seen=0, " in repr(gdssm.GDSSM(4).init_state(3))


def test_a_context_is_its_shapes() -> None:
    context = gdssm.LinearRegression(3, 2, 4, n_queries=5).sample(6, seed=0)
    assert repr(context) == "Context(x=float32[6, 4, 3], y=float32[6, 4, 2], x_query=float32[6, 5, 3], y_query=float32[6, 5, 2])"
    assert repr(gdssm.Context(context.x, context.y, context.x_query)).endswith(", y_query=None)")


def test_trees_hold_the_parts_of_states_layers_and_matches() -> None:
    """treescope 0.1.10 alone raises for each tensor on torch 2.13."""
    treescope = pytest.importorskip("treescope")
    mended = show.mend_treescope()
    made, ready = state(), gdssm.load("one-step")
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        html = treescope.render_to_html([made, ready, analysis.parameter_match(ready.layer), torch.arange(9), torch.tensor(2.5)])
    assert len(html) < 100_000
    text = treescope.render_to_text(made)
    for part in ("State(", "z=", "tail=", "layer=GDSSM(", "window=3", "w_q=", "decay=DecayParameter("):
        assert part in text
    if mended:
        assert "z=<float64[2, 1, 4, 4]>" in text
        assert treescope.render_to_text(torch.tensor(2.5)) == "tensor(2.5000)"
        assert treescope.render_to_text(torch.zeros(2, 2)) == "tensor([[0., 0.], [0., 0.]])"


def test_the_heatmap_holds_the_numbers_of_the_tensor() -> None:
    pytest.importorskip("treescope")
    from treescope.type_registries import lookup_ndarray_adapter

    show.mend_treescope()
    tensor = state().z
    adapter = lookup_ndarray_adapter(tensor)
    assert [axis.size for axis in adapter.get_axis_info_for_array_data(tensor)] == [2, 1, 4, 4]
    values, _ = adapter.get_array_data_with_truncation(tensor, None, (None,) * 4)
    assert (values == tensor.detach().numpy()).all()


def test_a_treescope_that_reads_tensors_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("treescope")
    from treescope import type_registries
    from treescope.external.torch_support import TorchTensorAdapter

    show.mend_treescope()
    before = dict(type_registries.NDARRAY_ADAPTER_REGISTRY)
    monkeypatch.setattr(TorchTensorAdapter, "get_axis_info_for_array_data", lambda self, array: ())
    assert show.mend_treescope() is False
    assert before == type_registries.NDARRAY_ADAPTER_REGISTRY


def test_without_treescope_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "treescope" else found(name))
    show.interactive()
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert "treescope is not installed, so values are shown as text" in out


def test_outside_of_a_notebook_one_line_says_so() -> None:
    pytest.importorskip("treescope")
    code = "from gdssm import show; show.interactive()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "this is no notebook, so values are shown as text\n", "")


def test_in_a_notebook_treescope_is_switched_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    treescope = pytest.importorskip("treescope")
    calls: list[object] = []
    monkeypatch.setattr(treescope, "basic_interactive_setup", lambda **options: calls.append(options))
    monkeypatch.setattr(treescope, "register_as_default", lambda **options: calls.append(options))
    monkeypatch.setattr(show, "mend_treescope", lambda: calls.append("mended"))
    monkeypatch.setattr(show, "_in_notebook", lambda: True)
    show.interactive()
    assert calls == [{"autovisualize_arrays": True}, {"streaming": False}, "mended"]
    assert capsys.readouterr() == ("", "")
