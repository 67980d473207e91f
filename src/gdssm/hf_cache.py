"""The cache of Hugging Face generation: where a deep model stands in its streams. Its size does not grow with what was read.

Written for the range of transformers that pyproject.toml names.
"""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from .deep import DeepState


class GDSSMCache(DynamicCache):  # type: ignore[misc]
    """Where a model stands in its streams, as transformers' generation wants it.

    state   the DeepState, a value: the cache is changed by putting another one in its place; None before the first token
    Tokens are counted with the masked ones among them, because generation counts columns of its input.
    After copy.copy and copy.deepcopy two caches go on independently. A generation with several beams or returned sequences
    makes as many copies of each sequence, and that many are in the cache afterwards.
    """

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: DeepState | None = None
        self.columns = 0

    def update_state(self, state: DeepState, columns: int) -> None:
        """The state after as many further columns of input."""
        self.state, self.columns = state, self.columns + columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input read."""
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the mask for this many further columns."""
        return self.columns + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no limit."""
        return -1

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether anything was read."""
        return self.state is not None

    @property
    def batch_size(self) -> int:
        """Sequences; -1 before the first token."""
        return -1 if self.state is None else len(self.state.seen)

    @property
    def is_croppable(self) -> bool:
        """False: a recurrent state cannot forget its last tokens."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Raises RuntimeError unless nothing is to be removed: a recurrent state cannot forget its last tokens."""
        if tokens_to_remove:
            raise RuntimeError(f"tokens_to_remove is {tokens_to_remove}: a recurrent state cannot forget its last tokens")

    def reset(self) -> None:
        """Nothing read."""
        self.state, self.columns = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The state of beam beam_idx[i] at place i."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence as often, copies side by side."""
        if self.state is not None:
            self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """The sequences of these numbers."""
        if self.state is not None:
            self.state = self.state.select(indices)
