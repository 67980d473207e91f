"""lm: how well do the layer's deep models predict text, beside other recurrent models and attention of the same size?

Characters of a text are predicted one by one. Every model has as many parameters, sees the same crops in the same order and
the same grid of learning rates; the rate is chosen on the validation part of the text, bits are those of the test part.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from ..blocks import Block, Text, as_records
from ..config import ConfigError
from ..deep import GDSSMForSequenceModeling
from ..generation import generate
from ..recipe import Recipe
from ..sequences import Text as TextTask
from ..sequences import read_corpus
from . import Outcome
from .claims import Claim
from .jobs import Job
from .sequence_contenders import CONTENDERS, Shape
from .sequence_runs import (
    Chosen,
    Comparison,
    choose,
    curves,
    difference,
    dots,
    equal_parameters,
    further_of,
    jobs_of,
    settings_of,
    spread,
    streamed_difference,
    table,
    train_one,
    worst_if_missing,
)

TITLE = "Language modelling"
QUESTION = "How many bits per character do the deep models need, beside other models of the same size, data and budget?"
BITS = 1 / math.log(2)
WITHIN = 1.02  # of the best recurrent model
STREAMED = 1e-5  # difference of logits in float32, over the largest


@dataclass(frozen=True)
class Preset(Comparison):
    """Sizes: a text file ("": the standard library's source) with its limit and digest, the window, held-out windows.

    sample   characters of sample text
    """

    contenders: tuple[str, ...] = ("gdssm", "gdssm-input-decay", "gated-linear-attention", "mamba", "gpt2")
    text: str = ""
    limit: int = 400_000
    digest: str = ""
    held: int = 64
    sample: int = 300


PRESETS = {
    "quick": Preset(
        shape=Shape(width=32, n_layers=2, n_heads=2, max_tokens=64),
        recipe=Recipe(steps=200, batch=8, warmup=20),
        rates=(3e-3, 1e-2),
    ),
    "reduced": Preset(
        contenders=(
            *("gdssm", "gdssm-input-decay", "gdssm-mixers"),
            *("gated-linear-attention", "delta-net", "mamba", "gpt2"),
        ),
        shape=Shape(width=128, n_layers=4, n_heads=4, max_tokens=256),
        recipe=Recipe(steps=600, batch=8, warmup=60, device="auto"),
        rates=(2e-3, 6e-3),
        tuned=1,
        points=5,
        limit=2_000_000,
        held=0,
        sample=600,
    ),
    "paper": Preset(
        contenders=(
            *("gdssm", "gdssm-input-decay", "gdssm-three-streams", "gdssm-mixers"),
            *("linear-attention", "gated-linear-attention", "delta-net", "mamba", "attention", "gpt2"),
        ),
        shape=Shape(width=128, n_layers=4, n_heads=4, max_tokens=256),
        recipe=Recipe(steps=1200, batch=16, warmup=100, device="auto"),
        rates=(1e-3, 2e-3, 4e-3, 8e-3),
        limit=2_000_000,
        held=0,
        sample=600,
    ),
}


def jobs(sizes: Preset) -> dict[str, Job]:
    """One training for every contender, rate and seed; the text's digest is among a job's arguments."""
    TextTask.of(read_corpus(sizes.text, sizes.limit), window=sizes.shape.max_tokens)  # its errors come before any training
    return jobs_of(_of_its_text(sizes), trained)


def further(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> dict[str, Job]:
    """The seeds that train at the best rate alone."""
    return further_of(_of_its_text(sizes), results, trained)


def _of_its_text(sizes: Preset) -> Preset:
    return replace(sizes, digest=read_corpus(sizes.text, sizes.limit).digest)


@cache
def _task(text: str, limit: int, window: int, held: int, digest: str) -> TextTask:
    corpus = read_corpus(text, limit)
    if corpus.digest != digest:
        raise ConfigError(f"text is {text!r}, which was changed while the experiment ran")
    return TextTask.of(corpus, window=window, most=held)


def trained(sizes: Preset, name: str, rate: float, seed: int) -> dict[str, Any]:
    """One model: its numbers, and of ours a sample and how far streaming is from one pass."""
    task = _task(sizes.text, sizes.limit, sizes.shape.max_tokens, sizes.held, sizes.digest)
    fitted, result = train_one(sizes, task, name, rate, seed)
    model: nn.Module = fitted.module.cpu()
    if isinstance(model, GDSSMForSequenceModeling) and fitted.diverged is None:
        start = task.part("test")[: sizes.shape.max_tokens]
        result["streamed"] = streamed_difference(model, start[None])
        drawn = generate(model, start[:32], length=sizes.sample, temperature=0.8, generator=torch.Generator().manual_seed(0))
        result["sample"] = task.vocabulary.decode(start[:32]) + "|" + task.vocabulary.decode(list(drawn))
    return result


def outcome(sizes: Preset, results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Claims about the best of ours, by validation, beside the best other recurrent model, and the record."""
    chosen = choose(sizes, results)
    corpus = read_corpus(sizes.text, sizes.limit)
    record = {
        "experiment": "lm",
        "title": TITLE,
        "question": QUESTION,
        "settings": {
            "text": f"{corpus.name}, {len(corpus.text):,} characters, {len(set(corpus.text))} different ones",
            "first digits of its SHA-256": corpus.digest,
            "parts": "90 % trained on, 5 % validation, 5 % test, by position",
            "window": sizes.shape.max_tokens,
            **settings_of(sizes),
        },
        "blocks": as_records(_blocks(sizes, chosen)),
    }
    return Outcome(_claims(chosen, results), record, sizes.seeds)


def best(chosen: Mapping[str, Chosen], ours: bool) -> str | None:
    """The best recurrent model, of ours or of the others, by validation; None without one."""
    names = [name for name in chosen if CONTENDERS[name].recurrent and CONTENDERS[name].ours == ours]
    return min(names, key=lambda name: worst_if_missing(chosen[name].middle("final")), default=None)


def _claims(chosen: Mapping[str, Chosen], results: Mapping[str, dict[str, Any]]) -> tuple[Claim, ...]:
    found = [equal_parameters(chosen)]
    streamed = max((one["streamed"] for one in results.values() if "streamed" in one), default=math.inf)
    found.append(Claim("streamed_against_whole", "identity", 0.0, streamed, "<=", STREAMED))
    own, other = best(chosen, ours=True), best(chosen, ours=False)
    assert own is not None  # a comparison has gdssm
    if other is not None:
        found.append(Claim("bits_over_best_recurrent", "hypothesis", 1.0, _over(chosen, own, other), "<=", WITHIN))
    if "gpt2" in chosen:
        found.append(Claim("bits_over_gpt2", "hypothesis", 1.0, _over(chosen, own, "gpt2"), "<=", WITHIN))
    if "gdssm-input-decay" in chosen:
        ratio = _over(chosen, "gdssm-input-decay", "gdssm")
        found.append(Claim("input_decay_over_decay_per_head", "hypothesis", 1.0, ratio, "between", (0.98, 1.02)))
    return tuple(found)


def _over(chosen: Mapping[str, Chosen], first: str, second: str) -> float:
    """Ratio of mean test losses; infinite where one is missing."""
    above, below = chosen[first].middle("test_loss"), chosen[second].middle("test_loss")
    return math.inf if above is None or below is None else above / below


def _blocks(sizes: Preset, chosen: Mapping[str, Chosen]) -> list[Block]:
    columns = {
        "bits per character, test": lambda one: spread(_bits(one)),
        "bits per character, validation": lambda one: None if (loss := one.middle("final")) is None else loss * BITS,
    }
    note = "Mean and standard deviation over the seeds. State: numbers kept per sequence after a window."
    blocks: list[Block] = [
        _answer(chosen),
        table("All models", chosen, columns, note),
        dots("Bits per character of the test part", "bits per character", chosen, _bits),
    ]
    lines = curves("Along the training", chosen, "bits per character, validation", BITS)
    blocks += [lines] if lines is not None else []
    ours = chosen[best(chosen, ours=True) or "gdssm"]
    sample = ours.results[0].get("sample")
    if sample:
        blocks.append(Text(f"A sample of {ours.title}'s, after |, temperature 0.8", (sample,)))
    return blocks


def _bits(one: Chosen) -> tuple[float | None, ...]:
    return tuple(None if loss is None else loss * BITS for loss in one.values("test_loss"))


def _answer(chosen: Mapping[str, Chosen]) -> Text:
    """What the numbers say, sentence by sentence."""
    paragraphs = []
    own = best(chosen, ours=True) or "gdssm"
    ours = chosen[own]
    if None not in ours.values("test_loss"):
        needs = f"{spread(_bits(ours))} bits per character (mean over the seeds) at rate {ours.rate:g}"
        paragraphs.append(f"{ours.title} needs {needs}.")
    for name, one in chosen.items():
        if name == own:
            continue
        apart = difference(_bits(ours), _bits(one))
        if apart is None:
            paragraphs.append(f"Against {one.title}: no interval, a seed diverged or there is only one.")
            continue
        middle, low, high = apart
        verdict = "the seeds do not tell them apart" if low <= 0 <= high else f"{ours.title} is {'worse' if low > 0 else 'better'}"
        paragraphs.append(
            f"Against {one.title}: {middle:+.4f} bits per character, 95 % interval {low:+.4f} to {high:+.4f}; {verdict}."
        )
    edges = [one.title for one in chosen.values() if len(one.rates) > 1 and one.rate in (min(one.rates), max(one.rates))]
    if edges:
        paragraphs.append(
            f"The best rate lies at the end of the grid for {'; '.join(edges)}: with a longer grid they might do better."
        )
    return Text("Answer", tuple(paragraphs))
