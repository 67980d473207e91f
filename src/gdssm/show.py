"""How values are shown: a tensor in a few words, and in a notebook foldable trees with heatmaps, which treescope draws.

Nothing here is imported with the package: torch, treescope and IPython are, when a function needs them.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def summary(tensor: "Tensor") -> str:
    """Type and shape of a tensor, never its numbers, e.g. float32[2, 10, 4]; its device where that is not the CPU."""
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}{device}"


def interactive() -> None:
    """From here on the cells of this notebook show values as foldable trees, arrays as heatmaps.

    It is treescope.basic_interactive_setup(), but each value is one output, which pages exported from the notebook show too;
    and one thing is mended: treescope 0.1.10 asks tensors for names of their axes, which torch from 2.13 on does not have.
    Where treescope is not installed, or outside of a notebook, one line on standard output says so and nothing changes.
    """
    if importlib.util.find_spec("treescope") is None:
        print("treescope is not installed, so values are shown as text; for trees and heatmaps: pip install treescope")
        return
    if not _in_notebook():
        print("this is no notebook, so values are shown as text")
        return
    import treescope

    treescope.basic_interactive_setup(autovisualize_arrays=True)
    treescope.register_as_default(streaming=False)
    mend_treescope()


def mend_treescope() -> bool:
    """Teach treescope to read tensors without names of axes; True where that was needed."""
    import torch
    from treescope import ndarray_adapters, rendering_parts, type_registries
    from treescope.external.torch_support import TorchTensorAdapter

    type_registries.update_registries_for_imports()  # its own way of reading tensors, which it would put over this one later
    try:
        TorchTensorAdapter().get_axis_info_for_array_data(torch.zeros(1))
    except AttributeError:
        pass
    else:
        return False

    class Unnamed(TorchTensorAdapter):  # type: ignore[misc]  # treescope declares no types
        """Axes known by their places."""

        def get_axis_info_for_array_data(self, array: "Tensor") -> tuple[Any, ...]:
            return tuple(ndarray_adapters.PositionalAxisInfo(i, size) for i, size in enumerate(array.shape))

        def get_array_summary(self, array: "Tensor", fast: bool) -> Any:
            return rendering_parts.text(f"{type(array).__name__} {summary(array)}")

    def as_text(node: "Tensor", path: str | None, subtree_renderer: Any) -> Any:
        """Of tensors that are not drawn: numbers, in one line, if they are few."""
        few = node.numel() <= 8 and node.device.type != "meta"
        text = " ".join(repr(node.detach()).split()) if few else f"<{summary(node)}>"
        return rendering_parts.build_one_line_tree_node(line=text, path=path)

    type_registries.NDARRAY_ADAPTER_REGISTRY[torch.Tensor] = Unnamed()
    type_registries.TREESCOPE_HANDLER_REGISTRY[torch.Tensor] = as_text
    return True


def _in_notebook() -> bool:
    """Whether IPython runs this program."""
    if importlib.util.find_spec("IPython") is None:
        return False
    from IPython import get_ipython

    return get_ipython() is not None
