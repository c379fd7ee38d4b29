"""Figures: curves, bars and triangles."""

import itertools
import math

import numpy as np
import pytest
from report_helpers import check_figure, read_table, run_report, write_run

from reporting import figures, tables
from reporting import runs as report_runs


def test_curve(tmp_path):
    root = tmp_path / "runs"
    for seed, k in itertools.product((1, 2), (5, 10, 40)):
        write_run(root, seed, 0.1 + k / 1000 + seed / 100, model="lgn_mm", item_knn_k=k)
        write_run(root, seed, 0.1 + k / 2000, model="lgn_mm", item_knn_k=k, name="Other")
    write_run(root, 1, 0.12, model="lgn")
    assert run_report(root) == 2  # without --curve they are runs of one name that differ
    assert run_report(root, "--curve", "item_knn_k") == 0
    assert [row["method"] for row in read_table(root, "baby_results")] == [
        "LightGCN",
        *(f"{name}, item_knn_k {k}" for name in ("Other", "RecGOAT") for k in (5, 10, 40)),
    ]
    check_figure(tmp_path / "out" / "baby_by_item_knn_k")
    (section,) = report_runs.split_groups(
        report_runs.make_groups(
            [report_runs.read_run(folder) for folder in report_runs.find_folders([root])], ["item_knn_k"]
        )
    )
    axis = tables.setting_curve(section, "item_knn_k", "baby").image.axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axis.lines}
    np.testing.assert_allclose(lines["RecGOAT"], [(k, 0.115 + k / 1000) for k in (5, 10, 40)])
    np.testing.assert_allclose(lines["LightGCN"][:, 1], [0.12, 0.12])
    deviation, band = 0.01 / math.sqrt(2), axis.collections[-1].get_paths()[0].vertices  # of RecGOAT
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.12 - deviation, 0.155 + deviation))


@pytest.mark.parametrize(
    "weights, scale", [((0.001, 0.01, 0.1), "log"), ((0.0, 0.01, 0.1), "linear"), ((0.1, 0.2, 0.3), "linear")]
)
def test_scale_of_a_curve(weights, scale):
    line = {"RecGOAT": (weights, *np.ones((3, 3)))}
    assert figures.draw_lines({"recall@5": line}, "contrastive_weight").axes[0].get_xscale() == scale


def test_names_that_matplotlib_would_take_for_something_else():
    name, line = r"_$\frac$ a_b", ([1, 2], *np.ones((3, 2)))
    image = figures.draw_lines({"recall@5": {name: line, "other": line}}, "epoch")
    assert figures.picture(image, "png") and len(image.legends[0].get_texts()) == 2
    image = figures.draw_bars({"recall@5": [(name, 0.5, 0.1), ("other", 0.6, None)]})
    assert figures.picture(image, "png") and len(image.axes[0].patches) == 2


def test_curve_of_a_setting_in_words(tmp_path):
    for fusion in ("sum", "concat", "oat"):
        write_run(tmp_path / "runs", 1, 0.1, model="lgn_mm", fusion=fusion)
    assert run_report(tmp_path / "runs", "--curve", "fusion") == 0
    check_figure(tmp_path / "out" / "baby_by_fusion")


@pytest.mark.parametrize(
    "pairs", [[(0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (0.2, 0.3)], [(0.1, 0.1), (0.2, 0.1), (0.4, 0.1)]]
)
def test_triangle(tmp_path, pairs):
    root = tmp_path / "runs"
    for number, (beta, alpha) in enumerate([*pairs, (0.9, 0.8)]):
        write_run(root, 1, 0.1 + number / 100, model="lgn_mm", beta=beta, alpha=alpha)
    assert run_report(root, "--triangle") == 0
    check_figure(tmp_path / "out" / "baby_triangle")
    assert "1 pairs with a sum above 1 are not shown" in (tmp_path / "out" / "report.html").read_text()


def test_corners_of_the_triangle():
    x, y = figures.ternary([0, 1, 0], [0, 0, 1])
    points = np.stack([x, y], axis=1)
    assert [np.linalg.norm(points[a] - points[b]) for a, b in ((0, 1), (0, 2), (1, 2))] == pytest.approx(
        [1, 1, 1]
    )


def test_learning_curve_is_over_the_epochs_of_all_seeds(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, seed, 0.1 * seed)
    (tmp_path / "run_1" / "metrics.jsonl").write_text(
        '{"epoch": 2, "valid": {"ndcg@5": 0.6}}\n{"epoch": 9, "valid": {"ndcg@5": 0.7}}\n'
    )
    runs = [report_runs.read_run(tmp_path / name) for name in ("run_0", "run_1")]
    epochs, mean, least, most = tables.curve_of(report_runs.Group(runs), "ndcg@5")
    assert (
        epochs == [2]
        and mean == pytest.approx([0.4])
        and least == pytest.approx([0.2])
        and most == pytest.approx([0.6])
    )


def test_many_rows_leave_out_what_would_not_be_read(tmp_path, capsys):
    for k in range(1, 15):
        write_run(tmp_path / "runs", 1, k / 100, model="lgn_mm", item_knn_k=k)
    assert run_report(tmp_path / "runs", "--curve", "item_knn_k") == 0
    assert (
        "more than 12 rows" in capsys.readouterr().out and not (tmp_path / "out" / "baby_bars.png").exists()
    )
