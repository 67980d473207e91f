"""The pages of docs/ and the readme: code runs, commands and names exist, links lead somewhere, the site builds."""

import contextlib
import importlib
import importlib.util
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

import gdssm
from gdssm import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IDENTIFIER = re.compile(r"^::: (\S+)$", re.MULTILINE)
PROGRAMS = ("gdssm", "make", "python", "pip")


def fenced(text, language):
    """The fenced blocks of a language, with their first lines."""
    return [(text.count("\n", 0, m.start()) + 1, m[2]) for m in FENCE.finditer(text) if m[1] == language]


def blocks():
    """Every python block with its page and first line."""
    for page, text in PAGES.items():
        for number, (line, code) in enumerate(fenced(text, "python"), start=1):
            yield pytest.param(page, line, code, id=f"{page}-{number}")


def prose(text):
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(text):
    """The anchors that Python-Markdown gives to the headings of a page."""
    made = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
        made.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return made


def resolve(name):
    """The object behind a dotted name: a module, or what is in one. AttributeError where there is none."""
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        if isinstance(value, types.ModuleType) and not hasattr(value, part):
            try:
                value = importlib.import_module(".".join(parts[:i]))
            except ModuleNotFoundError:
                raise AttributeError(f"{'.'.join(parts[: i - 1])} has no {part!r}") from None
        else:
            value = getattr(value, part)
    return value


def unknown(names):
    """Those that lead nowhere."""
    wrong = []
    for name in names:
        try:
            resolve(name)
        except AttributeError:
            wrong.append(name)
    return wrong


def run(code, page, line):
    """Run a block in a namespace of its own; tracebacks show the page's line numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile("\n" * line + code, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "line", "code"), list(blocks()))
def test_code_block_runs(page, line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # blocks may write files
    run(code, page, line)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[page])):
        if re.match(r"[a-z]+:", target):  # another site
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_names_exist(page):
    """Dotted names of this package in backticks, e.g. gdssm.construct.ridge."""
    names = [
        name
        for code in re.findall(r"`([^`\n]+)`", prose(PAGES[page]))
        for name in re.findall(r"(?<![\w./-])gdssm(?:\.[A-Za-z_]\w*)+", code)
    ]
    assert unknown(names) == []


def test_every_public_name_of_constructions_is_documented():
    """Each function of gdssm.construct is on the page of constructions."""
    public = [
        name
        for name, value in vars(gdssm.construct).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == "gdssm.construct" and callable(value)
    ]
    assert len(public) >= 8
    page = PAGES["docs/constructions.md"]
    assert [name for name in public if f"`{name}" not in page and f"construct.{name}" not in page] == []


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^ *- (?:.*: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.removeprefix("docs/") for page in PAGES if page.startswith("docs/"))


# The API reference


def referenced():
    """Identifiers of the reference, with the page of each."""
    return {name: page for page, text in PAGES.items() for name in IDENTIFIER.findall(text)}


def test_identifiers_of_the_reference_exist():
    assert len(referenced()) > 30
    assert unknown(referenced()) == []


def test_an_identifier_stands_once():
    names = [name for text in PAGES.values() for name in IDENTIFIER.findall(text)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", gdssm.__all__)
def test_every_public_name_is_in_the_reference(name):
    """Under its own heading, or in its module's."""
    value = getattr(gdssm, name)
    home = getattr(value, "__module__", None)
    parts = [f"{value.__name__}."] if isinstance(value, types.ModuleType) else []  # or the functions of a module one by one
    assert any(r in (f"gdssm.{name}", home) or r.startswith(tuple(parts)) for r in referenced())


def test_docstrings_become_tables_and_links():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = (
        "One line, see gdssm.ops.\n\n    a = b |c|\n\nsize      rows | columns,\n          both\nd_x, d_y  sizes\nMore: `gdssm.x`."
    )
    assert module.markdown(given).splitlines() == [
        'One line, see <autoref identifier="gdssm.ops" optional><code>gdssm.ops</code></autoref>.',
        "",
        "    a = b |c|",
        *["", "", "| | |", "|---|---|", "| `size` | rows \\| columns, both |", "| `d_x`, `d_y` | sizes |", ""],
        "More: `gdssm.x`.",
    ]


