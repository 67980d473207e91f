"""Text from a model token by token: constant time and memory for each, whatever was read before."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .config import check_count, check_number


def generate(
    model: nn.Module, prompt: Tensor, *, length: int, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Iterator[int]:
    """`length` tokens after a prompt, each as soon as it is drawn.

    model        model(tokens (B, T), state) -> logits (B, T, V), state; e.g. GDSSMForSequenceModeling
    prompt       (T,) tokens, at least one
    temperature  logits are divided by it; 0: always the most likely token
    generator    of the draws, on the CPU

    Raises ConfigError for a length or temperature out of range, ValueError for an empty prompt; all of them at once, before
    the first token.
    """
    check_count("length", length)
    check_number("temperature", temperature, least=0)
    if prompt.ndim != 1 or len(prompt) == 0:
        raise ValueError(f"prompt must be (T,) with at least one token, got shape {tuple(prompt.shape)}")
    return _tokens(model.eval(), prompt, length, temperature, generator)


def _tokens(model: Any, prompt: Tensor, length: int, temperature: float, generator: torch.Generator | None) -> Iterator[int]:
    given, state = prompt[None], None
    for _ in range(length):
        with torch.no_grad():
            logits, state = model(given, state)
            token = draw(logits[0, -1], temperature, generator)
        yield token
        given = given.new_tensor([[token]])


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> int:
    """A token from logits (V,): the Gumbel-max trick in float64, which has the softmax's law. Temperature 0: the largest."""
    scores = logits.double().cpu()
    scores -= scores.max()  # however small the temperature, the largest stays finite
    if temperature > 0:
        uniform = torch.rand(len(scores), dtype=torch.float64, generator=generator).clamp_(min=math.ulp(0.0))
        scores = scores / temperature - (-uniform.log()).log()
    return int(scores.argmax())
