"""The HTML page of a report: one self-contained file, without scripts or references to other files."""

import base64
from collections.abc import Sequence

from outgoing import html_text
from reporting.blocks import Block, Cell, Figure, Heading, Number, Table, Text
from reporting.drawing import encode

# Longer cells wrap; all others stay on one line.
LONG_CELL = 60
PIXELS_PER_INCH = 100
# Figures scroll rather than shrink below this size, at which their labels can just be read.
MIN_PIXELS_PER_INCH = 72

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24;
  max-width: 84rem; margin: 0 auto; padding: 0 1rem 3rem; }
h1 { line-height: 1.2; margin: 1.5rem 0 .5rem; }
h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid #d0d7de; overflow-wrap: anywhere; }
p, figcaption { max-width: 48rem; overflow-wrap: anywhere; }
/* A shadow at the right edge shows that there is more to scroll to; the white cover hides it at the end. */
.scroll { overflow-x: auto; margin-top: 1.5rem; background:
  linear-gradient(to left, white 1.5rem, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, #0002, transparent) right / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; font-weight: 600; font-size: 1rem; padding-bottom: .4rem; }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid #e5e8eb; }
th { border-bottom: 2px solid #57606a; white-space: normal; vertical-align: bottom; min-width: 3.5rem;
  text-wrap: balance; }
.right { text-align: right; }
.group td { border-top: 2px solid #afb8c1; }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
tbody tr:hover { background: #0969da14; }
.note, figcaption { color: #57606a; font-size: .9rem; margin-top: .5rem; }
.warning { border-left: 4px solid #d55e00; background: #fff4ec; padding: .5rem .8rem; }
figure { margin: 1.8rem 0; } figure .scroll { background: none; } img { display: block; max-width: 100%; }
"""


def html_cell(cell: Cell, right: bool) -> str:
    """A table cell: best result bold, second best underlined."""
    text = html_text(str(cell))
    if isinstance(cell, Number) and cell.mark:
        text = f"<b>{text}</b>" if cell.mark == "best" else f"<u>{text}</u>"
    style = ' class="right"' if right else ' class="long"' if len(str(cell)) > LONG_CELL else ""
    return f"<td{style}>{text}</td>"


def html_header_cell(name: str, right: bool) -> str:
    """A cell of the header."""
    style = ' class="right"' if right else ""
    return f'<th scope="col"{style}>{html_text(name)}</th>'


def html_table(table: Table) -> str:
    """A table in a box that scrolls sideways, and its note."""
    numeric = table.numeric_columns()
    head = "".join(map(html_header_cell, table.header, numeric))
    rows = []
    for index, row in enumerate(table.rows):
        starts_group = table.grouped and index > 0 and row[0] != table.rows[index - 1][0]
        style = ' class="group"' if starts_group else ""
        rows.append(f"<tr{style}>{''.join(map(html_cell, row, numeric))}</tr>")
    lines = [
        f'<div class="scroll"><table><caption>{html_text(table.title)}</caption>',
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
        *rows,
        "</tbody></table></div>",
    ]
    if table.note:
        lines.append(f'<p class="note">{html_text(table.note)}</p>')
    return "\n".join(lines)


def html_figure(figure: Figure) -> str:
    """A figure with its image embedded."""
    inches = figure.image.get_figwidth()
    size = f'width="{PIXELS_PER_INCH * inches:.0f}" style="min-width: {MIN_PIXELS_PER_INCH * inches:.0f}px"'
    data = base64.b64encode(encode(figure.image, "png")).decode()
    caption = html_text(figure.caption)
    return (
        f'<figure><div class="scroll"><img alt="{caption}" {size} src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def html_block(block: Block) -> str:
    """Any block in HTML."""
    match block:
        case Heading(text):
            return f"<h2>{html_text(text)}</h2>"
        case Text(text, warning):
            style = ' class="warning"' if warning else ""
            return f"<p{style}>{html_text(text)}</p>"
        case Table():
            return html_table(block)
        case Figure():
            return html_figure(block)


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """All blocks as one page."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html_text(title)}</title>",
        f"<style>{STYLE}</style></head>",
        f"<body>\n<h1>{html_text(title)}</h1>",
        *map(html_block, blocks),
        "</body>\n</html>\n",
    ]
    return "\n".join(lines)
