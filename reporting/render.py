"""How a report looks: tables in Markdown, LaTeX, CSV and HTML, figures, and one self-contained page.

A report is a list of blocks (Heading, Text, Table, Figure) that each format renders in its own way. Figures need matplotlib.
"""

import base64
import csv
import dataclasses
import html
import io
import math
import re
from pathlib import Path

from reporting.figures import picture
from utils import UserError, atomic_write

# ---------------------------------------------------------------- blocks


@dataclasses.dataclass(frozen=True)
class Number:
    """A cell with a value, and the standard deviation beside it if there is one; mark: "best", "second" or "".

    form: a format specification, as ".4f". A value that is None or NaN shows as a dash.
    """

    mean: float | None
    sd: float | None = None
    form: str = ".4f"
    mark: str = ""

    def __str__(self):
        if self.mean is None or math.isnan(self.mean):
            return "–"
        return f"{self.mean:{self.form}}" + ("" if self.sd is None else f" ± {self.sd:{self.form}}")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells (text, whole numbers, Numbers) under a header; slug: its file name; note: the small print."""

    title: str
    slug: str
    header: list
    rows: list
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; warning: one that must be seen."""

    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture: image, a matplotlib Figure, goes to <slug>.png and .pdf."""

    image: object
    slug: str
    caption: str


# ---------------------------------------------------------------- Markdown, CSV, LaTeX


def plain(text):
    """Text as Markdown shows it literally, within a table too."""
    return re.sub(r"[\\`*<|\[]|&(?=[#\w])", r"\\\g<0>", str(text))


def markdown_cell(cell):
    """A cell in Markdown: the best value bold, the second underlined."""
    before, after = {"best": ("**", "**"), "second": ("<u>", "</u>")}.get(getattr(cell, "mark", ""), ("", ""))
    return before + plain(cell) + after


def markdown_table(table):
    """A Table in Markdown, its columns in line."""
    grid = [
        [plain(head) for head in table.header],
        *([markdown_cell(cell) for cell in row] for row in table.rows),
    ]
    widths = [max(map(len, column)) for column in zip(*grid)]
    numeric = [all(not isinstance(cell, str) for cell in column) for column in zip(*table.rows)] or [
        False
    ] * len(widths)
    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric)]
    lines = [f"**{plain(table.title)}**", ""]
    for row in (grid[0], rule, *grid[1:]):
        lines.append(
            "| "
            + " | ".join(
                cell.rjust(n) if right else cell.ljust(n) for cell, n, right in zip(row, widths, numeric)
            )
            + " |"
        )
    return "\n".join(lines + (["", plain(table.note)] if table.note else []))


def markdown(blocks):
    """All blocks as one Markdown text."""
    show = {
        Heading: lambda block: f"## {plain(block.text)}",
        Table: markdown_table,
        Text: lambda block: ("**Warning.** " if block.warning else "") + plain(block.text),
        Figure: lambda block: f"![{plain(block.caption)}]({block.slug}.png)",
    }
    return "\n\n".join(show[type(block)](block) for block in blocks) + "\n"


def csv_table(table):
    """A Table as CSV, values at full precision; a column with standard deviations becomes two."""
    deviates = [any(getattr(cell, "sd", None) is not None for cell in column) for column in zip(*table.rows)]
    lines = [
        [
            name
            for head, two in zip(table.header, deviates)
            for name in ([head, f"{head} sd"] if two else [head])
        ]
    ]
    for row in table.rows:
        lines.append([value for cell, two in zip(row, deviates) for value in csv_values(cell)[: 1 + two]])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def csv_values(cell):
    """A cell as [value, standard deviation], empty where there is none."""
    if not isinstance(cell, Number):
        return [cell, ""]
    return [
        "" if value is None or math.isnan(value) else repr(float(value)) for value in (cell.mean, cell.sd)
    ]


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "×": r"$\times$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


def latex_text(text):
    """Text with everything that LaTeX would take for a command escaped."""
    return "".join(LATEX.get(sign, sign) for sign in str(text))


def latex_cell(cell):
    """A cell in LaTeX: the best value bold, the second underlined."""
    command = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(getattr(cell, "mark", ""), "%s")
    return command % latex_text(cell)


def latex_table(table):
    """A Table as a LaTeX table environment; needs the packages booktabs and graphicx."""
    numeric = [all(not isinstance(cell, str) for cell in column) for column in zip(*table.rows)]
    rows = [
        " & ".join(cells) + r" \\"
        for cells in (
            [latex_text(head) for head in table.header],
            *([latex_cell(cell) for cell in row] for row in table.rows),
        )
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(f'{table.title}. {table.note}'.strip())}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # wide tables shrink to the line
        rf"\begin{{tabular}}{{{''.join('lr'[right] for right in numeric)}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- HTML

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 84rem; margin: 0 auto; padding: 0 1rem 3rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; overflow-wrap: anywhere; }
p, figcaption { max-width: 48rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid #e5e8eb; }
th { border-bottom: 2px solid #57606a; white-space: normal; vertical-align: bottom; } .right { text-align: right; }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
tbody tr:hover { background: #f3f6f9; }
.note, figcaption { color: #57606a; font-size: .9rem; }
.warning { border-left: 4px solid #d55e00; background: #fff4ec; padding: .5rem .8rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; }
"""


