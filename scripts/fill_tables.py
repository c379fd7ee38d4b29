"""Fill the tables of pages with those of reports.

    python -m scripts.fill_tables --reports report README.md docs/results.md

In a page, a table that follows a comment such as one of these

    <!-- report table1_baby_small: Test results, Baby -->
    <!-- report table1_baby_small: By item, Baby | rows metric = recall@20 | columns method; tail -->

is replaced by the table with this title in REPORTS/table1_baby_small/report.md, with all columns or those
named, and all rows or those with this value. Where there is no such report, the table stays as it is.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import Parser, run_tool
from utils import UserError, atomic_write

BLOCK = re.compile(
    r"(?P<comment><!-- report (?P<report>[\w.-]+): (?P<title>[^|\n]+?)(?P<choices>( \|[^|\n]+)*) -->\n)"
    r"(?P<table>(\|.*\n)+)"
)
Table = list[list[str]]  # rows of cells; the first row has the names of the columns


def parse_table(text: str) -> Table:
    """The cells of a Markdown table, without the line below its head."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    return [rows[0], *rows[2:]]


def find_table(report: Path, title: str) -> Table:
    """The table below this title in a report. Raises UserError if there is none."""
    text = report.read_text(encoding="utf-8")
    found = re.search(rf"^\*\*{re.escape(title)}\*\*\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    if found is None:
        titles = re.findall(r"^\*\*(.+)\*\*$", text, re.MULTILINE)
        raise UserError(f"{report}: has no table {title!r}; it has {', '.join(map(repr, titles))[:300]}")
    return parse_table(found[1])


def select(table: Table, choices: str) -> Table:
    """The columns and rows that the rest of a comment names. Raises UserError for unknown ones."""
    for choice in filter(None, map(str.strip, choices.split("|"))):
        kind, _, value = choice.partition(" ")
        if kind == "rows":
            column, _, wanted = (part.strip() for part in value.partition("="))
            at = position(table[0], column)
            table = [table[0], *(row for row in table[1:] if row[at] == wanted)]
            if len(table) == 1:
                raise UserError(f"{choice!r}: no row has this value")
        elif kind == "columns":
            places = [position(table[0], name.strip()) for name in value.split(";")]
            table = [[row[place] for place in places] for row in table]
        else:
            raise UserError(f"{choice!r}: is neither 'columns NAME; ...' nor 'rows NAME = VALUE'")
    return table


def position(head: Sequence[str], column: str) -> int:
    """The place of a column. Raises UserError if there is none of this name."""
    if column not in head:
        raise UserError(f"there is no column {column!r}; there are {', '.join(head)[:300]}")
    return list(head).index(column)


def render(table: Table) -> str:
    """A table in Markdown."""
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def fill(page: str, reports: Path) -> tuple[str, list[str]]:
    """The page with its tables filled, and a line for each table that stays as it is."""
    notes: list[str] = []

    def replace(block: re.Match[str]) -> str:
        report = reports / block["report"] / "report.md"
        if not report.exists():
            notes.append(f"note: {report}: does not exist; its table {block['title']!r} stays as it is")
            return block[0]
        return block["comment"] + render(select(find_table(report, block["title"]), block["choices"]))

    return BLOCK.sub(replace, page), notes


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="python -m scripts.fill_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reports", type=Path, required=True, metavar="FOLDER", help="folder of the reports")
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE.md", help="pages to change")
    return parser


def command(args: argparse.Namespace) -> None:
    """Fill the tables of all pages, or of none if one cannot be filled."""
    filled = [(page, *fill(page.read_text(encoding="utf-8"), args.reports)) for page in args.pages]
    for page, text, notes in filled:
        print(*notes, sep="\n", end="\n" if notes else "")
        with atomic_write(page) as file:
            file.write(text.encode())


if __name__ == "__main__":
    sys.exit(run_tool(command, make_parser()))
