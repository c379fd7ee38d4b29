"""Tables: means, marks, seconds, published figures."""

import math
import re

import pytest
from report_helpers import METRICS, read_table, run_report, two_names, write_run

from reporting import tables


def test_means_deviations_and_marks(tmp_path, capsys):
    root = tmp_path / "runs"
    two_names(root)
    for seed in (1, 2):
        write_run(root, seed, 0.01 * seed, model="mf", recdim=32)
    assert run_report(root, "--figures", "0") == 0
    rows = read_table(root, "baby_results")
    assert [(row["method"], row["recdim"], row["seeds"]) for row in rows] == [
        ("MF", "32", "2"),
        ("LightGCN", "64", "3"),
        ("RecGOAT", "64", "3"),
    ]
    for row, values in zip(rows, ((0.01, 0.02), (0.2, 0.29, 0.1), (0.3, 0.35, 0.36))):
        for part, metric in enumerate(METRICS, 1):
            mean = sum(values) / len(values) / part
            deviation = math.sqrt(sum((value / part - mean) ** 2 for value in values) / (len(values) - 1))
            assert float(row[metric]) == pytest.approx(mean, rel=1e-12) and float(
                row[f"{metric} sd"]
            ) == pytest.approx(deviation, rel=1e-12)
    text = capsys.readouterr().out
    assert (
        "**0.3367 ± 0.0321**" in text
        and "<u>0.1967 ± 0.0950</u>" in text
        and "| 0.0150 ± 0.0071 |" in re.sub(" +", " ", text)
    )
    assert text.count("**0.3367") == 1


def test_one_row_bears_no_mark_and_one_seed_no_deviation(tmp_path, capsys):
    write_run(tmp_path / "runs", 1, 0.25)
    assert run_report(tmp_path / "runs", "--figures", "0") == 0
    assert "|  1 |" not in capsys.readouterr().out
    (row,) = read_table(tmp_path / "runs", "baby_results")
    assert row["recall@5"] == "0.25" and "recall@5 sd" not in row
    assert "<b>" not in (tmp_path / "out" / "report.html").read_text()


def test_equal_means_share_the_mark():
    assert tables.marked([1.0, 3.0, 3.0, 2.0]) == ["", "best", "best", "second"] and tables.marked([1.0]) == [
        ""
    ]


def test_seconds(tmp_path):
    root = tmp_path / "runs"
    write_run(root, 1, 0.1), write_run(root, 3, 0.2)
    assert run_report(root, "--figures", "0") == 0
    (row,) = read_table(root, "baby_seconds")
    assert [
        row[name]
        for name in (
            "epoch_seconds",
            "evaluation_seconds",
            "seconds of the run",
            "peak memory in MB",
            "device",
        )
    ] == ["2.0", "0.5", "20.0", "300.0", "cpu"]
    published = {row["method"]: row for row in read_table(root, "baby_published_seconds")}
    assert (
        published["RecGOAT"]["epoch_seconds"] == "3.12"
        and published["LightGCN"]["evaluation_seconds"] == "0.98"
    )


def test_published_figures_stand_beside(tmp_path):
    root = tmp_path / "runs"
    write_run(root, 1, 0.1, topks=(10,), result=None)
    write_run(root, 1, 0.1, topks=(10,), dataset="nowhere")
    assert run_report(root, "--figures", "0") == 0
    rows = read_table(root, "baby_published")
    assert {row["recall@10"]: row["ndcg@10"] for row in rows if row["method"] == "RecGOAT"} == {
        "0.0671": "0.0369"
    }
    assert {row["source"] for row in rows} > {
        "RecGOAT (arXiv 2602.00682) Table 1",
        "RecGOAT (arXiv 2602.00682) Table 3",
    }
    assert not (tmp_path / "out" / "nowhere_published.csv").exists()


def test_published_file_is_whole():
    rows = tables.read_published()
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 145 and {
        row["dataset"] for row in rows
    } == {"Baby", "Sports", "Electronics"}
    assert all(0 < float(row["value"]) < (0.2 if "@" in row["metric"] else 5) for row in rows)
