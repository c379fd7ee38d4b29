"""Formats: Markdown, LaTeX, CSV and the HTML page."""

import base64
import csv
import io
import re

from report_helpers import Page, check_figure, run_report, write_ranked_run, write_run

from reporting import render
from reporting.render import Number, Table

AWKWARD = Table(
    "A & B_1",
    "awkward",
    ["method", "x"],
    [["50% <b>|{x}\\", Number(0.5, 0.25, mark="best")], ["~^#$", Number(None)]],
    "5 ± 1 – no",
)


def test_markdown_shows_names_literally():
    lines = render.markdown_table(AWKWARD).splitlines()
    assert r"50% \<b>\|{x}\\" in lines[4] and "**0.5000 ± 0.2500**" in lines[4] and "–" in lines[5]
    assert len({len(line) for line in lines[2:6]}) == 1


def test_latex_escapes():
    text = render.latex_table(AWKWARD)
    assert r"\caption{A \& B\_1. 5 $\pm$ 1 -- no}" in text and r"\begin{tabular}{lr}" in text
    assert r"50\% \textless{}b\textgreater{}|\{x\}\textbackslash{} & \textbf{0.5000 $\pm$ 0.2500} \\" in text
    assert r"\textasciitilde{}\textasciicircum{}\#\$ & -- \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_csv_keeps_full_precision():
    value = 0.1 + 0.2
    table = Table(
        "t", "t", ["a", "b", "c"], [["x,y", Number(value, 1 / 3), 7], ['"', Number(float("nan")), 8]]
    )
    assert list(csv.reader(io.StringIO(render.csv_table(table)))) == [
        ["a", "b", "b sd", "c"],
        ["x,y", repr(value), repr(1 / 3), "7"],
        ['"', "", "", "8"],
    ]


def test_page_is_self_contained_and_well_formed(tmp_path):
    root = tmp_path / "runs"
    for seed in (1, 2):
        (
            write_ranked_run(root, seed, name="<script>alert(1)</script> & |co|", threads=2),
            write_ranked_run(root, seed + 2, model="lgn_mm"),
        )
    write_run(root, 5, 0.1, "failed", result={"status": "failed", "error": "<i>bad</i>", "epoch": 1})
    assert run_report(root) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 2 and all(
        attrs["src"].startswith("data:image/png;base64,") and attrs["alt"] for attrs in pictures
    )
    assert not {"script", "link", "iframe", "i"} & {tag for tag, _ in page.tags} and not re.search(
        r"""(src|href|url\()\s*=?\s*["']?(http|//)""", text
    )
    assert "The runs differ in threads: 2 (<script>alert(1)</script> & |co|); 0 (RecGOAT)." in page.words
    assert "<script>alert(1)</script> & |co|" in page.words and "<i>bad</i>" in page.words
    assert (
        sum(tag == "table" for tag, _ in page.tags) == 8
        and ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    )
    for attrs, slug in zip(pictures, ("bars", "learning")):
        assert base64.b64decode(attrs["src"].split(",")[1])[:4] == b"\x89PNG"
        check_figure(tmp_path / "out" / f"baby_{slug}")
