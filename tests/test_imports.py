"""Importing the package is light, its public names exist, and data flows one way: imports follow the order of the layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gdssm

SOURCE = Path(gdssm.__file__).parent

# Who may import whom: a module imports what stands on an earlier line, or beside it; modules not listed come last.
ORDER = [
    {"arguments", "config", "files", "progress", "show", "table"},
    {"records", "storage"},
    {"blocks"},
    {"ops"},
    {"tasks", "theory"},
    {"settings"},
    {"recipe"},
    {"weights"},
    {"state"},
    {"layers"},
    {"readouts"},
    {"models", "classifiers", "learners", "baselines", "deep", "generation"},
    {"construct", "tokens", "ensemble", "hf", "hf_cache", "hf_sequences", "saving", "streaming"},
    {"hf_models", "sequences"},
    {"train", "predict"},
    {"copies", "sequence_train", "text_config"},
    {"text_training"},
    {"predicted"},
    {"analysis"},
    {"views"},
    {"monitor"},
    {"metrics"},
    {"checkpoint"},
    {"figures", "heatmaps"},
    {"charts", "interactive"},
    {"report_parts"},
    {"report_blocks", "verdicts"},
    {"report"},
    {"identification_figures"},
    {"identification_report"},
    {"bench", "experiments"},
    {"config_files", "runs"},
    {"ready", "sources", "generated"},
    {"identified", "reproduced"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
LAST = len(ORDER)
OWNERS = {
    "matplotlib": {"bench", "charts", "figures", "identification_figures"},
    "transformers": {"bench", "hf", "hf_cache", "hf_models"},
    "treescope": {"show"},
    "IPython": {"show"},
    "triton": {"ops"},
}


def exists(name):
    """Whether this is a module or package of gdssm, and not a name defined in one."""
    return (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()


def part_of(path):
    """The top-level module or package that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path):
    """(top-level name within gdssm or None, top-level name of the package) of every import that runs, function bodies included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ignored = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = ["gdssm", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            targets = [base] if len(base) > 1 or base[0] != "gdssm" else [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            yield (target[1] if target[0] == "gdssm" and len(target) > 1 else None), target[0]


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_layers(path):
    own = part_of(path)
    for inner, outer in imported(path):
        if inner is not None and exists(inner):
            assert LEVEL.get(inner, LAST) <= LEVEL.get(own, LAST), f"{own} imports {inner}"
        if outer in OWNERS:
            assert own in OWNERS[outer], f"{own} imports {outer}"


def test_the_order_is_not_empty_talk():
    """The imports that the order is about are seen, and those for type checkers only are not."""
    seen = {(part_of(path), inner) for path in FILES for inner, _ in imported(path) if inner}
    assert {("layers", "ops"), ("models", "layers"), ("construct", "readouts"), ("tokens", "models"), ("state", "ops")} <= seen
    assert ("state", "layers") not in seen  # for type checkers only
    assert {name for name in LEVEL if (SOURCE / name).exists() or (SOURCE / f"{name}.py").exists()} >= {
        "ops",
        "layers",
        "construct",
    }


def test_operators_know_nothing_above_them():
    for path in (SOURCE / "ops").rglob("*.py"):
        assert {inner for inner, _ in imported(path)} <= {None, "ops"}


def test_constructions_and_learners_share_no_code():
    """So that their agreement means something: neither imports the other, nor anything the other is made of."""
    for own, other in (("construct", "learners"), ("learners", "construct")):
        reached, todo = set(), {own}
        while todo:
            name = todo.pop()
            reached.add(name)
            files = [SOURCE / f"{name}.py"] if (SOURCE / f"{name}.py").exists() else (SOURCE / name).glob("*.py")
            todo |= {inner for path in files for inner, _ in imported(path) if inner} - reached
        assert other not in reached
        if own == "learners":
            assert reached <= {"learners", "tasks", "config", "show"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout.split()


def test_importing_the_package_does_not_import_torch():
    heavy = "('torch', 'numpy', 'matplotlib', 'sklearn', 'rich')"
    shown = f"print(*[name for name in {heavy} if name in sys.modules])"
    assert run(f"import sys, gdssm; gdssm.__version__, dir(gdssm); {shown}") == []
    assert (
        run(f"import sys, gdssm.config, gdssm.theory; gdssm.theory.one_step_optimum(1, 1, x_var=1.0, x_fourth_moment=1.0); {shown}")
        == []
    )
    more = "import gdssm.hf, gdssm.baselines; print('transformers' in sys.modules)"  # only when a model is built
    assert run(f"import sys, gdssm; gdssm.GDSSM; {shown}; {more}") == ["torch", "numpy", "False"]


@pytest.mark.parametrize("name", gdssm.__all__)
def test_every_public_name_exists(name):
    assert getattr(gdssm, name) is not None
    assert name in dir(gdssm)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gdssm' has no attribute 'GDSM'"):
        _ = gdssm.GDSM
