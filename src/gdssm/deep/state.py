"""Where a deep model stands in its streams: a value that can be kept, and where the mathematics allows it, added and subtracted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..show import summary
from .config import DeepConfig


class BlockState(NamedTuple):
    """Where a block stands.

    z     (B, H, D, D)         the recurrent state Z, float64 (float32 where a device has none)
    tail  (B, W-1, S, H, D)    the last W-1 tokens of the S streams that its filters read (1 shared, 3 separate)
    """

    z: Tensor
    tail: Tensor


@dataclass(frozen=True, eq=False)
class DeepState:
    """Where a model stands in its streams: a value, never changed in place.

    blocks   one BlockState per block
    seen     (B,) tokens read per sequence, int64 on the CPU. A fresh state has read W-1 zero tokens besides, which are in the
             tails and are not counted
    config   of the model that made it
    """

    blocks: tuple[BlockState, ...]
    seen: Tensor
    config: DeepConfig

    def __repr__(self) -> str:
        """Shapes and tokens read, no numbers of Z."""
        tokens = sorted(set(self.seen.tolist()))
        seen = "none" if not tokens else f"{tokens[0]}" if len(tokens) == 1 else f"{tokens[0]}..{tokens[-1]}"
        first = self.blocks[0]
        return f"DeepState({len(self.blocks)} x (z={summary(first.z)}, tail={summary(first.tail)}), seen={seen})"

    def __deepcopy__(self, memo: dict[int, object]) -> "DeepState":
        """Tensors of their own, also where gradients are recorded, which they go on to flow through."""
        return self.map(torch.clone)

    def map(self, function: Callable[[Tensor], Tensor]) -> "DeepState":
        """The state with a function of its tensors, each with the batch as first axis: to detach, move, or pick sequences."""
        blocks = tuple(BlockState(function(block.z), function(block.tail)) for block in self.blocks)
        return replace(self, blocks=blocks, seen=function(self.seen).cpu())

    def select(self, index: Tensor) -> "DeepState":
        """The sequences with these numbers, (N,): as beams are reordered, or one sequence taken out of a batch."""
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def next_document(self) -> "DeepState":
        """The state for a new document that the windows of the old one do not reach into: Z stays, tails become zeros."""
        return replace(self, blocks=tuple(block._replace(tail=torch.zeros_like(block.tail)) for block in self.blocks))

    def merge(self, other: "DeepState") -> "DeepState":
        """The state of having read self's documents and then other's, each document from `next_document`.

        Z adds up. Only for models of one block with decay "none": there Z is a sum over windows of the input. Further blocks
        read what earlier blocks gave, which depends on all that was read before, so no sum of states is the state of having
        read both. Raises ValueError for such models, and for states of different models or batches.
        """
        self._check_sum("merge", other)
        first, second = self.blocks[0], other.blocks[0]
        goes_on = (other.seen > 0).to(first.tail.device)[:, None, None, None, None]  # who has read nothing leaves self's window
        tail = torch.where(goes_on, second.tail, first.tail)
        return replace(self, blocks=(BlockState(first.z + second.z, tail),), seen=self.seen + other.seen)

    def forget(self, other: "DeepState") -> "DeepState":
        """The state of not having read the documents of `other`: the inverse of `merge`, with the same conditions.

        The last document goes on where it stood. That other was ever read cannot be checked. Raises ValueError where other has
        read more tokens than self.
        """
        self._check_sum("forget", other)
        if bool((other.seen > self.seen).any()):
            raise ValueError(f"forget: other has read {other.seen.tolist()} tokens, this state only {self.seen.tolist()}")
        first = self.blocks[0]
        return replace(self, blocks=(first._replace(z=first.z - other.blocks[0].z),), seen=self.seen - other.seen)

    def _check_sum(self, what: str, other: "DeepState") -> None:
        config = self.config
        if not isinstance(other, DeepState) or other.config != config:
            raise ValueError(f"{what}: other is not a state of the same model")
        if config.n_layers != 1 or config.decay != "none":
            raise ValueError(
                f"{what}: states add up only for one block with decay 'none' (later blocks read what earlier ones gave), "
                f"this model has {config.n_layers} and {config.decay!r}"
            )
        if other.blocks[0].z.shape != self.blocks[0].z.shape:
            raise ValueError(f"{what}: other has Z of shape {tuple(other.blocks[0].z.shape)}, this {tuple(self.blocks[0].z.shape)}")
