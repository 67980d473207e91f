"""Blocks (blocks.py) as HTML: texts, tables, and charts with the same data as a table that unfolds. Read `block_html` first."""

from html import escape

from .blocks import Block, Cell, Dots, Lines, Table, Text
from .report_parts import matplotlib_needed, table

NOTHING = "\N{EN DASH}"
WIDE = 6  # columns: from here on the first one stays in sight


def block_html(block: Block, anchor: str) -> str:
    """A block under its title; ids start with anchor. ReportError where a chart is drawn and matplotlib is not installed."""
    head = f'<h3 id="{anchor}">{escape(block.title)}</h3>'
    if isinstance(block, Text):
        return "\n".join([head, *(f'<p class="prose">{escape(text)}</p>' for text in block.paragraphs)])
    if isinstance(block, Table):
        return f"{head}\n{cells_table(block)}"
    with matplotlib_needed():
        from .charts import draw
    data = data_table(block)
    return (
        f'{head}\n<figure class="chart">\n<div class="card">{draw(block, anchor)}</div>\n'
        f"<figcaption>{escape(block.caption)}</figcaption>\n</figure>\n"
        f"<details><summary>The data of this figure as a table</summary>\n{cells_table(data)}\n</details>"
    )


def cells_table(block: Table) -> str:
    """The rows as a table, with the note and what a dash means below it."""
    columns = list(zip(*block.rows, strict=True))
    numeric = [i for i, cells in enumerate(columns) if is_numeric(cells)]
    rows = [[escape(shown(cell)) for cell in row] for row in block.rows]
    made = table(block.title, block.heads, rows, numeric)
    if len(block.heads) >= WIDE:
        made = made.replace('class="scroll"', 'class="scroll wide"', 1)
    dash = f"{NOTHING}: no value." if any(cell is None for row in block.rows for cell in row) else ""
    note = " ".join(part for part in (block.note, dash) if part)
    return made + (f'\n<p class="note">{escape(note)}</p>' if note else "")


def is_numeric(cells: tuple[Cell, ...]) -> bool:
    """Whether all cells are numbers or None, and some a number; truth values are words."""
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in known)


def shown(cell: Cell) -> str:
    """A cell as text: floats with four significant digits, integers whole, truth values as words, None as a dash."""
    if cell is None:
        return NOTHING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def data_table(block: Lines | Dots) -> Table:
    """What a chart shows, as a table: a row for every point of a curve, or for every row of dots with all its seeds."""
    if isinstance(block, Dots):
        return Table(f"Data: {block.title}", *dots_cells(block))
    spread = any(series.low is not None for series in block.series)
    heads = ("series", block.x_label, block.y_label, *(("low", "high") if spread else ()))
    rows: list[tuple[Cell, ...]] = []
    for series in block.series:
        nothing = (None,) * len(series.x)
        ends = (series.low or nothing, series.high or nothing) if spread else ()
        rows += [(series.label, *numbers) for numbers in zip(series.x, series.y, *ends, strict=True)]
    return Table(f"Data: {block.title}", heads, tuple(rows))


def dots_cells(block: Dots) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Heads and rows of the table of a Dots: the median, the ends, and the seeds in their order."""
    grouped = any(block.groups)
    heads = ("row", *(("group",) if grouped else ()), "median", "lowest", "highest", "every seed")
    rows: list[tuple[Cell, ...]] = []
    for group, members in block.groups.items():
        for row in members:
            ends = (min(row.known), max(row.known)) if row.known else (None, None)
            seeds = ", ".join(shown(value) for value in row.values)
            rows.append((row.label, *((group,) if grouped else ()), row.median, *ends, seeds))
    return heads, tuple(rows)
