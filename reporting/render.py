"""Write a report as Markdown, LaTeX, CSV, HTML and image files.

write_report("report", "My runs", [Heading("Baby"), Table(...), Figure(...)])
"""

import math
from collections.abc import Sequence
from pathlib import Path

from outgoing import csv_text, latex_text, markdown_text
from reporting.blocks import Block, Cell, Figure, Heading, Number, Table, Text
from reporting.drawing import encode
from reporting.page import html_page
from utils import UserError, atomic_write

# ---------------------------------------------------------------- Markdown


def markdown_cell(cell: Cell) -> str:
    """A table cell: best result bold, second best underlined."""
    text = markdown_text(cell)
    if isinstance(cell, Number) and cell.mark:
        return f"**{text}**" if cell.mark == "best" else f"<u>{text}</u>"
    return text


def markdown_table(table: Table) -> str:
    """A table with aligned columns, its title above and its note below."""
    header = [markdown_text(name) for name in table.header]
    rows = [[markdown_cell(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    numeric = table.numeric_columns()
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric)
        ]
        return f"| {' | '.join(padded)} |"

    lines = [f"**{markdown_text(table.title)}**", "", *map(line, [header, rule, *rows])]
    if table.note:
        lines += ["", markdown_text(table.note)]
    return "\n".join(lines)


def markdown_block(block: Block) -> str:
    """Any block in Markdown."""
    match block:
        case Heading(text):
            return f"## {markdown_text(text)}"
        case Text(text, warning):
            return ("**Warning.** " if warning else "") + markdown_text(text)
        case Table():
            return markdown_table(block)
        case Figure():
            return f"![{markdown_text(block.caption)}]({block.slug}.png)"


def markdown(blocks: Sequence[Block]) -> str:
    """All blocks as one Markdown text."""
    return "\n\n".join(map(markdown_block, blocks)) + "\n"


# ---------------------------------------------------------------- CSV


def csv_table(table: Table) -> str:
    """A table as CSV at full precision; a column with standard deviations becomes two."""
    has_sd = [
        any(isinstance(cell, Number) and cell.sd is not None for cell in column)
        for column in zip(*table.rows)
    ]
    header = []
    for name, two in zip(table.header, has_sd):
        header += [name, f"{name} sd"] if two else [name]
    rows = [
        [value for cell, two in zip(row, has_sd) for value in csv_values(cell)[: 1 + two]]
        for row in table.rows
    ]
    return csv_text([header, *rows])


def csv_values(cell: Cell) -> list[str | int | float]:
    """A table cell as [value, standard deviation]; empty where there is none."""
    if not isinstance(cell, Number):
        return [cell, ""]
    pair = (cell.mean, cell.sd)
    return ["" if value is None or math.isnan(value) else float(value) for value in pair]


# ---------------------------------------------------------------- LaTeX


def latex_cell(cell: Cell) -> str:
    """A table cell: best result bold, second best underlined."""
    text = latex_text(cell)
    if isinstance(cell, Number) and cell.mark:
        return rf"\textbf{{{text}}}" if cell.mark == "best" else rf"\underline{{{text}}}"
    return text


def latex_table(table: Table) -> str:
    """A table environment; needs the packages booktabs and graphicx."""
    rows = [[latex_text(name) for name in table.header]]
    rows += [[latex_cell(cell) for cell in row] for row in table.rows]
    header, *body = [" & ".join(cells) + r" \\" for cells in rows]
    caption = latex_text(f"{table.title}. {table.note}".strip())
    columns = "".join("r" if right else "l" for right in table.numeric_columns())
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        # Tables wider than the line shrink to it.
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        header,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- files


def write_report(
    folder: str | Path, title: str, blocks: Sequence[Block], data: Sequence[Table] = ()
) -> list[str]:
    """Write report.html, report.md, tables.tex, one .csv per table, and a .png and .pdf per figure.

    data: tables that become .csv files and are not on the pages. Returns the names of the files. Raises
    UserError if the folder cannot be created.
    """
    tables = [block for block in blocks if isinstance(block, Table)]
    figures = [block for block in blocks if isinstance(block, Figure)]
    files: dict[str, str | bytes] = {
        "report.html": html_page(title, blocks),
        "report.md": f"# {markdown_text(title)}\n\n{markdown(blocks)}",
        "tables.tex": "% needs \\usepackage{booktabs,graphicx}\n" + "\n".join(map(latex_table, tables)),
    }
    files |= {f"{table.slug}.csv": csv_table(table) for table in [*tables, *data]}
    files |= {
        f"{figure.slug}.{kind}": encode(figure.image, kind) for figure in figures for kind in ("png", "pdf")
    }
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise UserError(
            f"{folder}: cannot be created ({reason}); choose another folder with --output"
        ) from None
    for name, content in files.items():
        with atomic_write(Path(folder) / name) as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    return list(files)
