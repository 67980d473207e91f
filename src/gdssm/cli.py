"""The command line: one function per command, no logic. Nothing here imports torch before the arguments are checked.

Exit codes: 0 done; 1 an identity or replication does not hold; 2 wrong use or bad input (one line on standard error,
nothing written); 3 training stopped on values that are not finite; 130 interrupted.
"""

import contextlib
import importlib.util
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import __version__
from .arguments import Command, Program, prepare
from .config import ConfigError, UserError, check_count, check_number, one_line, shown

if TYPE_CHECKING:
    from .experiments import Plan

EXIT_CLAIM, EXIT_USAGE, EXIT_NON_FINITE, EXIT_INTERRUPTED = 1, 2, 3, 130
_DESCRIPTION = "Recurrent layers that learn in context by gradient descent."


def reproduce(
    names: tuple[str, ...] = ("one-step",),
    /,
    preset: Literal["quick", "reduced", "paper"] = "quick",
    seeds: int | None = None,
    seed: int = 0,
    out: Path = Path("out"),
    workers: int | None = None,
    resume: bool = False,
    fresh: bool = False,
    text: Path | None = None,
    contenders: str | None = None,
    lra: Path | None = None,
    list_: bool = False,
) -> int:
    """Run experiments of the paper, check their claims, and write DIR/NAME/results.json and DIR/report.html.

    Args:
        names: experiments, or all; see --list
        preset: quick (minutes on two cores), paper (the paper's sizes), or reduced (between them; lm, recall, listops, images,
            in-context-depth)
        seeds: number of seeds of each variant; the preset's where not given
        seed: first seed
        out: directory for results, made if absent; other files in it are left alone
        workers: processes; as many as there are cores where not given
        resume: go on where an interrupted run stopped, which is done in any case
        fresh: run again what an interrupted run finished
        text: of lm, a text file in UTF-8 to model; Python's standard library where not given
        contenders: of lm, recall, listops and images, the models to compare, between commas, gdssm among them; the preset's
            where not given
        lra: of listops, the folder that Long Range Arena published; fresh expressions where not given
        list_: list the experiments and stop
    """
    from .experiments import EXPERIMENTS, MOST_SEEDS, MOST_WORKERS, check_options, named
    from .settings import LARGEST_SEED

    if list_:
        width = max(map(len, EXPERIMENTS))
        for name, (_, summary) in EXPERIMENTS.items():
            print(f"{name:{width}}  {summary}")
        return 0
    chosen = named(names)
    options: dict[str, Any] = {name: str(path) for name, path in (("text", text), ("lra", lra)) if path is not None}
    if contenders is not None:
        options["contenders"] = tuple(dict.fromkeys(name.strip() for name in contenders.split(",")))
    check_options(chosen, options)
    if seeds is not None:
        check_count("--seeds", seeds, most=MOST_SEEDS)
    check_count("--seed", seed, 0, LARGEST_SEED)
    if workers is not None:
        check_count("--workers", workers, most=MOST_WORKERS)
    if resume and fresh:
        raise ConfigError("--resume and --fresh exclude each other: one keeps what an interrupted run finished, one runs it again")
    _check_directory(out)
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the report needs matplotlib, which is not installed: pip install 'gdssm[report]'")
    from .experiments import plan

    plans = [plan(name, preset, seeds, seed, options) for name in chosen]
    return _reproduce(plans, preset, out, workers, fresh)


def _reproduce(plans: "Sequence[Plan]", preset: str, out: Path, workers: int | None, fresh: bool) -> int:
    from concurrent.futures.process import BrokenProcessPool

    from .reproduced import Reproduction, cores

    run = Reproduction(plans, preset, out, workers=workers or cores(), fresh=fresh)
    try:
        return 0 if run.run() else EXIT_CLAIM
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; finished jobs are kept, and the same command goes on from them") from None
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, as systems do where memory runs out (fewer --workers take less); "
            "finished jobs are kept, and the same command goes on from them"
        ) from None


