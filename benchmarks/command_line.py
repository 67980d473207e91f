"""CPU time of the command line where it only answers: help, version, and wrong command lines.

    python benchmarks/command_line.py [RUNS] [WRONG]

Starts `gdssm --help` and the like RUNS times each (default 5), then WRONG generated wrong command lines (default 200) and as
many wrong configurations of `gdssm train`, in a directory of their own. Prints user and system seconds of each process:
least, median and greatest, and how many of them imported torch or numpy. Exit code 1 where one did, or where an answer is
not what it should be.
"""

import random
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

from gdssm import cli
from gdssm.arguments import Parameter, parameters
from gdssm.settings import ModelConfig, TrainConfig
from gdssm.tasks import LinearRegression

PROGRAM = """
import sys
from gdssm import cli
try:
    cli.main()
finally:
    print("imported:", *({"torch", "numpy"} & set(sys.modules)), file=sys.stderr)
"""
VALUES = ["", "many", "-1", "0", "nan", "1e999", "a\nb", "\udcff", "9" * 5000, "None", "--", "-x", "[1, 2]", "\u2028"]


def cpu_seconds(words: list[str], directory: Path, code: int) -> tuple[float, bool, bool]:
    """Seconds, whether torch or numpy was imported, and whether code, output and directory are as they should be."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, cwd=directory, capture_output=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    *message, imported = done.stderr.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    as_it_should = done.returncode == code and len(message) == (code == 2) and bool(done.stdout) == (code == 0)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, imported != "imported:", as_it_should and not any(directory.iterdir())


def wrong_line(rng: random.Random) -> list[str]:
    """A command line with one fault."""
    name = rng.choice(sorted(cli.COMMANDS))
    known = parameters(cli.COMMANDS[name])
    options = [p for p in known if not p.positional]
    needed = [word for p in known if p.required for word in ([f"{p.label}=1"] if not p.positional else ["1"])]
    faults = [[mutated(name, rng), *needed], [name, *needed[:-1], f"--no-such={rng.choice(VALUES)}"]]
    for option in options:
        faults.append([name, *needed, f"{mutated(option.label, rng)}={rng.choice(VALUES)}"])
        faults.append([option.label, name, *needed])
        if option.type is not str:
            faults.append([name, *needed, unfit(option, rng)])
        if option.type is not bool and not option.required:
            faults.append([name, *needed, option.label])
    return rng.choice(faults)


def wrong_configuration(rng: random.Random) -> str:
    """A configuration file with one fault: a value that no field takes, a field that is none, or broken Python."""
    cls = rng.choice([TrainConfig, ModelConfig, LinearRegression])
    name = rng.choice([field.name for field in fields(cls)])
    value = rng.choice(["None", "'many'", "float('nan')", "-1.5", "[[]]", "10**5000", "'a\\nb'", "object()"])
    call = rng.choice([f"{name}={value}", f"{name}={value}", f"{mutated(name + '__', rng)}=1", f"{name}=1 +"])
    inner = {TrainConfig: call, ModelConfig: f"model=ModelConfig({call})", LinearRegression: f"task=LinearRegression({call})"}[cls]
    return f"from gdssm import LinearRegression, ModelConfig, TrainConfig\nconfig = TrainConfig({inner})\n"


def mutated(word: str, rng: random.Random) -> str:
    place = rng.randrange(2, len(word))
    return word[:place] + rng.choice("0123456789") + word[place + 1 :]


def unfit(parameter: Parameter, rng: random.Random) -> str:
    """An option with a value that is none of its type."""
    if parameter.type is Path:
        return f"{parameter.label}="
    values = [value for value in VALUES if value not in ("-1", "0")]
    return f"{parameter.label}={rng.choice(values)}"


def report(label: str, runs: list[tuple[float, bool, bool]]) -> bool:
    seconds, heavy, good = zip(*runs, strict=True)
    times = f"{min(seconds):.3f} {statistics.median(seconds):.3f} {max(seconds):.3f}"
    print(f"{label:24} {times} s CPU (least, median, greatest of {len(runs)}); torch or numpy in {sum(heavy)}", end="")
    print("" if all(good) else f"; {len(good) - sum(good)} NOT AS THEY SHOULD BE")
    return all(good) and not any(heavy)


def main(runs: int = 5, wrong: int = 200) -> int:
    rng, good = random.Random(0), True
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for words in (["--version"], ["--help"], *([command, "--help"] for command in cli.COMMANDS)):
            good &= report(" ".join(["gdssm", *words]), [cpu_seconds(words, directory, 0) for _ in range(runs)])
        good &= report("wrong command lines", [cpu_seconds(wrong_line(rng), directory, 2) for _ in range(wrong)])
        with tempfile.TemporaryDirectory() as elsewhere:
            path = Path(elsewhere) / "config.py"
            seconds = []
            for _ in range(wrong):
                path.write_text(wrong_configuration(rng))
                seconds.append(cpu_seconds(["train", str(path), "--out", "run"], directory, 2))
            good &= report("wrong configurations", seconds)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
