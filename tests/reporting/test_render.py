"""Formats: Markdown, LaTeX, CSV and the HTML page."""

import base64
import csv
import io
import re

import pytest
from report_helpers import Page, check_figure, read_page, run_report, write_ranked_run, write_run

from reporting import page, render
from reporting.blocks import Number, Table

AWKWARD = Table(
    "A & B_1",
    "awkward",
    ["method", "x"],
    [["50% <b>|{x}\\", Number(0.5, 0.25, mark="best")], ["~^#$", Number(None)]],
    "5 ± 1 – no",
)


def test_markdown_escapes():
    lines = render.markdown_table(AWKWARD).splitlines()
    assert r"50% \<b>\|{x}\\" in lines[4]
    assert "**0.5000 ± 0.2500**" in lines[4]
    assert "–" in lines[5]
    assert len({len(line) for line in lines[2:6]}) == 1


def test_latex_escapes():
    text = render.latex_table(AWKWARD)
    assert r"\caption{A \& B\_1. 5 $\pm$ 1 -- no}" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"50\% \textless{}b\textgreater{}|\{x\}\textbackslash{} & \textbf{0.5000 $\pm$ 0.2500} \\" in text
    assert r"\textasciitilde{}\textasciicircum{}\#\$ & -- \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_a_latex_row_is_no_argument_of_the_end_of_the_row_before():
    rows = [["[5pt] MF", 1], ["*LightGCN", Number(0.5, mark="best")]]
    lines = render.latex_table(Table("t", "t", ["[method]", "x"], rows)).splitlines()
    assert {r"{[}method] & x \\", r"{[}5pt] MF & 1 \\", r"{*}LightGCN & \textbf{0.5000} \\"} <= set(lines)


def test_a_name_makes_no_link_in_a_caption(root):
    for beta in (0.1, 0.5):
        write_run(root, 1, 0.1, model="lgn_mm", beta=beta, name="RecGOAT](https://evil.example/x.png)")
    assert run_report(root, "--triangle") == 0
    lines = (root.parent / "out" / "report.md").read_text().splitlines()
    images = [re.sub(r"\\.", "", line) for line in lines if line.startswith("![")]
    assert [image.count("](") for image in images] == [1] * len(images)
    assert images[0].endswith("](baby_triangle.png)")


def test_csv_keeps_full_precision():
    value = 0.1 + 0.2
    rows = [["x,y", Number(value, 1 / 3), 7], ['"', Number(float("nan")), 8]]
    text = render.csv_table(Table("t", "t", ["a", "b", "c"], rows))
    assert list(csv.reader(io.StringIO(text))) == [
        ["a", "b", "b sd", "c"],
        ["x,y", repr(value), repr(1 / 3), "7"],
        ['"', "", "", "8"],
    ]


@pytest.mark.parametrize("grouped, expected", [(True, [False, False, True, False]), (False, [False] * 4)])
def test_html_separates_groups_of_rows(grouped, expected):
    rows = [["recall@5", "MF"], ["recall@5", "LightGCN"], ["ndcg@5", "MF"], ["ndcg@5", "LightGCN"]]
    table = Table("t", "t", ["metric", "method"], rows, grouped=grouped)
    tags = Page(page.html_table(table)).tags
    _, *body = [attributes for tag, attributes in tags if tag == "tr"]
    assert [attributes == {"class": "group"} for attributes in body] == expected


def test_page_is_self_contained_and_well_formed(root):
    name = "<script>alert(1)</script> & |co|"
    for seed in (1, 2):
        write_ranked_run(root, seed, name=name, threads=2)
        write_ranked_run(root, seed + 2, model="lgn_mm")
    write_run(root, 5, 0.1, "failed", result={"status": "failed", "error": "<i>bad</i>", "epoch": 1})
    assert run_report(root) == 0
    text = read_page(root)
    parsed = Page(text)
    tags = [tag for tag, _ in parsed.tags]
    assert not {"script", "link", "iframe", "i"} & set(tags)
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?(http|//)""", text)
    assert tags.count("table") == 8
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert ("meta", viewport) in parsed.tags
    assert {name, "<i>bad</i>", f"The runs differ in threads: 2 ({name}); 0 (RecGOAT)."} <= set(parsed.texts)
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert len(images) == 2
    for attributes, slug in zip(images, ("bars", "learning")):
        assert attributes["alt"]
        prefix, data = attributes["src"].split(",")
        assert prefix == "data:image/png;base64"
        assert base64.b64decode(data)[:4] == b"\x89PNG"
        check_figure(root, f"baby_{slug}")
