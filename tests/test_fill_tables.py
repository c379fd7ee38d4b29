"""scripts/fill_tables.py: tables of pages from those of reports."""

import pytest

from scripts.fill_tables import command, make_parser
from utils import UserError

REPORT = """# Report

**Test results, Baby**

| method  | seeds | recall@20 |
| ------- | ----: | --------: |
| MF      |     3 |    0.0734 |
| RecGOAT |     3 | **0.095** |

Mean over seeds.

**Users, Baby**

| metric    | method |  few |
| --------- | ------ | ---: |
| recall@20 | MF     | 0.07 |
| ndcg@20   | MF \\| 2 | 0.03 |
"""
OLD = "| old |\n|---|\n| 1 |\n"


@pytest.fixture
def fill(tmp_path):
    """Function of a page: its text after its tables were filled."""
    folder = tmp_path / "reports" / "table1"
    folder.mkdir(parents=True)
    (folder / "report.md").write_text(REPORT)
    page = tmp_path / "page.md"

    def run(text):
        page.write_text(text)
        command(make_parser().parse_args(["--reports", str(tmp_path / "reports"), str(page)]))
        return page.read_text()

    return run


def test_a_table_is_replaced_and_nothing_else(fill):
    comment = "<!-- report table1: Test results, Baby -->\n"
    text = f"Before\n{OLD}\n{comment}{OLD}\nAfter\n"
    rows = ["method | seeds | recall@20", "--- | --- | ---", "MF | 3 | 0.0734", "RecGOAT | 3 | **0.095**"]
    new = "".join(f"| {row} |\n" for row in rows)
    assert fill(text) == f"Before\n{OLD}\n{comment}{new}\nAfter\n"
    assert fill(fill(text)) == fill(text)


def test_columns_and_rows_are_chosen(fill):
    comment = "<!-- report table1: Users, Baby | rows metric = recall@20 | columns few; method -->\n"
    assert fill(comment + OLD) == comment + "| few | method |\n| --- | --- |\n| 0.07 | MF |\n"


def test_a_bar_within_a_cell_is_not_a_border(fill):
    comment = "<!-- report table1: Users, Baby | rows metric = ndcg@20 | columns method; few -->\n"
    assert fill(comment + OLD) == comment + "| method | few |\n| --- | --- |\n| MF \\| 2 | 0.03 |\n"


def test_a_table_without_a_report_stays(fill, capsys):
    text = f"<!-- report table9: Test results, Baby -->\n{OLD}"
    assert fill(text) == text
    assert "table9" in capsys.readouterr().out


@pytest.mark.parametrize(
    "comment, message",
    [
        ("Test results, Bebe", "it has 'Test results, Baby', 'Users, Baby'"),
        ("Users, Baby | columns method; many", "no column 'many'; there are metric, method, few"),
        ("Users, Baby | rows best = 1", "no column 'best'"),
        ("Users, Baby | lines 3", "'lines 3': is neither"),
        ("Users, Baby | rows metric = recal", "'rows metric = recal': no row has this value"),
    ],
)
def test_what_a_report_does_not_have_is_an_error(fill, comment, message):
    with pytest.raises(UserError, match=message):
        fill(f"<!-- report table1: {comment} -->\n{OLD}")
