"""Whatever a value contains, the language that it is written in sees data; a parser of each is the oracle."""

import csv
import html.parser
import io
import json
import re
import shlex
import subprocess
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outgoing import (
    csv_text,
    html_text,
    json_text,
    latex_text,
    markdown_text,
    printable,
    shell_command,
    shell_comment,
    tsv_line,
)

FEW = settings(max_examples=80, derandomize=True, database=None, deadline=None)
# Any code points, halves of surrogate pairs included, with those that languages interpret more often.
TEXT = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\0\t\n\r\x1b\x7f\x85\u2028\ud800 '\"\\`$&;|<>#%_{}~^=+-@*[](),!"),
        st.characters(categories=["Cs", "Cc"]),
    ),
    max_size=30,
)
ENCODABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
HOSTILE = [
    "a\n$(touch x)",
    "`id`",
    "\x1b[2J",
    "\ud800",
    "=cmd|'/C calc'!A0",
    "</td><script>",
    "a\tb\r\nc",
    "\\input{x}",
]


@FEW
@given(TEXT)
def test_printable_text_is_one_line_of_utf8_without_control_characters(text):
    shown = printable(text)
    assert shown.encode().decode() == shown and len(shown) == len(text)
    assert len(shown.splitlines()) <= 1 and not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)
    assert all(a in (b, " ", "\ufffd") for a, b in zip(shown, text, strict=True))


@FEW
@given(st.lists(ENCODABLE, min_size=1, max_size=5))
def test_a_shell_command_has_the_words_it_was_given(words):
    assert shlex.split(shell_command(words)) == words


def test_bash_passes_on_hostile_words_and_runs_no_comment(tmp_path):
    words = [word.replace("\ud800", "") for word in HOSTILE]
    script = "\n".join(shell_comment(f"x{word}") for word in HOSTILE)
    script += "\n" + shell_command(["printf", "%s\\0", *words])
    done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words and not done.stderr
    assert list(tmp_path.iterdir()) == []


@FEW
@given(TEXT)
def test_a_shell_comment_is_one_line(text):
    line = shell_comment(text)
    assert line.startswith("# ") and "\n" not in line and "\r" not in line


class Recorder(html.parser.HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


@FEW
@given(TEXT)
def test_html_shows_the_text_and_has_no_tag_of_it(text):
    page = Recorder(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    assert page.tags == [("p", [("title", printable(text))])] and page.text == printable(text)


@FEW
@given(TEXT)
def test_latex_has_no_active_character_of_the_text(text):
    rest = re.sub(
        r"\\text(backslash|ascii(tilde|circum)|less|greater)\{\}|\$\\(pm|ge|le|times)\$", "", latex_text(text)
    )
    rest = re.sub(r"\{[\[*]\}|\\[&%$#_{}]", "", rest)
    assert not re.search(r"[\\&%$#_{}~^\[*\n]", rest)


@FEW
@given(TEXT)
def test_a_markdown_cell_stays_one_cell(text):
    rest = re.sub(r"\\.", "", markdown_text(text))
    assert not re.search(r"[|<`*\[\]\n]", rest)


@FEW
@given(
    st.lists(
        st.lists(st.one_of(TEXT, st.integers(), st.floats()), min_size=2, max_size=3), min_size=1, max_size=3
    )
)
def test_csv_has_the_cells_and_no_formula(rows):
    found = list(csv.reader(io.StringIO(csv_text(rows))))
    assert [len(row) for row in found] == [len(row) for row in rows]
    for cell, value in zip(chain(*found), chain(*rows), strict=True):
        if isinstance(value, str):
            assert cell.removeprefix("'") == printable(value).removeprefix("'")
            assert not re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", cell)
        else:
            assert type(value)(cell) == value or value != value


def test_csv_keeps_text_that_is_no_formula():
    assert csv_text([["a-b", "1=1", "–", -0.5, 'x, "y"']]) == 'a-b,1=1,–,-0.5,"x, ""y"""\n'


@FEW
@given(st.lists(st.one_of(TEXT, st.integers()), min_size=1, max_size=5))
def test_a_line_of_tsv_has_as_many_cells_as_it_was_given(cells):
    line = tsv_line(cells)
    assert line.count("\t") == len(cells) - 1 and line.count("\n") == 1 and line.endswith("\n")
    line.encode()


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ENCODABLE, inner, max_size=3),
    max_leaves=8,
)


@FEW
@given(VALUES, st.sampled_from([None, 1]))
def test_json_is_valid_and_keeps_what_json_can_hold(value, indent):
    text = json_text(value, indent)
    text.encode()
    found = json.loads(text, parse_constant=refuse)
    if "\ufffd" not in text and "null" not in text:
        assert found == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_has_null_in_place_of_numbers_it_lacks(number):
    assert json.loads(json_text({"a": [number, 1.5], "b": {"c": number}})) == {
        "a": [None, 1.5],
        "b": {"c": None},
    }
