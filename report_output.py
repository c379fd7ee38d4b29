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

import numpy as np

from utils import UserError, atomic_write

# Okabe and Ito's colours, which people with any colour vision tell apart, without the yellow that is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")


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
    grid = [[plain(head) for head in table.header], *([markdown_cell(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*grid)]
    numeric = [all(not isinstance(cell, str) for cell in column) for column in zip(*table.rows)] or [False] * len(widths)
    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric)]
    lines = [f"**{plain(table.title)}**", ""]
    for row in (grid[0], rule, *grid[1:]):
        lines.append("| " + " | ".join(cell.rjust(n) if right else cell.ljust(n) for cell, n, right in zip(row, widths, numeric)) + " |")
    return "\n".join(lines + (["", plain(table.note)] if table.note else []))


def markdown(blocks):
    """All blocks as one Markdown text."""
    show = {Heading: lambda block: f"## {plain(block.text)}", Table: markdown_table,
            Text: lambda block: ("**Warning.** " if block.warning else "") + plain(block.text),
            Figure: lambda block: f"![{plain(block.caption)}]({block.slug}.png)"}
    return "\n\n".join(show[type(block)](block) for block in blocks) + "\n"


def csv_table(table):
    """A Table as CSV, values at full precision; a column with standard deviations becomes two."""
    deviates = [any(getattr(cell, "sd", None) is not None for cell in column) for column in zip(*table.rows)]
    lines = [[name for head, two in zip(table.header, deviates) for name in ([head, f"{head} sd"] if two else [head])]]
    for row in table.rows:
        lines.append([value for cell, two in zip(row, deviates) for value in csv_values(cell)[:1 + two]])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def csv_values(cell):
    """A cell as [value, standard deviation], empty where there is none."""
    if not isinstance(cell, Number):
        return [cell, ""]
    return ["" if value is None or math.isnan(value) else repr(float(value)) for value in (cell.mean, cell.sd)]


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "≥": r"$\ge$",
         "≤": r"$\le$", "×": r"$\times$", "<": r"\textless{}", ">": r"\textgreater{}", **{sign: "\\" + sign for sign in "&%$#_{}"}}


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
    rows = [" & ".join(cells) + r" \\" for cells in ([latex_text(head) for head in table.header],
                                                     *([latex_cell(cell) for cell in row] for row in table.rows))]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(f'{table.title}. {table.note}'.strip())}}}",
             r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",          # wide tables shrink to the line
             rf"\begin{{tabular}}{{{''.join('lr'[right] for right in numeric)}}}", r"\toprule", rows[0], r"\midrule", *rows[1:],
             r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
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
    head = "".join(f'<th scope="col"{" class=right" * right}>{html.escape(text)}</th>' for text, right in zip(table.header, numeric))
    body = "\n".join(f"<tr>{''.join(map(html_cell, row, numeric))}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (f'<div class="scroll"><table><caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody></table></div>\n{note}")


def html_figure(figure):
    """A Figure as HTML with the picture inside, never so small that its labels cannot be read (72 pixels an inch)."""
    inches = figure.image.get_figwidth()
    data, caption = base64.b64encode(picture(figure.image, "png")).decode(), html.escape(figure.caption)
    return (f'<figure><div class="scroll"><img alt="{caption}" width="{100 * inches:.0f}" style="min-width: {72 * inches:.0f}px" '
            f'src="data:image/png;base64,{data}"></div>'
            f"<figcaption>{caption}</figcaption></figure>")


def html_text(block):
    """A Text as HTML."""
    return f'<p class="warning">{html.escape(block.text)}</p>' if block.warning else f"<p>{html.escape(block.text)}</p>"


def html_page(title, blocks):
    """All blocks as one HTML page that needs no other file and no network."""
    show = {Heading: lambda block: f"<h2>{html.escape(block.text)}</h2>", Text: html_text, Table: html_table, Figure: html_figure}
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
            f'initial-scale=1">\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n'
            + "\n".join(show[type(block)](block) for block in blocks) + "\n</body>\n</html>\n")


# ---------------------------------------------------------------- figures

def canvas(panels, height=3.4, columns=2):
    """A matplotlib Figure and one axes a panel, two in a row. Raises UserError without matplotlib."""
    try:
        from matplotlib import figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install -r data/requirements.txt, or take --figures 0") from None
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    image = figure.Figure(figsize=(1 + 4.2 * columns, height * rows), layout="constrained")
    axes = image.subplots(rows, columns, squeeze=False).flat
    for axis in list(axes)[len(panels):]:
        axis.remove()
    for axis in image.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return image, image.axes


