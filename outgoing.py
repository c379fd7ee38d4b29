"""Text that another program will interpret: each value passes through the function of that language.

    shell_command(["python", "main.py", "--name", "a b"])    # python main.py --name 'a b'
    csv_text([["method"], ["=1+1"]])                         # "method\n'=1+1\n"
    json_text({"loss": float("nan")})                        # '{"loss": null}'

Values come from studies, run folders and tables that others may have made. Whatever they contain, the
functions return valid UTF-8 text in which they are data: never a command, a tag, a formula, a column of their
own or an escape sequence of the terminal.
"""

import csv
import html
import io
import json
import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Control characters that separate words or lines, all others, and halves of surrogate pairs.
SEPARATORS = re.compile("[\t-\r\x1c-\x1f\x85\u2028\u2029]")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
SURROGATES = re.compile("[\ud800-\udfff]")


def printable(value: object) -> str:
    """A value as one line of printable text: separators become spaces, other control characters U+FFFD."""
    return UNPRINTABLE.sub("\ufffd", SEPARATORS.sub(" ", str(value)))


# ---------------------------------------------------------------- scripts


def shell_command(words: Iterable[str]) -> str:
    """A command line for a POSIX shell, in which every word is one argument."""
    return shlex.join(words)


def shell_comment(text: object) -> str:
    """One comment line of a shell script, without a line end."""
    return f"# {printable(text)}"


# ---------------------------------------------------------------- markup


def html_text(value: object) -> str:
    """Text between HTML tags or in a quoted attribute."""
    return html.escape(printable(value))


def json_in_html(value: Any) -> str:
    """A value as JSON between <script type="application/json"> and </script>, where no "<" may stand."""
    return json_text(value).replace("<", "\\u003c")


def markdown_text(value: object) -> str:
    """Text in a Markdown paragraph or table cell."""
    return re.sub(r"[\\`*<|\[\]]|&(?=[#\w])", r"\\\g<0>", printable(value))


# After the end of a row, \\ or \toprule, "[" and "*" would be read as its argument.
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
    "[": "{[}",
    "*": "{*}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def latex_text(value: object) -> str:
    """Text in a LaTeX paragraph, caption or table cell."""
    return "".join(LATEX.get(character, character) for character in printable(value))


# ---------------------------------------------------------------- tables


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV. Numbers keep all digits; text that a spreadsheet would run gets an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([cell if type(cell) in (int, float) else csv_cell(cell) for cell in row] for row in rows)
    return file.getvalue()


def csv_cell(value: object) -> str:
    """Text of a CSV cell. A formula begins with =, +, - or @, also after spaces or in full width."""
    text = printable(value)
    start = unicodedata.normalize("NFKC", text).lstrip()
    return f"'{text}" if start.startswith(("=", "+", "-", "@")) else text


def tsv_line(cells: Iterable[object]) -> str:
    """A line of a tab-separated table, with its line end; a cell has no tab and no line end."""
    return "\t".join(map(printable, cells)) + "\n"


# ---------------------------------------------------------------- JSON


def json_text(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """A value as JSON by the standard: NaN and infinity, which it lacks, become null."""
    encoder = json.JSONEncoder(ensure_ascii=False, indent=indent, sort_keys=sort_keys, allow_nan=False)
    try:
        text = encoder.encode(value)
    except ValueError:  # seldom: the values are looked through only if they have to be
        text = encoder.encode(finite(value))
    return SURROGATES.sub("\ufffd", text)


def finite(value: Any) -> Any:
    """A JSON value with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
