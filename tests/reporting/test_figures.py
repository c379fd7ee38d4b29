"""Figures: curves, bars and triangles."""

import itertools
import math

import numpy as np
import pytest
from report_helpers import check_figure, read_page, read_table, run_report, write_run

from reporting import drawing, figures
from reporting.groups import Group, make_groups, make_sections
from reporting.runs import find_run_folders, read_run


def test_curve_of_a_setting(root):
    for seed, k in itertools.product((1, 2), (5, 10, 40)):
        write_run(root, seed, 0.1 + k / 1000 + seed / 100, model="lgn_mm", item_knn_k=k)
        write_run(root, seed, 0.1 + k / 2000, model="lgn_mm", item_knn_k=k, name="Other")
    write_run(root, 1, 0.12, model="lgn")
    # Without --curve these are different runs of one name.
    assert run_report(root) == 2
    assert run_report(root, "--curve", "item_knn_k") == 0
    assert [row["method"] for row in read_table(root, "baby_results")] == [
        "LightGCN",
        *(f"{name}, item_knn_k {k}" for name in ("Other", "RecGOAT") for k in (5, 10, 40)),
    ]
    check_figure(root, "baby_by_item_knn_k")
    runs = [read_run(folder) for folder in find_run_folders([root])]
    (section,) = make_sections(make_groups(runs, ["item_knn_k"]))
    axis = figures.setting_curve(section, "item_knn_k").image.axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axis.lines}
    np.testing.assert_allclose(lines["RecGOAT"], [(k, 0.115 + k / 1000) for k in (5, 10, 40)])
    np.testing.assert_allclose(lines["LightGCN"][:, 1], [0.12, 0.12])
    deviation = 0.01 / math.sqrt(2)
    recgoat_band = axis.collections[-1].get_paths()[0].vertices[:, 1]
    ends = recgoat_band.min(), recgoat_band.max()
    assert ends == pytest.approx((0.12 - deviation, 0.155 + deviation))


@pytest.mark.parametrize(
    "weights, scale", [((0.001, 0.01, 0.1), "log"), ((0.0, 0.01, 0.1), "linear"), ((0.1, 0.2, 0.3), "linear")]
)
def test_scale_of_the_x_axis(weights, scale):
    lines = {"RecGOAT": (weights, *np.ones((3, 3)))}
    assert drawing.draw_lines({"recall@5": lines}, "contrastive_weight").axes[0].get_xscale() == scale


def test_names_that_matplotlib_would_interpret():
    name, line = r"_$\frac$ a_b", ([1, 2], *np.ones((3, 2)))
    image = drawing.draw_lines({"recall@5": {name: line, "other": line}}, "epoch")
    assert drawing.encode(image, "png")
    assert len(image.legends[0].get_texts()) == 2
    image = drawing.draw_bars({"recall@5": [(name, 0.5, 0.1), ("other", 0.6, None)]})
    assert drawing.encode(image, "png")
    assert len(image.axes[0].patches) == 2


def test_curve_of_a_text_setting(root):
    for fusion in ("sum", "concat", "oat"):
        write_run(root, 1, 0.1, model="lgn_mm", fusion=fusion)
    assert run_report(root, "--curve", "fusion") == 0
    check_figure(root, "baby_by_fusion")


def test_a_run_without_missing_features_is_named_so(root):
    for missing in ("", "text:0.5"):
        write_run(root, 1, 0.1, model="vbpr", missing=missing)
    assert run_report(root, "--curve", "missing") == 0
    names = [row["method"] for row in read_table(root, "baby_results")]
    assert names == ["VBPR, missing none", "VBPR, missing text:0.5"]
    assert [row["missing"] for row in read_table(root, "runs")] == ["", "text:0.5"]


@pytest.mark.parametrize(
    "pairs", [[(0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (0.2, 0.3)], [(0.1, 0.1), (0.2, 0.1), (0.4, 0.1)]]
)
def test_triangle(root, pairs):
    for index, (beta, alpha) in enumerate([*pairs, (0.9, 0.8)]):
        write_run(root, 1, 0.1 + index / 100, model="lgn_mm", beta=beta, alpha=alpha)
    assert run_report(root, "--triangle") == 0
    check_figure(root, "baby_triangle")
    assert "Not shown: 1 with weights that sum to more than 1." in read_page(root)


def test_triangle_is_equilateral():
    x, y = drawing.to_triangle([0, 1, 0], [0, 0, 1])
    corners = np.stack([x, y], axis=1)
    sides = [np.linalg.norm(corners[a] - corners[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert sides == pytest.approx([1, 1, 1])


def test_learning_curve_covers_the_epochs_of_all_seeds(root):
    folders = [write_run(root, seed, 0.1 * seed) for seed in (1, 2)]
    (folders[1] / "metrics.jsonl").write_text(
        '{"epoch": 2, "valid": {"ndcg@5": 0.6}}\n{"epoch": 9, "valid": {"ndcg@5": 0.7}}\n'
    )
    group = Group([read_run(folder) for folder in folders])
    epochs, mean, minimum, maximum = figures.learning_curve(group, "ndcg@5")
    assert epochs == [2]
    assert mean == pytest.approx([0.4])
    assert minimum == pytest.approx([0.2])
    assert maximum == pytest.approx([0.6])


def test_no_bars_of_very_many_rows(root, capsys):
    for k in range(1, 15):
        write_run(root, 1, k / 100, model="lgn_mm", item_knn_k=k)
    assert run_report(root, "--curve", "item_knn_k") == 0
    assert "more than 12 rows" in capsys.readouterr().out
    assert not (root.parent / "out" / "baby_bars.png").exists()