def html_cell(cell, right):
    """A cell as HTML: the best value bold, the second underlined."""
    text = html.escape(str(cell))
    wrapped = {"best": f"<b>{text}</b>", "second": f"<u>{text}</u>"}.get(getattr(cell, "mark", ""), text)
    kind = ' class="right"' if right else ' class="long"' if len(text) > 60 else ""
    return f"<td{kind}>{wrapped}</td>"


def html_table(table):
    """A Table as HTML, in a box of its own that scrolls."""
    numeric = [all(not isinstance(cell, str) for cell in column) for column in zip(*table.rows)]
    head = "".join(
        f'<th scope="col"{" class=right" * right}>{html.escape(text)}</th>'
        for text, right in zip(table.header, numeric)
    )
    body = "\n".join(f"<tr>{''.join(map(html_cell, row, numeric))}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n{note}"
    )


def html_figure(figure):
    """A Figure as HTML with the picture inside, never so small that its labels cannot be read (72 pixels an inch)."""
    inches = figure.image.get_figwidth()
    data, caption = base64.b64encode(picture(figure.image, "png")).decode(), html.escape(figure.caption)
    return (
        f'<figure><div class="scroll"><img alt="{caption}" width="{100 * inches:.0f}" style="min-width: {72 * inches:.0f}px" '
        f'src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def html_text(block):
    """A Text as HTML."""
    return (
        f'<p class="warning">{html.escape(block.text)}</p>'
        if block.warning
        else f"<p>{html.escape(block.text)}</p>"
    )


def html_page(title, blocks):
    """All blocks as one HTML page that needs no other file and no network."""
    show = {
        Heading: lambda block: f"<h2>{html.escape(block.text)}</h2>",
        Text: html_text,
        Table: html_table,
        Figure: html_figure,
    }
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n'
        + "\n".join(show[type(block)](block) for block in blocks)
        + "\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------- files


def write_report(folder, title, blocks):
    """Write report.html, report.md, tables.tex, a .csv a table, a .png and a .pdf a figure. Returns the names of the files."""
    files = {"report.html": html_page(title, blocks), "report.md": f"# {plain(title)}\n\n{markdown(blocks)}"}
    tables = [block for block in blocks if isinstance(block, Table)]
    files["tables.tex"] = "% needs \\usepackage{booktabs,graphicx}\n" + "\n".join(map(latex_table, tables))
    files |= {f"{table.slug}.csv": csv_table(table) for table in tables}
    for figure in (block for block in blocks if isinstance(block, Figure)):
        files |= {f"{figure.slug}.{kind}": picture(figure.image, kind) for kind in ("png", "pdf")}
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); name another folder with --output"
        ) from None
    for name, content in files.items():
        with atomic_write(Path(folder) / name) as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    return list(files)
