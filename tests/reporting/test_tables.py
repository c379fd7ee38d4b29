"""Tables: means, marks, seconds, published results."""

import re

import numpy as np
import pytest
from report_helpers import METRICS, edit_json, read_page, read_table, run_report, write_run, write_two_models

from reporting import tables
from training.beyond import BEYOND
from training.cold import COLD_KINDS


def test_means_deviations_and_marks(root, capsys):
    write_two_models(root, recgoat=(0.3, 0.35, 0.36), lightgcn=(0.2, 0.29, 0.1))
    for seed in (1, 2):
        write_run(root, seed, 0.01 * seed, model="mf", recdim=32)
    assert run_report(root, "--figures", "0") == 0
    rows = read_table(root, "baby_results")
    assert [(row["method"], row["recdim"], row["seeds"]) for row in rows] == [
        ("MF", "32", "2"),
        ("LightGCN", "64", "3"),
        ("RecGOAT", "64", "3"),
    ]
    for row, recalls in zip(rows, ((0.01, 0.02), (0.2, 0.29, 0.1), (0.3, 0.35, 0.36))):
        for divisor, metric in enumerate(METRICS, 1):
            values = np.array(recalls) / divisor
            mean = values.sum() / len(values)
            deviation = (((values - mean) ** 2).sum() / (len(values) - 1)) ** 0.5
            assert float(row[metric]) == pytest.approx(mean, rel=1e-12)
            assert float(row[f"{metric} sd"]) == pytest.approx(deviation, rel=1e-12)
    text = capsys.readouterr().out
    assert "**0.3367 ± 0.0321**" in text
    assert "<u>0.1967 ± 0.0950</u>" in text
    assert "| 0.0150 ± 0.0071 |" in re.sub(" +", " ", text)
    assert text.count("**0.3367") == 1


def test_no_mark_on_a_single_row_and_no_deviation_of_a_single_seed(root, capsys):
    write_run(root, 1, 0.25)
    assert run_report(root, "--figures", "0") == 0
    out = capsys.readouterr().out
    assert "| 0.2500 |" in re.sub(" +", " ", out)
    assert "<u>" not in out
    (row,) = read_table(root, "baby_results")
    assert row["recall@5"] == "0.25"
    assert "recall@5 sd" not in row
    assert "<b>" not in read_page(root)


def test_equal_means_share_a_mark():
    assert tables.marks([1.0, 3.0, 3.0, 2.0]) == ["", "best", "best", "second"]
    assert tables.marks([1.0, 1.0]) == ["best", "best"]
    assert tables.marks([1.0]) == [""]


def test_seconds_and_memory(root):
    write_run(root, 1, 0.1)
    write_run(root, 3, 0.2)
    assert run_report(root, "--figures", "0") == 0
    (row,) = read_table(root, "baby_seconds")
    columns = ("epoch_seconds", "evaluation_seconds", "run_seconds", "peak memory (MB)", "device")
    assert [row[column] for column in columns] == ["2.0", "0.5", "20.0", "300.0", "cpu"]
    published = {row["method"]: row for row in read_table(root, "baby_published_seconds")}
    assert published["RecGOAT"]["epoch_seconds"] == "3.12"
    assert published["LightGCN"]["evaluation_seconds"] == "0.98"


def test_published_results_are_added(root):
    write_run(root, 1, 0.1, topks=(10,))
    write_run(root, 1, 0.1, topks=(10,), dataset="nowhere")
    assert run_report(root, "--figures", "0") == 0
    rows = read_table(root, "baby_published")
    recgoat = {row["recall@10"]: row["ndcg@10"] for row in rows if row["method"] == "RecGOAT"}
    assert recgoat == {"0.0671": "0.0369"}
    assert {row["protocol"] for row in rows if row["method"] == "RecGOAT"} == {"epoch selected on test"}
    sources = {row["source"] for row in rows}
    assert sources > {f"RecGOAT (arXiv 2602.00682) Table {number}" for number in (1, 3)}
    assert not (root.parent / "out" / "nowhere_published.csv").exists()