def predict(
    csv: Path,
    /,
    target: str,
    query: Path | None = None,
    steps: int | None = None,
    solver: Literal["gd", "cg"] = "gd",
    forgetting: float = 1.0,
    alpha: float = 0.0,
    folds: int = 5,
) -> int:
    """Learn a table in context: stream its rows through a constructed layer, then predict or cross-validate.

    Args:
        csv: table with a header; every cell a number
        target: column to predict
        query: table with rows to predict; without it, cross-validated R^2 is reported
        steps: iterations at the readout
        solver: gd (gradient descent) or cg (conjugate gradient)
        forgetting: weight of an example for each row that follows it, in (0, 1]
        alpha: ridge strength on standardised columns
        folds: folds of the cross-validation
    """
    from .predicted import run

    run(csv, target, query=query, steps=steps, solver=solver, forgetting=forgetting, alpha=alpha, folds=folds)
    return 0


def train(
    config: Path,
    /,
    out: Path,
    resume: bool = False,
    checkpoint_every: int = 200,
    tensorboard: bool = False,
) -> int:
    """Train the models of a configuration: in-context learning, or a deep model of a text.

    Args:
        config: Python file with a line `config = gdssm.TrainConfig(..)` or `config = gdssm.TextConfig(..)`
        out: directory of the run, made if absent: metrics, checkpoints, models, records, report
        resume: go on from the last good checkpoint, to the same numbers as an undisturbed run
        checkpoint_every: steps from one checkpoint to the next
        tensorboard: write metrics for TensorBoard as well, into DIR/tensorboard
    """
    from .config_files import read_config_file

    check_count("--checkpoint-every", checkpoint_every)
    settings = read_config_file(config)
    _check_directory(out)
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard")
    from .runs import run, write_record

    run(settings, out, resume=resume, checkpoint_every=checkpoint_every, tensorboard=tensorboard, source=str(config))
    try:
        print(write_record(out)[1])
        if importlib.util.find_spec("matplotlib") is None:
            print("no report: it needs matplotlib, pip install 'gdssm[report]'")
            return 0
        return report(out)
    except KeyboardInterrupt:
        again = shlex.join(["gdssm", "report", str(out)])
        raise KeyboardInterrupt(f"interrupted; the models are trained and saved, the report is not: {again}") from None


def generate(model: Path, /, prompt: str | None = None, length: int = 500, temperature: float = 0.8, seed: int = 0) -> int:
    """Write text with a model that `gdssm train` made of one, character by character.

    Args:
        model: directory of the run, also of an unfinished one, a checkpoint, or a model file
        prompt: what the text begins with; a line break where not given
        length: characters to write (bytes, where the model reads bytes)
        temperature: below 1 likelier characters are preferred, 0 takes the likeliest
        seed: of the draws
    """
    from .settings import LARGEST_SEED

    check_count("--length", length)
    check_number("--temperature", temperature, least=0)
    check_count("--seed", seed, 0, LARGEST_SEED)
    if not model.exists():
        raise ConfigError(f"MODEL is {shown(str(model))}, which does not exist; a run of gdssm train or a model file is needed")
    from .generated import run

    try:
        run(model, prompt, length=length, temperature=temperature, seed=seed)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted") from None
    return 0


def report(path: Path, /, out: Path | None = None) -> int:
    """Make the report again from what was saved; nothing is trained.

    Args:
        path: directory of reproduce, train or identify, also of an unfinished run, or a checkpoint
        out: file to write; report.html or identify.html in the directory, or beside the checkpoint, where not given
    """
    from .records import holds_experiments
    from .report import write_report

    if path.is_file() and path.suffix != ".safetensors":
        raise ConfigError(f"PATH is {shown(str(path))}, a file; the directory of a run or a checkpoint is needed")
    made, kept = (path / "record.json").is_file(), any(path.glob("checkpoints/step-*.safetensors"))
    if path.is_file() or ((path / "run.json").is_file() and (kept or not made)):  # without checkpoints its record is what is left
        from .runs import write_record

        path = write_record(path)[0]
    elif (path / "identify.json").is_file() and not holds_experiments(path):
        from .identification_report import write_page

        print(f"report: {write_page(path, out)}")
        return 0
    print(f"report: {write_report(path, out)}")
    return 0