def look(number):
    """Colour, marker and dash of the line of this number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)],
            "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def literal(name):
    """A name as matplotlib shows it as it is: no formulas, and no underscore in front, which would hide it from legends."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_lines(panels, xlabel):
    """Lines with bands. panels: {y label: {name: (x or None for a level line, mean, low, high)}}, arrays of one length."""
    image, axes = canvas(panels)
    for axis, (ylabel, lines) in zip(axes, panels.items()):
        for number, (name, (x, mean, low, high)) in enumerate(lines.items()):
            style = {**look(number), "label": literal(name)}
            if x is None:
                axis.axhline(mean[0], **{**style, "marker": "", "linestyle": "--"})
                continue
            axis.plot(x, mean, markersize=4, markevery=max(len(x) // 12, 1), **style)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        scale_axis(axis, [value for x, *_ in lines.values() if x is not None for value in x])
        axis.grid(alpha=0.25)
    handles, names = axes[0].get_legend_handles_labels()
    fitting = int(14 * image.get_figwidth()) // (max(map(len, names)) + 8)       # about 14 letters an inch
    image.legend(handles, names, loc="outside lower center", ncols=min(max(fitting, 1), 4), frameon=False, fontsize=9)
    return image


def scale_axis(axis, x):
    """Ticks at whole numbers for whole numbers; a logarithmic axis for fractions that span more than a factor of 30."""
    if all(isinstance(value, int) for value in x):
        axis.locator_params(axis="x", integer=True)
    elif all(isinstance(value, float) for value in x) and min(x) > 0 and max(x) > 30 * min(x):
        axis.set_xscale("log")


def draw_bars(panels):
    """Horizontal bars with error bars. panels: {metric: [(name, mean, standard deviation or None)]}, best last."""
    rows = max(map(len, panels.values()))
    image, axes = canvas(panels, height=1 + 0.36 * rows)
    for axis, (metric, bars) in zip(axes, panels.items()):
        names, means, deviations = zip(*bars)
        axis.barh([literal(name) for name in names], means, xerr=[math.nan if deviation is None else deviation for deviation in deviations], color=COLOURS[5], ecolor="#333333", capsize=3)
        axis.set_title(metric, fontsize=11, loc="left")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.25)
        axis.locator_params(axis="x", nbins=6)
        axis.set_axisbelow(True)
    return image


def ternary(text, image):
    """Weights of text and image (the rest is the ID's) -> x, y in a triangle: ID left, text right, image on top."""
    return np.asarray(text) + np.asarray(image) / 2, np.asarray(image) * math.sqrt(3) / 2


def draw_triangle(panels):
    """Heat maps over fusion weights. panels: {metric: (text weights [n], image weights [n], values [n])}."""
    canvas_image, axes = canvas(panels, height=3.5)
    for axis, (metric, (text, image, values)) in zip(axes, panels.items()):
        draw_frame(axis)
        x, y = ternary(text, image)
        spread = {"vmin": min(values), "vmax": max(values), "cmap": "cividis"}
        if np.linalg.matrix_rank(np.stack([x - x[0], y - y[0]]), tol=1e-6) == 2:       # else the points span no area
            axis.tripcolor(x, y, values, shading="gouraud", alpha=0.85, **spread)
        dots = axis.scatter(x, y, c=values, s=36, edgecolors="white", linewidths=0.8, zorder=3, **spread)
        canvas_image.colorbar(dots, ax=axis, shrink=0.6, format="%.4f")
        axis.set_title(metric, fontsize=11, loc="left")
    return canvas_image


def draw_frame(axis):
    """The triangle with a line at every fifth of a weight and the corners named."""
    for share in np.linspace(0, 0.8, 5):
        for ends in (([share, share], [0, 1 - share]), ([0, 1 - share], [share, share]), ([share, 0], [0, share])):
            axis.plot(*ternary(*ends), color="#999999", linewidth=0.6 if share else 1.2, zorder=2)
    axis.plot(*ternary([0, 1], [1, 0]), color="#999999", linewidth=1.2, zorder=2)
    for name, corner, below in (("ID", (0, 0), True), ("text (beta)", (1, 0), True), ("image (alpha)", (0, 1), False)):
        x, y = ternary(*corner)
        axis.annotate(f"{name} = 1", (x, y), (0, -6 if below else 6), textcoords="offset points", ha="center", fontsize=9,
                      va="top" if below else "bottom")
    axis.set(aspect="equal", xlim=(-0.16, 1.16), ylim=(-0.12, 1.0))
    axis.axis("off")


def picture(image, kind):
    """A matplotlib Figure as bytes of a "png" or "pdf"."""
    file = io.BytesIO()
    image.savefig(file, format=kind, dpi=160)
    return file.getvalue()


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
        raise UserError(f"{folder}: cannot be made ({error.strerror}); name another folder with --output") from None
    for name, content in files.items():
        with atomic_write(Path(folder) / name) as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    return list(files)