def test_published_file_is_complete():
    rows = tables.read_published()
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 151
    assert all(all(row.values()) for row in rows)
    assert {row["dataset"] for row in rows} == {"Baby", "Sports", "Electronics"}
    assert all(0 < float(row["value"]) < (0.2 if "@" in row["metric"] else 5) for row in rows)


def test_every_run_is_written(root):
    """runs.csv has a row for each finished run, with all digits of its metrics; a metric may be missing."""
    third = write_run(root, 3, 1 / 3, model="mf")
    edit_json(third / "result.json", {"best_epoch": 4, "valid": {"ndcg@5": 0.1}})
    write_run(root, 1, 0.25, dataset="nowhere", topks=(10,))
    write_run(root, 2, 0.5, status="interrupted")
    assert run_report(root, "--figures", "0") == 0
    first, second = read_table(root, "runs")
    assert (first["dataset"], first["method"], first["seed"]) == ("Baby", "MF", "3")
    assert (first["best epoch"], first["epochs"], first["seconds"]) == ("4", "6", "30.0")
    assert (first["test recall@5"], first["valid ndcg@5"]) == (repr(1 / 3), "0.1")
    assert (second["dataset"], second["best epoch"], second["valid ndcg@5"]) == ("nowhere", "", "")
    assert first["git commit"] == second["git commit"] == "a" * 8


def test_metrics_beyond_accuracy(root):
    """The mean over seeds at the largest K; rows whose runs lack them are left out, as is an empty table."""
    write_run(root, 1, 0.1, model="mf")
    assert run_report(root, "--figures", "0") == 0
    assert not (root.parent / "out" / "baby_beyond.csv").exists()
    for seed in (1, 2):
        folder = write_run(root, seed, 0.2, model="lgn")
        values = {f"{name}@{k}": seed * k / 100 for name in BEYOND for k in (5, 10)}
        edit_json(folder / "result.json", {"beyond_accuracy": {"test": values}})
    assert run_report(root, "--figures", "0") == 0
    (row,) = read_table(root, "baby_beyond")
    assert row["method"] == "LightGCN"
    assert [float(row[f"{name}@10"]) for name in BEYOND] == pytest.approx([0.15] * 5)


def test_warm_and_cold_items(root):
    """The mean over seeds at the largest K, by kind of item; without such results there is no table."""
    write_run(root, 1, 0.1, model="mf")
    assert run_report(root, "--figures", "0") == 0
    assert not (root.parent / "out" / "baby_cold.csv").exists()
    for seed in (1, 2):
        folder = write_run(root, seed, 0.2, model="vbpr")
        kinds = {
            kind: {f"{name}@{k}": seed * k * number / 100 for name in ("recall", "ndcg") for k in (5, 10)}
            for number, kind in enumerate(COLD_KINDS, 1)
        }
        edit_json(folder / "result.json", {"cold_items": {"items": 9, "vectors": "features", "test": kinds}})
    assert run_report(root, "--figures", "0") == 0
    (row,) = read_table(root, "baby_cold")
    assert row["method"] == "VBPR" and row["cold items by"] == "features"
    values = [float(row[f"{kind} {name}@10"]) for kind in COLD_KINDS for name in ("recall", "ndcg")]
    assert values == pytest.approx([0.15, 0.15, 0.3, 0.3, 0.45, 0.45])


@pytest.mark.parametrize("kinds", [("warm",), ("cold", "cold among cold"), ("warm", "cold")])
def test_a_kind_of_items_without_results_has_a_dash(root, kinds):
    """No user has relevant items of the kind, or there are fewer cold items than the largest K."""
    folder = write_run(root, 1, 0.2, model="vbpr")
    found = {kind: {f"{name}@{k}": 0.5 for name in ("recall", "ndcg") for k in (5, 10)} for kind in kinds}
    edit_json(folder / "result.json", {"cold_items": {"items": 9, "vectors": "features", "test": found}})
    assert run_report(root, "--figures", "0") == 0
    (row,) = read_table(root, "baby_cold")
    for kind in COLD_KINDS:
        assert row[f"{kind} recall@10"] == row[f"{kind} ndcg@10"] == ("0.5" if kind in kinds else "")
