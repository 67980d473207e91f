"""What the experiments on classification of whole sequences have in common: bidirectional GDSSM, itself without memory, attention.

The control has Lambda = 0 in every head: the same model whose readout sees the last window only. What the recurrence gives
is the difference between the two, over the same seeds.
"""

from collections.abc import Mapping
from typing import Any

from ..blocks import Block, Text
from ..config import ConfigError
from .sequence_runs import Chosen, curves, difference, dots, spread, table

CONTROL = "gdssm-window"


def check_control(contenders: tuple[str, ...]) -> None:
    """ConfigError where the control is not among those of a comparison."""
    if contenders and CONTROL not in contenders:
        raise ConfigError(f"contenders must have {CONTROL}, the same without memory, got {', '.join(contenders)}")


def accuracy(one: Chosen) -> tuple[float | None, ...]:
    """Test accuracy by seed."""
    return one.values("test_accuracy")


def gain(chosen: Mapping[str, Chosen], other: str = CONTROL) -> tuple[float, float, float] | None:
    """Accuracy of GDSSM minus another's: mean over the seeds and its 95 % interval; None where there is none."""
    return difference(accuracy(chosen["gdssm"]), accuracy(chosen[other]))


def blocks(chosen: Mapping[str, Chosen], unit: str, extra: tuple[str, ...] = ()) -> list[Block]:
    """Answer, table, dots and curves; unit says what a dot is, e.g. "seed"."""
    sentences = []
    for name, one in chosen.items():
        if name == "gdssm":
            sentences.append(f"GDSSM: accuracy {spread(accuracy(one))} (over the {unit}s).")
            continue
        apart = gain(chosen, name)
        if apart is None:
            sentences.append(f"Against {one.title} there is no interval: a {unit} is missing, or there is only one.")
            continue
        middle, low, high = apart
        verdict = "GDSSM is better" if low > 0 else "GDSSM is worse" if high < 0 else f"the {unit}s do not tell them apart"
        sentences.append(f"Against {one.title}: {middle:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}; {verdict}.")
    columns: dict[str, Any] = {"accuracy": lambda one: spread(accuracy(one))}
    found: list[Block] = [
        Text("Answer", (*sentences, *extra)),
        table("All models", chosen, columns, f"Mean and standard deviation over the {unit}s."),
        dots("Accuracy", "accuracy on the test set", chosen, accuracy, unit),
    ]
    lines = curves("Along the training", chosen, "cross-entropy of the validation, nats")
    return found if lines is None else [*found, lines]