def identify(
    model: str,
    /,
    out: Path | None = None,
    tasks: int = 400,
    seed: int = 0,
    max_steps: int = 10,
    inputs: int | None = None,
    targets: int | None = None,
    examples: int | None = None,
    noise: float | None = None,
    layers: bool = True,
) -> int:
    """Say which explicit learner a model runs in its context: gradient descent, ridge regression and others.

    Args:
        model: name of a ready model, model file, directory or checkpoint of a training run, or module:function
        out: directory for identify.json and the page identify.html, made if absent
        tasks: number of tasks, half to fit on, half to score
        seed: seed of the tasks
        max_steps: largest number of steps to try
        inputs: input features of a task; as the model was trained, or 10, where not given
        targets: target features of a task; as the model was trained, or 10, where not given
        examples: examples in a context; as the model was trained, or 10, where not given
        noise: standard deviation of the noise on the targets; as the model was trained, or 0, where not given
        layers: of a stack or an iterated readout, say also what it predicts after each layer or iteration
    """
    from .sources import located

    source = located(model)
    for name, value, least in (("--tasks", tasks, 20), ("--seed", seed, 0)):
        check_count(name, value, least)
    check_count("--max-steps", max_steps, most=50)
    sizes = {"d_x": inputs, "d_y": targets, "n_examples": examples, "noise_std": noise}
    for label, size in (("--inputs", inputs), ("--targets", targets), ("--examples", examples)):
        if size is not None:
            check_count(label, size)
    if noise is not None:
        check_number("--noise", noise, least=0)
    if out is not None:
        _check_directory(out)
    from .identified import run

    print(run(source, sizes, out, tasks=tasks, seed=seed, max_steps=max_steps, layers=layers))
    return 0


def bench(
    against: str | None = None,
    preset: Literal["quick", "full"] = "quick",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Time this library beside other sequence operators in one run: speed, memory, and how both grow; outputs checked first.

    Args:
        against: names of peers, separated by commas; where not given, those that suit the device
        preset: quick (two minutes on two cores) or full (sweeps and long streams)
        device: auto takes a GPU where there is one
        json: file for the record
        plot: file for a picture, PNG
    """
    from .bench.cases import named

    names = named(against)
    for label, path in (("--json", json), ("--plot", plot)):
        if path is not None:
            _check_directory(path.parent, label)
            if path.is_dir():
                raise ConfigError(f"{label} is {shown(str(path))}, which is a directory; a file is needed")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib, which is not installed: pip install 'gdssm[report]'")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts memory, would write to standard error
    from .bench.command import run

    return 0 if run(names, preset, device, json, plot) else EXIT_CLAIM


def _check_directory(path: Path, label: str = "--out") -> None:
    """ConfigError where files cannot be written to DIR; leaves no trace, for the run may still be interrupted."""
    missing: list[Path] = []
    try:
        missing += [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise ConfigError(f"{label} is {shown(str(path))}, which is a file; a directory is needed") from None
    except OSError as error:
        raise ConfigError(f"{label} is {shown(str(path))}, where nothing can be written: {error.strerror}") from None
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # "new/.." cannot be removed, and goes with "new"
                made.rmdir()


COMMANDS: dict[str, Command] = {
    "reproduce": reproduce,
    "train": train,
    "generate": generate,
    "predict": predict,
    "report": report,
    "identify": identify,
    "bench": bench,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `gdssm`."""
    raise SystemExit(_guarded(list(sys.argv[1:] if arguments is None else arguments)))


def _guarded(given: list[str]) -> int:
    try:
        return prepare(Program("gdssm", _DESCRIPTION, __version__, COMMANDS), given)()
    except UserError as error:
        print(f"gdssm: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        print(f"gdssm: {str(stop) or 'interrupted; nothing of the unfinished run was written'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        print(f"gdssm: {one_line(f'{error.filename}: {error.strerror}' if error.filename else str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except (RuntimeError, MemoryError) as error:
        if type(error).__name__ == "NonFiniteError":  # named, not imported: training alone brings torch
            print(f"gdssm: training stopped: {error}", file=sys.stderr)
            return EXIT_NON_FINITE
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        print(f"gdssm: the memory of this machine does not suffice: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
