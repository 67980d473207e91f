"""How a deep model learns from several initialisations: what the default of gdssm.deep was chosen by.

    python benchmarks/initialisation.py [--text FILE] [--steps 150] [--seeds 2] [--only NAME ...]
    python benchmarks/initialisation.py --recall [--steps 600] [--seeds 3] [--only NAME ...]
    python benchmarks/initialisation.py --mixers [--text FILE] [--steps 600] [--seeds 1] [--only NAME ...]

The first trains the default model of 0.75 million parameters on the same batches (8 crops of 256 characters) and prints bits per
character of the validation part, mean over the seeds, at two rates. Without --text: the source of Python's standard library.
The second trains the model of width 64 of `gdssm reproduce recall --preset reduced` on 64 tokens with 8 pairs at rate 0.01, and
prints the validation accuracy of every seed. The third trains blocks of mixers alone, as `gdssm-mixers` of `gdssm reproduce lm`
has them, and the same with a part changed; bits are those of the whole validation part, at rate 0.006.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any, cast

import torch
from torch import Tensor

from gdssm import DeepConfig, GDSSMForSequenceModeling, Recipe
from gdssm.experiments.sequence_contenders import Shape, build
from gdssm.sequence_train import fit, score
from gdssm.sequences import AssociativeRecall, Text, read_corpus

RATES = (2e-3, 6e-3)
Change = Callable[[str, Tensor, DeepConfig], object]
Row = tuple[dict[str, Any], Change | None]
Rows = dict[str, Row]


def gpt2_scale(name: str, weight: Tensor, config: DeepConfig) -> None:
    """Projections of standard deviation 0.02, those that end a branch divided by sqrt(2 n_layers)."""
    if name.endswith("w_in"):
        weight.mul_(0.02 / weight.std())
    elif name.endswith("w_out"):
        weight.mul_(0.02 * (2 * config.n_layers) ** -0.5 / weight.std())


def undivided(name: str, weight: Tensor, config: DeepConfig) -> None:
    """What ends a branch is not divided by sqrt(2 n_layers)."""
    if name.endswith("w_out"):
        weight.mul_((2 * config.n_layers) ** 0.5)


def all_recalling(name: str, weight: Tensor, _: DeepConfig) -> None:
    """From filters at random: keys see one token before the last, values and queries the last, in all heads."""
    kind = name.rpartition(".")[2]
    if kind in ("u", "v", "d"):
        weight.mul_(0.1)[..., -2 if kind == "u" else -1] += 1


START: Rows = {
    "default": ({}, None),
    "all filters at random": ({"filters": "random"}, None),
    "all heads recall": ({"filters": "random"}, all_recalling),
    "decays 0.9 to 0.999": ({"decay_range": (0.9, 0.999)}, None),
    "decays 0.99 to 0.9999": ({"decay_range": (0.99, 0.9999)}, None),
    "projections of 0.02": ({}, gpt2_scale),
    "branches not divided": ({}, undivided),
}
MIXERS: Rows = {
    "mixers": ({}, None),
    "silu after the filters": ({"activation": "silu"}, None),
    "skip from 1": ({}, lambda name, weight, _: weight.fill_(1) if name.endswith("skip") else None),
    "no skip": ({"skip": False}, None),
    "branches of full size": ({"branch_scale": 1.0}, None),
    "all filters at random": ({"filters": "random"}, None),
    "one Lambda per head": ({"decay": "head"}, None),
    "readouts not normed": ({"readout_norm": False}, None),
    "keys not normed": ({"normalize": "none"}, None),
    "windows of 3": ({"window": 3}, None),
    "windows of 6": ({"window": 6}, None),
}


def started(row: Row, config: DeepConfig, seed: int) -> GDSSMForSequenceModeling:
    """A model with the weights of one row."""
    options, change = row
    model = GDSSMForSequenceModeling(replace(config, **options))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    if change is not None:
        with torch.no_grad():
            for key, weight in model.named_parameters():
                change(key, weight, config)
    return model


def of_text(rows: Rows, text: str, steps: int, seeds: int, mixers: bool) -> None:
    task = Text.of(read_corpus(text, 2_000_000), window=256, most=0 if mixers else 64)
    config = DeepConfig(vocab_size=task.n_inputs, key_map=True)
    if mixers:
        config = cast("GDSSMForSequenceModeling", build("gdssm-mixers", task, Shape(), seed=0)).config
    rates = RATES[-1:] if mixers else RATES
    print("| initialisation | " + " | ".join(f"rate {rate:g}" for rate in rates) + " |\n|---|" + "---|" * len(rates))
    for name, row in rows.items():
        bits = []
        for rate in rates:
            recipe = Recipe(steps=steps, batch=8, lr=rate, warmup=steps // 10)
            models = [started(row, config, seed) for seed in range(seeds)]
            bits.append(mean(fit(model, task, recipe, points=1).final for model in models) / math.log(2))
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in bits) + " |", flush=True)


def of_recall(rows: Rows, steps: int, seeds: int) -> None:
    task = AssociativeRecall(64, 8, vocabulary=256, noise=False, held=512)
    config = DeepConfig(vocab_size=task.n_inputs, d_model=64, n_layers=2, n_heads=2, key_map=True)
    recipe = Recipe(steps=steps, batch=32, lr=1e-2, warmup=50)
    print("| initialisation | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " |\n|---|" + "---|" * seeds)
    for name, row in rows.items():
        fitted = [fit(started(row, config, seed), task, recipe, points=1) for seed in range(seeds)]
        found = [score(one.module, task.held_out("validation")).accuracy or 0.0 for one in fitted]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--recall", action="store_true")
    what.add_argument("--mixers", action="store_true")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--only", nargs="+", choices=tuple(START | MIXERS), metavar="NAME")
    options = parser.parse_args()
    known = MIXERS if options.mixers else START
    names = options.only or list(known)
    if not set(names) <= set(known):
        parser.error(f"--only: {', '.join(name for name in names if name not in known)}; allowed here: {', '.join(known)}")
    rows = {name: known[name] for name in names}
    if options.recall:
        of_recall(rows, options.steps or 600, options.seeds or 3)
    else:
        steps, seeds = (600, 1) if options.mixers else (150, 2)
        of_text(rows, options.text, options.steps or steps, options.seeds or seeds, options.mixers)


if __name__ == "__main__":
    main()