def test_two_columns_of_docstrings_are_one_name_each():
    """A second name in the text of a row would be lost in the table."""
    row = re.compile(r"^[A-Za-z]\w*(?:, \w+)* {2,}\S.*?\S {2,}[a-z]\w*(?:, \w+)* {2,}\S", re.MULTILINE)
    wrong = []
    for identifier in referenced():
        value = resolve(identifier)
        inner = list(vars(value).values()) if isinstance(value, type | types.ModuleType) else []
        own = [v for v in inner if callable(v) and getattr(v, "__module__", "") == getattr(value, "__name__", "")]
        wrong += [f"{identifier}: {m[0]}" for v in [value, *own] for m in row.finditer(inspect.getdoc(v) or "")]
    assert wrong == []


# Commands


def commands(text):
    """Commands in bash blocks and indented blocks, as lists of words."""
    shown = [line for _, block in fenced(text, "bash") for line in block.splitlines()]
    shown += [line[4:] for line in prose(text).splitlines() if re.match(r"    (gdssm|make|python|pip) ", line)]
    return [words for line in shown if (words := shlex.split(line, comments=True))]


def inline_commands(text):
    """Commands in backticks, which may leave out arguments."""
    found = [code.split() for code in re.findall(r"`([^`\n]+)`", prose(text))]
    return [words for words in found if words[0] in PROGRAMS and len(words) > 1]


