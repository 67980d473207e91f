"""Draw the pictures of the readme and the documentation from the committed records, docs/records. `make figures` runs it.

A picture carries the SHA-256 of the record it shows, and the version of matplotlib that drew it, so that a test can tell
whether it is out of date.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gdssm.figures import filling_figure, weights_figure

DOCS = Path(__file__).parent.parent / "docs"
RECORD = DOCS / "records" / "one-step" / "record.json"
PICTURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {"one-step.png": weights_figure, "filling.png": filling_figure}
DPI = 110


def digest() -> str:
    """SHA-256 of the record, as a hexadecimal number."""
    return hashlib.sha256(RECORD.read_bytes()).hexdigest()


def draw(directory: Path = DOCS) -> list[Path]:
    """Write every picture into the directory and return their paths."""
    (variant,) = json.loads(RECORD.read_text())["variants"]
    made = []
    for name, make in PICTURES.items():
        path = directory / name
        make(variant).savefig(path, dpi=DPI, metadata={"Description": f"record {digest()}"})
        made.append(path)
    return made


if __name__ == "__main__":
    for written in draw():
        print(written.relative_to(DOCS.parent))
