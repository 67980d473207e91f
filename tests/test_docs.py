"""The pages of docs/ and the readme: code blocks run, links lead somewhere, names exist, metadata agree."""

import re
import tomllib
import unicodedata
from pathlib import Path

import pytest
import torch

import gdssm

ROOT = Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    """Every python block with its page and first line."""
    for page, text in PAGES.items():
        found = [m for m in FENCE.finditer(text) if m[1] == "python"]
        for number, match in enumerate(found, start=1):
            yield pytest.param(page, text.count("\n", 0, match.start()) + 1, match[2], id=f"{page}-{number}")


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


@pytest.mark.parametrize(("page", "line", "code"), list(blocks()))
def test_code_block_runs(page, line, code):
    """Each in a namespace of its own; tracebacks show the page's line numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile("\n" * line + code, page, "exec"), {"__name__": "__main__"})


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
    wrong = []
    for code in re.findall(r"`([^`\n]+)`", prose(PAGES[page])):
        for name in re.findall(r"(?<![\w./-])gdssm((?:\.[A-Za-z_]\w*)+)", code):
            value = gdssm
            for part in name[1:].split("."):
                value = getattr(value, part, None)
            if value is None:
                wrong.append(f"gdssm{name}")
    assert not wrong


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
    listed = set(re.findall(r"^ *- .*: (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {Path(page).name for page in PAGES if page.startswith("docs/")}


def test_citation_agrees_with_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