def help_of(command):
    """What `gdssm COMMAND --help` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    return output.getvalue()


def fault(words):
    """What is wrong with a command, or None."""
    program, *rest = words
    if program == "gdssm":
        return gdssm_fault(rest)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        variables = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wrong = [w for w in rest if w.partition("=")[0] not in (variables if "=" in w else targets)]
    elif program == "python":
        module = rest[0] == "-m"
        wrong = [w for w in rest[:1] if not module and not (ROOT / w).is_file()]
        wrong += [w for w in rest[2:] if module and w.startswith("tests/") and not (ROOT / w).is_file()]
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wrong = [e for w in rest for e in re.findall(r"\[(.*)\]", w) if e not in extras] or rest[0] != "install"
    else:
        return f"{program} is no known program"
    return f"{words}: {wrong}" if wrong else None


def gdssm_fault(rest):
    first = rest[0]
    if first.startswith("-"):
        return None if first in ("--version", "--help") else f"gdssm has no {first}"
    if first not in cli.COMMANDS:
        return f"gdssm has no command {first}"
    text = help_of(first)
    flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
    missing = [flag for flag in flags if not re.search(rf"(^|[ ,]){flag}(?![\w-])", text, re.MULTILINE)]
    return f"gdssm {first} has no {missing}" if missing else None


@pytest.mark.parametrize("page", [page for page in PAGES if commands(PAGES[page]) or inline_commands(PAGES[page])])
def test_commands_exist(page):
    found = [fault(words) for words in [*commands(PAGES[page]), *inline_commands(PAGES[page])]]
    assert [wrong for wrong in found if wrong] == []


@pytest.mark.parametrize(
    "words",
    [
        "make everything",
        "gdssm reprodce",
        "gdssm predict t.csv --targt a",
        "python benchmarks/none.py",
        "pip install .[al]",
        "rm x",
    ],
)
def test_wrong_commands_are_seen(words):
    assert fault(words.split()) is not None


def test_table_commands_of_the_quickstart_run(tmp_path, monkeypatch, capsys):
    page = "docs/quickstart.md"
    monkeypatch.chdir(tmp_path)
    for line, code in fenced(PAGES[page], "python"):
        if '.csv"' in code:
            run(code, page, line)
    shown = [words for words in commands(PAGES[page]) if words[:2] == ["gdssm", "predict"]]
    assert len(shown) == 3
    for words in shown:
        with pytest.raises(SystemExit) as stop:
            cli.main(words[1:])
        output = capsys.readouterr().out
        assert stop.value.code == 0, words
        assert len(output.splitlines()) == 11 if "--query" in words else "ridge" in output, output


# The paper's claims


def rows(text):
    """Rows of the page's tables, but for headings: lists of cells."""
    tables = re.findall(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", prose(text), re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("| \n"))] for table in tables for row in table.splitlines()]


def pointers(cells):
    """What a row points to: names of this package, files, functions in files, links into the pages, commands."""
    codes = re.findall(r"`([^`]+)`", cells)
    names = [code for code in codes if re.fullmatch(r"gdssm(\.\w+)+", code)]
    files = [code for code in codes if re.fullmatch(r"(tests|src|docs|benchmarks)/[\w/.]+(::\w+)?", code)]
    ran = [code for code in codes if code.split()[0] in PROGRAMS and " " in code]
    return names, files, re.findall(r"\]\(([^)]+)\)", cells), ran


def test_claims_of_the_paper_point_to_what_exists():
    found = rows(PAGES["docs/paper.md"])
    assert len(found) > 40
    for cells in found:
        names, files, links, ran = pointers(" ".join(cells))
        assert names or files or links or ran, cells
        assert unknown(names) == []
        for file in files:
            path, _, function = file.partition("::")
            assert (ROOT / path).is_file(), file
            assert not function or f"def {function}(" in (ROOT / path).read_text(), file
        for claim in re.findall(r"`gdssm reproduce [\w-]+`: `(\w+)`", cells[1]):
            assert f'"{claim}"' in "".join(path.read_text() for path in (ROOT / "src/gdssm/experiments").glob("*.py"))


# The site


def test_pictures_are_whole_and_say_what_they_show():
    drawn = sorted((DOCS / "figures").glob("*.svg"))
    used = {name for text in PAGES.values() for name in re.findall(r"\(figures/([\w-]+\.svg)\)", text)}
    assert used >= {"windows.svg", "filling.svg", "steps.svg"}
    for path in drawn:
        if path.name in used:
            names = [child.tag.rpartition("}")[2] for child in ElementTree.parse(path).getroot()]
            assert names[:2] == ["title", "desc"]
    for text in PAGES.values():
        assert not re.findall(r"!\[\]\(", text)  # every picture has a description


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("concept_figures", ROOT / "scripts/concept_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["windows", "filling", pytest.param("steps", marks=pytest.mark.slow)])
def test_the_pictures_are_the_scripts(pictures, name):
    assert pictures.PICTURES[name]() == (DOCS / f"figures/{name}.svg").read_text()


def test_losses_of_the_picture_are_the_known_ones(pictures):
    """Losses per output and rates of the best polynomials, N = d = 10 (docs/constructions.md, "Any polynomial")."""
    found = pictures.curves(most=3, tasks=10_000)
    assert found.one_rate == pytest.approx([0.2062, 0.1567, 0.1329], rel=0.02)
    assert found.best == pytest.approx([0.2062, 0.1414, 0.1102], rel=0.02)
    assert found.rates[1] == pytest.approx([0.4002, 1.1568], rel=0.01)
    assert found.rates[2] == pytest.approx([0.3357, 0.5653, 1.8847], rel=0.03)


def test_the_state_approaches_the_task(pictures):
    states, wanted = pictures.filling((1, 10, 1000))
    distances = [float((w - wanted).norm() / wanted.norm()) for w in states]
    assert distances[0] > 0.9 > 0.6 > distances[1] > 0.1 > distances[2]


def site_python():
    """A python that has mkdocs: this one, or the one that GDSSM_DOCS_PYTHON names."""
    given = os.environ.get("GDSSM_DOCS_PYTHON") or None
    if given is None and all(importlib.util.find_spec(name) for name in ("mkdocs", "mkdocstrings", "material")):
        return sys.executable
    return given


@pytest.mark.skipif(site_python() is None, reason="mkdocs is not installed: pip install 'gdssm[docs]'")
def test_the_site_builds_without_warnings(tmp_path):
    done = subprocess.run(
        [site_python(), "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    reference = (tmp_path / "site/reference/layers/index.html").read_text()
    assert 'id="gdssm.GDSSM.answer"' in reference  # a method with its docstring
    assert "<code>key_map</code></td>" in reference  # a list of arguments as a table


def test_citation_agrees_with_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
