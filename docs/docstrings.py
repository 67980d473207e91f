"""How docstrings become Markdown for the API reference: an extension of griffe, which reads them for mkdocstrings.

Docstrings here are prose with two more things: equations, indented by four spaces, which Markdown shows as they are, and
lists of arguments or fields, a name and what it is in two columns, which Markdown would run together. The latter become
tables. Names such as gdssm.construct.ridge become links where the reference has them.
"""

import re
from typing import Any

import griffe

ROW = re.compile(r"(?P<names>[A-Za-z]\w*(?:, \w+)*) {2,}(?P<text>\S.*)")
CODE_SPAN = re.compile(r"(`[^`]*`)")
NAME = re.compile(r"(?<![\w./-])gdssm(?:\.[A-Za-z_]\w*)+")


def markdown(text: str) -> str:
    """The docstring with its two-column lists as tables and its dotted names as links."""
    lines: list[str] = []
    rows: list[list[str]] = []
    column = 0
    for line in [*text.splitlines(), ""]:
        match = ROW.fullmatch(line)
        if match:
            rows.append([match["names"], match["text"]])
            column = match.start("text")
        elif rows and line.strip() and len(line) - len(line.lstrip()) >= column:
            rows[-1][1] += " " + line.strip()
        else:
            lines += table(rows)
            rows = []
            lines.append(line if line.startswith("    ") else linked(line))
    return "\n".join(lines[:-1])


def table(rows: list[list[str]]) -> list[str]:
    """Rows (names, text) as lines of a Markdown table, set off from what stands around it; none for no rows."""
    if not rows:
        return []
    body = []
    for names, text in rows:
        named = ", ".join(f"`{name}`" for name in names.split(", "))
        escaped = linked(text).replace("|", "\\|")
        body.append(f"| {named} | {escaped} |")
    return ["", "| | |", "|---|---|", *body, ""]


def linked(text: str) -> str:
    """Dotted names of this package as cross references; those that lead nowhere stay plain text."""
    parts = CODE_SPAN.split(text)
    return "".join(part if part.startswith("`") else NAME.sub(_reference, part) for part in parts)


def _reference(match: re.Match[str]) -> str:
    return f'<autoref identifier="{match[0]}" optional><code>{match[0]}</code></autoref>'


class Docstrings(griffe.Extension):
    """Applies `markdown` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
