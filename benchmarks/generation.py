"""Time of a token while generating, after contexts of several lengths: a deep model of this library beside GPT-2.

    python benchmarks/generation.py [--contexts 1000 8000 32000] [--tokens 200] [--threads 2] [--json FILE]

Both have about 0.75 million parameters (GPT-2's table of positions not counted), random weights, batch 1, float32, greedy. The
deep model reads its context first. GPT-2's cache, transformers' own for `generate`, is filled with random keys and values:
a token's time does not depend on them. The two take turns in pieces of tokens; medians over the pieces.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdssm import DeepConfig, GDSSMForSequenceModeling
from gdssm.baselines import matched, parameter_count

VOCABULARY = 65
PIECE = 20  # tokens


class Generator(NamedTuple):
    """step(token (1, 1)) -> next token (1, 1); what it keeps per sequence, in numbers."""

    step: Callable[[Tensor], Tensor]
    kept: Callable[[], int]


def recurrent(model: Any, context: int) -> Generator:
    """A deep model that has read so many tokens."""
    state: Any = None
    for piece in torch.randint(VOCABULARY, (1, context)).split(4096, dim=1):
        _, state = model(piece, state)
    held = [state]

    def step(token: Tensor) -> Tensor:
        logits, held[0] = model(token, held[0])
        return logits[:, -1:].argmax(-1)

    return Generator(step, lambda: sum(block.z.numel() + block.tail.numel() for block in held[0].blocks))


def gpt2(width: int, positions: int = 1) -> Any:
    """transformers' GPT-2 of this width with a head, in evaluation mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": width, "n_layer": 4, "n_head": 4, "n_positions": positions}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **sizes)).eval()


def attending(model: Any, context: int) -> Generator:
    """GPT-2 with a cache of so many tokens."""
    from transformers import DynamicCache

    config = model.config
    shape = (1, config.n_head, context, config.n_embd // config.n_head)
    cache = DynamicCache(config=config)
    for layer in range(config.n_layer):
        cache.update(torch.randn(shape), torch.randn(shape), layer)

    def step(token: Tensor) -> Tensor:
        logits: Tensor = model(token, past_key_values=cache, use_cache=True).logits
        return logits[:, -1:].argmax(-1)

    return Generator(step, lambda: 2 * config.n_layer * cache.get_seq_length() * config.n_embd)


def timed(generators: dict[str, Generator], tokens: int) -> dict[str, dict[str, float]]:
    """Milliseconds for a token, in turn, piece by piece; the first piece is not counted."""
    token = torch.zeros(1, 1, dtype=torch.long)
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for _ in range(max(1, tokens // PIECE) + 1):
        for name, generator in generators.items():
            start = time.perf_counter()
            for _ in range(PIECE):
                token = generator.step(token)
            seconds[name].append((time.perf_counter() - start) / PIECE)
    found = {}
    for name, each in seconds.items():
        middle = statistics.median(each[1:])
        found[name] = {"ms": 1e3 * middle, "tokens_per_s": 1 / middle, "kept": generators[name].kept()}
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1000, 8000, 32000])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ours = GDSSMForSequenceModeling(DeepConfig(vocab_size=VOCABULARY, key_map=True)).eval()
    positions = max(options.contexts) + options.tokens + 2 * PIECE
    width = matched(gpt2, "parameters", parameter_count(ours), step=4, near=128)
    theirs = gpt2(width, positions)
    print(f"parameters: {parameter_count(ours):,} and {parameter_count(gpt2(width)):,} (GPT-2 of width {width})")
    print("context   model    ms per token   tokens/s   numbers kept")
    found = {}
    for context in options.contexts:
        found[context] = timed({"GDSSM": recurrent(ours, context), "GPT-2": attending(theirs, context)}, options.tokens)
        for name, one in found[context].items():
            print(f"{context:7}   {name:6} {one['ms']:14.2f} {one['tokens_per_s']:10.0f} {one['kept']:14,}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"threads": options.threads, "contexts": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
