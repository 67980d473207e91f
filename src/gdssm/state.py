"""State: where a GDSSM stands in its streams, and what can be done with it without the streams."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import ops
from .ops import ScanState
from .show import summary

if TYPE_CHECKING:
    from .layers import GDSSM


@dataclass(frozen=True, eq=False)
class State:
    """Where a layer stands in its streams: a value, never changed in place.

    z (B, H, D, D), tail (B, W-1, D): the last W-1 tokens, seen (B,): tokens read per sequence.
    `layer` is the layer that made it: the methods need its weights.
    """

    z: Tensor
    tail: Tensor
    seen: Tensor
    layer: "GDSSM"

    def __repr__(self) -> str:
        """Shapes and tokens read, no numbers of Z."""
        tokens = sorted(set(self.seen.tolist()))
        seen = "none" if not tokens else f"{tokens[0]}" if len(tokens) == 1 else f"{tokens[0]}..{tokens[-1]}"
        layer = f"{type(self.layer).__name__}({self.layer.extra_repr()})"
        return f"State(z={summary(self.z)}, tail={summary(self.tail)}, seen={seen}, layer={layer})"

    def weights(self) -> Tensor:
        """The implicit linear model of each head, W_h = C_h Z_h^T P_h, (B, H, D, D).

        With d = e3 a query x is answered by sum_h W_h x (plus F x, where the layer has a feedthrough).
        With `normalize`, Z is divided by the windows seen plus the layer's count_offset.
        """
        layer = self.layer
        z = self.z.to(layer.c.dtype)
        if layer.count_offset is not None:
            count = ops.windows_in(self.seen, layer.window, layer.stride).to(z.device)
            z = z / divisor(count[:, None], layer.count_offset)[..., None, None]
        w = torch.einsum("hij,bhkj->bhik", layer.c, z)
        return w if layer.key_map is None else torch.einsum("bhik,hkl->bhil", w, layer.key_map)

    def merge(self, other: "State") -> "State":
        """The state of having read self's examples and then other's.

        Z adds up. Windows that self has begun and not finished are completed without their last
        tokens, which is exact where w_q reads only the first R tokens of a window; a query that self
        has read and that began no example is dropped. Raises ValueError where that is not so, where
        Lambda is not 1, or where the states are of different layers or batches.
        """
        if other.layer is not self.layer:
            raise ValueError("other: the states to merge come from two different layers")
        if other.z.shape != self.z.shape:
            raise ValueError(f"other has Z of shape {tuple(other.z.shape)}, this state {tuple(self.z.shape)}")
        _check_removable(self.layer, "merge")
        stride = self.layer.stride
        kept = self.seen - self.seen % stride
        goes_on = other.seen > 0  # a sequence that has read nothing leaves self's as it is
        where = goes_on.to(self.z.device)
        return replace(
            self,
            z=torch.where(where[:, None, None, None], self.z + self._pending() + other.z, self.z),
            tail=torch.where(where[:, None, None], other.tail, self.tail),
            seen=torch.where(goes_on, kept + other.seen, self.seen),
        )

    def forget(self, x: Tensor, y: Tensor) -> "State":
        """Take one example per sequence back out of the state: x (B, d_x), y (B, d_y).

        Subtracts the window product of (x, y), so the state is that of a stream without the example.
        Exact where Lambda = 1 and w_q reads only x and y of each window, else ValueError.
        """
        layer = self.layer
        _check_removable(layer, "forget")
        if layer.stride != 2:
            raise ValueError(f"forget: an example is two tokens, this layer's stride is {layer.stride}")
        if bool((self.seen < 2).any()):
            raise ValueError(f"forget: no example has been read (tokens seen: {self.seen.tolist()})")
        batch = self.z.shape[0]
        pair = []
        for name, value in (("x", x), ("y", y)):
            if value.ndim != 2 or value.shape[0] != batch or value.shape[1] > layer.d_model:
                raise ValueError(f"{name} must be ({batch}, at most {layer.d_model}), got shape {tuple(value.shape)}")
            pair.append(nn.functional.pad(value.to(self.z), (0, layer.d_model - value.shape[1])))
        s = torch.stack(pair, dim=1)  # (B, 2, D)
        # a first window that is not finished yet would start before the shortened stream: it is completed here
        z = self.z + self._pending(first_only=True) - _window_product(layer.w_q[:, :2, :2], s)
        return replace(self, z=z, seen=self.seen - 2)

    def _pending(self, *, first_only: bool = False) -> Tensor:
        """What windows begun but not finished will add, read from their first R tokens."""
        width, stride = self.layer.window, self.layer.stride
        w_q = self.layer.w_q[:, :stride, :stride]
        total = torch.zeros_like(self.z)
        for available in range(stride, width):
            start = self.seen - available
            begun = start == 0 if first_only else (start >= 0) & (start % stride == 0)
            if bool(begun.any()):
                first = width - 1 - available
                m = _window_product(w_q, self.tail[:, first : first + stride].to(self.z))
                total = total + m * begun.to(m.device)[:, None, None, None]
        return total

    def scan_state(self) -> ScanState:
        heads = self.layer.n_heads
        return ScanState(self.z, self.tail.unsqueeze(2).expand(-1, -1, heads, -1), self.seen)


def _window_product(w_q: Tensor, s: Tensor) -> Tensor:
    """S^T w_q S: w_q (H, W, W), s (B, W, D) -> (B, H, D, D)."""
    return torch.einsum("bai,hac,bcj->bhij", s, w_q.to(s.dtype), s)


def _check_removable(layer: "GDSSM", what: str) -> None:
    smallest = float(layer.decay_matrix.detach().min())
    if smallest != 1:
        raise ValueError(f"{what}: Lambda must be 1, its smallest entry is {smallest:.6g}")
    outside = layer.w_q.detach().clone()
    outside[:, : layer.stride, : layer.stride] = 0
    if bool((outside != 0).any()):
        raise ValueError(
            f"{what}: w_q must read only the first {layer.stride} tokens of a window, "
            f"elsewhere it has an entry of size {float(outside.abs().max()):.3g}"
        )


def divisor(count: Tensor, offset: Tensor) -> Tensor:
    """n + n0, kept away from 0 before the first window."""
    return (count + offset).clamp(min=1e-6)
