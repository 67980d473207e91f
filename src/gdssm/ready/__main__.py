"""Trains the models that ship with this package again: python -m gdssm.ready [NAME ..] [--out DIR]."""

import argparse
import sys
from pathlib import Path

from ..config import near_miss
from ..saving import READY as FOLDER
from ..saving import save
from . import READY, make


def main() -> int:
    """Train, measure, print the claims, write; 1 where one does not hold."""
    parser = argparse.ArgumentParser(prog="python -m gdssm.ready", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(READY)}; all if not given")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to write; the package's own folder if not given")
    options = parser.parse_args()
    for name in options.names:
        if name not in READY:
            parser.error(f"NAME is {name!r}{near_miss(name, list(READY))}; allowed: {', '.join(READY)}")
    good = True
    for name in options.names or READY:
        model, notes = make(name)
        path = save(model, options.out / f"{name}.safetensors", notes)
        for claim in notes["claims"]:
            good = good and claim["holds"]
            verdict = "holds" if claim["holds"] else "DOES NOT HOLD"
            print(f"{name:14} {claim['name']:20} {claim['value']:.6f} {claim['relation']} {claim['target']} {verdict}")
        print(f"{name:14} {path.stat().st_size} bytes")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
