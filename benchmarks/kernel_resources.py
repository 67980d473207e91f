"""What the GPU kernels use, from Triton's compiler, without a GPU: registers, spills, shared memory, blocks that fit.

    python benchmarks/kernel_resources.py [--arch 80 90 100] [--only WORD ...] [--json FILE]

Prints one line per shipped configuration whose name has all the words. `blocks` is how many blocks of that kernel fit on a
multiprocessor by registers and shared memory (occupancy as far as it is known without running); no line says how fast a
kernel is. All of them take about half an hour of one core. With --json they are written to FILE as they come; what FILE has
of the same code is not compiled again. docs/records/kernels.json is made so, and the tests hold the shipped kernels to it.
"""

import argparse
import json
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import triton

from gdssm.files import write_whole
from gdssm.ops.kernels import compiled
from gdssm.ops.kernels.shipped import configurations, fingerprint

COLUMNS = [field.name for field in fields(compiled.Resources)]


def load(path: Path | None) -> dict[str, Any]:
    """What a record has of kernels as they are now, by the same compiler."""
    record: dict[str, Any] = {"triton": triton.__version__, "columns": COLUMNS, "kernels": {}}
    if path is None or not path.exists():
        return record
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["triton"] == record["triton"]:
        now = {str(c): fingerprint(c) for c in configurations()}
        record["kernels"] = {name: row for name, row in found["kernels"].items() if row["fingerprint"] == now.get(name)}
    return record


def save(path: Path, record: dict[str, Any]) -> None:
    """One line per kernel, in the order in which they are listed."""
    rows = [str(c) for c in configurations() if str(c) in record["kernels"]]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(record['kernels'][name])}" for name in rows)
    head = json.dumps({"triton": record["triton"], "columns": COLUMNS})[:-1]
    write_whole(path, f'{head}, "kernels": {{\n{lines}\n}}}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=compiled.ARCHITECTURES, default=compiled.ARCHITECTURES)
    parser.add_argument("--only", nargs="+", default=[], help="words that a configuration's name must have")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the record to go on with")
    arguments = parser.parse_args()
    record = load(arguments.json)
    print("| configuration | sm | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for c in configurations():
        if not all(word in str(c).split() for word in arguments.only):
            continue
        row = record["kernels"].setdefault(str(c), {"fingerprint": fingerprint(c)})
        for arch in arguments.arch:
            if str(arch) not in row:
                row[str(arch)] = astuple(compiled.resources(c, arch))
                if arguments.json is not None:
                    save(arguments.json, record)
            print("| " + " | ".join(map(str, (c, arch, *row[str(arch)]))) + " |", flush=True)


if __name__ == "__main__":
    main()
