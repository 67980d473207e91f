"""An endless stream: two workers read halves of it in pieces, their states are merged, one example is taken back out.

    python examples/stream.py

Prints the size of the state, the same however much was read, and three errors, which are rounding: of reading in pieces, of
merging two states, and of forgetting, each against reading the right examples without it.
"""

import torch

import gdssm

D, EXAMPLES, PIECE = 8, 20_000, 999  # pieces need not end between two examples
layer = gdssm.construct.gradient_descent(D, D, lr=1.0, n_context=EXAMPLES, dtype=torch.float64).layer
examples = gdssm.LinearRegression(D, D, n_examples=EXAMPLES).sample(1, seed=0, dtype=torch.float64)


def read(x: torch.Tensor, y: torch.Tensor) -> gdssm.State:
    """The state after these examples, read in pieces."""
    state = layer.init_state(1)
    for piece in gdssm.tokens.interleave(x, y).split(PIECE, dim=1):
        _, state = layer(piece, state)
    return state


def difference(state: gdssm.State, wanted: gdssm.State) -> float:
    """Largest difference of what two states answer, relative."""
    answers, right = (layer.answer(s, examples.x_query).detach() for s in (state, wanted))
    return float((answers - right).abs().max() / right.abs().max())


x, y, half = examples.x, examples.y, EXAMPLES // 2
at_once = layer(gdssm.tokens.interleave(x, y))[1]
merged = read(x[:, :half], y[:, :half]).merge(read(x[:, half:], y[:, half:]))
forgotten = at_once.forget(x[:, 0], y[:, 0])
print(f"numbers in the state: {read(x[:, :10], y[:, :10]).z.numel()} after 10 examples, {at_once.z.numel()} after {EXAMPLES}")
print(f"in pieces, relative error: {difference(read(x, y), at_once):.1e}")
print(f"merged, relative error: {difference(merged, at_once):.1e}")
print(f"without the first example, relative error: {difference(forgotten, read(x[:, 1:], y[:, 1:])):.1e}")
