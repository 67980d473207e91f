"""Claims of experiments, and the files they are written to. No torch here.

A claim says beforehand what a number should be. Kinds: an *identity* must hold exactly, a *replication* is said by the
paper, a *hypothesis* is expected by us or others; one that fails is reported, and is a result.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import check_choice
from ..files import write_whole

KINDS = ("identity", "replication", "hypothesis")
RELATIONS = ("<=", ">=", "between", "==")


@dataclass(frozen=True)
class Claim:
    """A number with what was predicted, what was found, and what it must satisfy.

    target is one number, or (low, high) for the relation "between". ValueError for an unknown kind or relation.
    """

    name: str
    kind: str
    predicted: float
    value: float
    relation: str
    target: float | tuple[float, float]

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("relation", self.relation, RELATIONS)
        if (self.relation == "between") != isinstance(self.target, tuple):
            raise ValueError(f"target is {self.target!r}: relation 'between' takes two numbers, the others one")

    @property
    def holds(self) -> bool:
        """Whether the value satisfies the relation; a value that is not finite satisfies none."""
        if not math.isfinite(self.value):
            return False
        if isinstance(self.target, tuple):
            return self.target[0] <= self.value <= self.target[1]
        return {"<=": self.value <= self.target, ">=": self.value >= self.target, "==": self.value == self.target}[self.relation]

    def as_record(self) -> dict[str, Any]:
        """The claim as JSON data; a value that is not finite is written as the largest float of its sign."""
        record = asdict(self) | {"holds": self.holds}
        if not math.isfinite(self.value):
            record["value"] = math.copysign(1.7976931348623157e308, self.value)
        return record


def all_required_hold(claims: Sequence[Claim]) -> bool:
    """Whether every identity and replication holds."""
    return all(claim.holds for claim in claims if claim.kind != "hypothesis")


def environment(seconds: float | None = None) -> dict[str, Any]:
    """Where a run was made, and how long it took where that is known."""
    import torch

    from .. import __version__

    return {
        "gdssm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        **({} if seconds is None else {"seconds": round(seconds, 1)}),
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all. ValueError for NaN or infinity."""
    write_whole(path, json.dumps(data, allow_nan=False, indent=1) + "\n")
