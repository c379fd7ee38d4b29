"""report.py: means, tests of significance, refusals, breakdowns, and the formats."""

import base64
import csv
import html.parser
import io
import itertools
import json
import math
import re
import sys

import numpy as np
import pytest
from scipy import stats

import report
from main import main as train
from reporting import figures, rankings, render, tables
from reporting import runs as report_runs
from reporting.render import Number, Table
from world import Config

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
PROTOCOL = {
    "selected_on": "valid",
    "selection_metric": "ndcg@5",
    "eval_dropout": 0,
    "masked_at_test": ["train"],
}


def write_run(root, seed, recall, status="finished", data="one", protocol=PROTOCOL, result=None, **settings):
    """A run folder whose recall@5 is `recall`; the other metrics are half, a third and a quarter of it."""
    config = Config(**{"dataset": "baby_raw", "topks": (5, 10), "seed": seed, **settings})
    folder = root / f"run_{len(list(root.glob('*')))}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.as_dict()))
    lines = [
        {
            "epoch": epoch,
            "epoch_seconds": float(epoch),
            "evaluation_seconds": 0.5,
            "valid": {name: recall * epoch for name in METRICS},
        }
        for epoch in (1, 2, 6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    test = {name: recall / part for part, name in enumerate(METRICS, 1)}
    whole = {
        "status": status,
        "test": test,
        "protocol": protocol,
        "data": {"interactions": data, "all": data},
        "seconds": 10.0 * seed,
        "peak_memory_mb": 100.0 * seed,
        "device": "cpu",
        "epochs": 6,
        "versions": {"git_commit": "a" * 40, "torch": "2.13.0", "platform": "Linux"},
    }
    if status != "unfinished":
        (folder / "result.json").write_text(json.dumps(whole if result is None else result))
    return folder


def naive_metrics(items, relevant, k):
    """Recall and NDCG of one list by loops."""
    gains = [1 / math.log2(rank + 2) for rank, item in enumerate(items[:k]) if item in relevant]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
    return len(gains) / len(relevant), sum(gains) / ideal


def write_ranked_run(root, seed, n_users=50, n_items=40, **settings):
    """A run folder with random ranked lists whose metrics stand in result.json. Returns the folder and the arrays."""
    world, rng = (
        np.random.default_rng(7),
        np.random.default_rng(seed),
    )  # users, relevant items and popularity are the same for all
    relevant = [np.sort(world.choice(n_items, world.integers(1, 5), replace=False)) for _ in range(n_users)]
    popularity = np.sort(world.integers(0, 12, n_items))
    arrays = {
        "users": np.arange(n_users) * 2,
        "items": np.stack([rng.permutation(n_items)[:10] for _ in range(n_users)]),
        "relevant_crow": np.cumsum([0, *map(len, relevant)]),
        "relevant_items": np.concatenate(relevant),
        "history": world.integers(1, 9, n_users),
        "popularity": popularity,
    }
    arrays = {name: array.astype(np.int32) for name, array in arrays.items()}
    folder = write_run(root, seed, 0.1, **settings)
    result = json.loads((folder / "result.json").read_text())
    for k in (5, 10):
        values = np.array(
            [naive_metrics(row, set(wanted), k) for row, wanted in zip(arrays["items"].tolist(), relevant)]
        )
        result["test"][f"recall@{k}"], result["test"][f"ndcg@{k}"] = values.mean(0).tolist()
    (folder / "result.json").write_text(json.dumps(result))
    np.savez(folder / "test_ranking.npz", **arrays)
    return folder, arrays


def run_report(root, *flags):
    """Exit code of the report on the runs below root, written beside them."""
    return report.main([str(root), "--output", str(root.parent / "out"), *flags])


def read_table(root, slug):
    """A CSV that a report has written, as {first cells joined: {column: value}}."""
    with open(root.parent / "out" / f"{slug}.csv", newline="") as file:
        return list(csv.DictReader(file))


def two_names(root, ours=(0.3, 0.35, 0.36), other=(0.2, 0.29, 0.1)):
    """Three seeds of RecGOAT and of LightGCN."""
    for seed, (mine, theirs) in enumerate(zip(ours, other), 1):
        write_run(root, seed, mine, model="lgn_mm")
        write_run(root, seed, theirs, model="lgn")


# ---------------------------------------------------------------- means and significance


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


def t_test_by_hand(ours, other):
    """Two-sided p of the paired t-test from its definition, by integrating the density of Student's t."""
    difference, n = np.subtract(ours, other), len(ours)
    t = abs(difference.mean()) / (difference.std(ddof=1) / math.sqrt(n))
    x = np.linspace(0, t, 200_001)
    density = (
        (1 + x**2 / (n - 1)) ** (-n / 2)
        * math.gamma(n / 2)
        / (math.sqrt((n - 1) * math.pi) * math.gamma((n - 1) / 2))
    )
    return 1 - 2 * np.trapezoid(density, x)


def wilcoxon_by_hand(ours, other):
    """Two-sided exact p of the signed-rank test, over all signs; for differences without ties."""
    difference = np.subtract(ours, other)
    ranks = np.abs(difference).argsort().argsort() + 1
    sums = np.array([np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))])
    least = min(np.dot(difference > 0, ranks), np.dot(difference < 0, ranks))
    return min(2 * np.mean(sums <= least), 1)


def test_p_values_against_their_definitions():
    rng = np.random.default_rng(0)
    for n in (3, 5, 8):
        ours, other = rng.random(n) + 0.3, rng.random(n)
        assert tables.paired_tests(ours, other) == pytest.approx(
            (t_test_by_hand(ours, other), wilcoxon_by_hand(ours, other)), rel=1e-6
        )
    assert np.isnan(tables.paired_tests([1.0], [2.0])).all() and tables.paired_tests(
        [1.0, 2.0], [1.0, 2.0]
    ) == (1, 1)


def test_ours_against_the_best_other_row(tmp_path, capsys):
    root = tmp_path / "runs"
    two_names(root)
    write_run(root, 2, 0.28, model="mf")  # the best other row by its mean, with one seed in common
    assert run_report(root, "--figures", "0") == 0
    row = read_table(root, "baby_significance")[0]
    assert (row["best other"], row["seeds"], row["p t-test, seeds"], row["users"]) == ("MF", "1", "", "0")
    assert float(row["gain in %"]) == pytest.approx(100 * (1.01 / 3 / 0.28 - 1))
    assert float(row["gain"]) == pytest.approx(1.01 / 3 - 0.28) and "Too few seeds" in capsys.readouterr().out
    assert run_report(root, "--figures", "0", "--ours", "LightGCN") == 0
    row, out = read_table(root, "baby_significance")[1], capsys.readouterr().out
    assert row["best other"] == "RecGOAT" and row["seeds"] == "3" and float(row["gain"]) < 0
    assert float(row["p t-test, seeds"]) == pytest.approx(
        t_test_by_hand([0.3, 0.35, 0.36], [0.2, 0.29, 0.1]), rel=1e-6
    )
    assert row["p Wilcoxon, seeds"] == "0.25" and "With 3 seeds a Wilcoxon p cannot be below 0.25" in out


def test_six_seeds_are_enough(tmp_path, capsys):
    two_names(tmp_path / "runs", np.linspace(0.3, 0.4, 6), np.linspace(0.2, 0.31, 6))
    assert run_report(tmp_path / "runs", "--figures", "0") == 0
    assert "Wilcoxon p cannot" not in capsys.readouterr().out
    assert read_table(tmp_path / "runs", "baby_significance")[0]["p Wilcoxon, seeds"] == "0.03125"


def test_significance_over_users_pairs_the_means_over_seeds(tmp_path):
    root, values = tmp_path / "runs", {"lgn": [], "lgn_mm": []}
    for seed, model in ((1, "lgn"), (2, "lgn"), (3, "lgn_mm"), (4, "lgn_mm")):
        _, arrays = write_ranked_run(root, seed, model=model)
        values[model].append(per_user(arrays, "recall@10"))
    assert run_report(root, "--figures", "0") == 0
    row = read_table(root, "baby_significance")[1]
    ours, other = np.mean(values["lgn_mm"], 0), np.mean(values["lgn"], 0)
    assert row["seeds"] == "0" and row["users"] == "50"
    assert float(row["p t-test, users"]) == pytest.approx(t_test_by_hand(ours, other), rel=1e-5)
    assert float(row["p Wilcoxon, users"]) == pytest.approx(stats.wilcoxon(ours - other).pvalue)


# ---------------------------------------------------------------- what may stand together


@pytest.mark.parametrize(
    "more, told",
    [
        ({"lr": 0.5}, "lr (0.001, 0.5)"),
        ({"recdim": 32, "layer": 2}, "recdim (64, 32), layer (3, 2)"),
        ({"data": "two"}, "data: interactions (one, two)"),
        ({"protocol": {**PROTOCOL, "eval_dropout": 1}}, "protocol"),
        ({"select_on": "test"}, "select_on (valid, test)"),
    ],
)
def test_runs_of_one_name_that_differ_are_refused(tmp_path, capsys, more, told):
    root = tmp_path / "runs"
    folders = [write_run(root, 1, 0.1, model="lgn"), write_run(root, 2, 0.1, model="lgn", **more)]
    assert run_report(root) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and told in error
        and all(str(folder) in error for folder in folders)
        and "LightGCN" in error
    )
    assert not (tmp_path / "out").exists()
    assert run_report(root, "--list") == 0 and str(folders[1]) in capsys.readouterr().out
    assert report.main([str(folders[1]), "--output", str(tmp_path / "out"), "--figures", "0"]) == 0


def test_two_runs_of_one_seed_are_refused(tmp_path, capsys):
    write_run(tmp_path / "runs", 1, 0.1), write_run(tmp_path / "runs", 1, 0.1)
    assert run_report(tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "same seed, 1" in error and "run_0" in error and "run_1" in error


def test_a_name_sets_runs_apart_and_free_settings_do_not(tmp_path):
    root = tmp_path / "runs"
    (
        write_run(root, 1, 0.1),
        write_run(root, 2, 0.1, threads=2, epochs=7),
        write_run(root, 1, 0.2, lr=0.5, name="fast"),
    )
    assert run_report(root, "--figures", "0") == 0
    assert [(row["method"], row["seeds"]) for row in read_table(root, "baby_results")] == [
        ("LightGCN", "2"),
        ("fast", "1"),
    ]


def test_other_data_and_protocols_have_tables_of_their_own(tmp_path, capsys):
    root = tmp_path / "runs"
    write_run(root, 1, 0.1, model="mf"), write_run(root, 1, 0.2, model="lgn", data="two")
    write_run(root, 1, 0.3, model="mf", dataset="sports_raw")
    write_run(root, 1, 0.4, model="lgn_mm", select_on="test", protocol={**PROTOCOL, "selected_on": "test"})
    write_run(root, 1, 0.5, name="at 10", topks=(10,))
    assert run_report(root, "--figures", "0") == 0
    out = capsys.readouterr().out
    tables = {
        slug: [row["method"] for row in read_table(root, f"{slug}_results")]
        for slug in ("baby", "baby_2", "sports", "baby_3", "baby_4")
    }
    assert sorted(tables.values()) == [
        ["LightGCN"],
        ["MF"],
        ["MF"],
        ["RecGOAT (leaks)"],
        ["at 10"],
    ] and tables["sports"] == ["MF"]
    assert (
        run_report(root, "--list") == 0 and capsys.readouterr().out.count("leaks: epoch chosen on test") == 1
    )
    assert out.count("**Warning.** These runs chose their epoch on the test split") == 1
    assert (
        "## Baby: epoch chosen by ndcg@5 on validation, train items masked at test (interactions two)" in out
    )


def test_other_surroundings_are_noted(tmp_path, capsys):
    root = tmp_path / "runs"
    write_run(root, 1, 0.1, model="mf"), write_run(root, 1, 0.2, model="lgn", threads=3)
    folder = write_run(root, 2, 0.2, model="lgn", threads=3)
    result = json.loads((folder / "result.json").read_text())
    result["versions"] |= {"git_commit": "b" * 40, "torch": "2.11.0"}
    (folder / "result.json").write_text(json.dumps(result))
    assert run_report(root, "--figures", "0") == 0
    out = capsys.readouterr().out
    assert (
        "The runs differ in threads: 0 (MF); 3 (LightGCN)." in out
        and "The runs differ in torch: 2.13.0 (MF, LightGCN); 2.11.0 (LightGCN)." in out
    )
    assert (
        "The runs differ in git commit: aaaaaaaa (MF, LightGCN); bbbbbbbb (LightGCN)." in out
        and "differ in device" not in out
    )


def test_incomplete_runs_are_listed_and_left_out(tmp_path, capsys):
    root = tmp_path / "runs"
    two_names(root)
    folders = [
        write_run(root, 9, 0.9, "unfinished"),
        write_run(
            root, 9, 0.9, "interrupted", result={"status": "interrupted", "reason": "SIGTERM", "epoch": 4}
        ),
        write_run(
            root,
            9,
            0.9,
            "failed",
            result={"status": "failed", "error": "epoch 3: the loss is not finite", "epoch": 2},
        ),
    ]
    with open(folders[0] / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 8, "val')  # the process was killed while it wrote
    assert run_report(root, "--figures", "0") == 0
    rows = read_table(root, "left_out")
    assert [(row["folder"], row["status"], row["epoch"], row["note"]) for row in rows] == [
        (str(folders[0]), "unfinished", "6", "no result.json: under way, or killed"),
        (str(folders[1]), "interrupted", "4", "SIGTERM"),
        (str(folders[2]), "failed", "2", "epoch 3: the loss is not finite"),
    ]
    assert "from 6 finished of 9 runs" in capsys.readouterr().out and {
        row["seeds"] for row in read_table(root, "baby_results")
    } == {"3"}
    assert report.main([str(folders[0]), "--output", str(tmp_path / "out")]) == 2
    assert "none of the 1 runs is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file, content, told",
    [
        ("result.json", "{", "cannot be read"),
        ("result.json", "[]", "holds no JSON object"),
        ("result.json", '{"status": "finished", "test": {}}', "lacks test metrics"),
        ("result.json", '{"status": "finished", "test": []}', "no result of this program"),
        ("config.json", '{"lerning": 1}', "unknown settings"),
        ("config.json", '{"lr": -1}', "--lr -1"),
        ("test_ranking.npz", "PK", "is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, capsys, file, content, told):
    folder = write_run(tmp_path / "runs", 1, 0.1)
    (folder / file).write_text(content)
    assert run_report(tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error and str(folder / file) in error


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--ours", "Nobody"], "there are LightGCN, RecGOAT"),
        (["--curve", "lerning"], "no such setting"),
        (["--curve", "lr"], "two values of it"),
        (["--triangle"], "two values of alpha or beta"),
        (["--triangle", "--figures", "0"], "contradicts"),
        (["--what"], "--help"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(tmp_path, capsys, flags, told):
    two_names(tmp_path / "runs")
    assert run_report(tmp_path / "runs", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error


def test_folders_without_runs(tmp_path, capsys):
    for path in (tmp_path / "nowhere", tmp_path):
        assert report.main([str(path)]) == 2
        assert f"{path}: no run folder" in capsys.readouterr().err


def test_output_that_is_a_file(tmp_path, capsys):
    write_run(tmp_path / "runs", 1, 0.1)
    (tmp_path / "out").write_text("")
    assert run_report(tmp_path / "runs", "--figures", "0") == 2 and "--output" in capsys.readouterr().err


def test_a_folder_named_twice_counts_once(tmp_path):
    folder = write_run(tmp_path / "runs", 1, 0.1)
    assert report_runs.find_folders([tmp_path / "runs", folder, tmp_path]) == [folder]


# ---------------------------------------------------------------- breakdowns


def per_user(arrays, metric):
    """A metric of every user of a test_ranking.npz, by loops."""
    name, k = metric.split("@")
    bounds = arrays["relevant_crow"]
    return np.array(
        [
            naive_metrics(row, set(arrays["relevant_items"][low:high].tolist()), int(k))[name == "ndcg"]
            for row, low, high in zip(arrays["items"].tolist(), bounds, bounds[1:])
        ]
    )


def test_values_of_users_and_their_means(tmp_path):
    folder, arrays = write_ranked_run(tmp_path, 3)
    run = report_runs.read_run(folder)
    ranking = rankings.read_ranking(run)
    for metric in METRICS:
        np.testing.assert_allclose(ranking.values[metric], per_user(arrays, metric), atol=1e-12)
        assert ranking.values[metric].mean() == pytest.approx(run.result["test"][metric], abs=1e-12)


def test_lists_of_another_run_are_refused(tmp_path, capsys):
    root = tmp_path / "runs"
    (first, _), (second, _) = write_ranked_run(root, 1), write_ranked_run(root, 2)
    (first / "test_ranking.npz").write_bytes((second / "test_ranking.npz").read_bytes())
    assert run_report(root) == 2
    assert "not of one run" in capsys.readouterr().err


def test_lists_of_other_users_are_refused(tmp_path, capsys):
    root = tmp_path / "runs"
    write_ranked_run(root, 1)
    folder, arrays = write_ranked_run(root, 2)
    np.savez(folder / "test_ranking.npz", **{**arrays, "users": arrays["users"] + 1})
    assert run_report(root) == 2
    assert "test users are not those of" in capsys.readouterr().err


def test_breakdown_by_history(tmp_path):
    root, shares = tmp_path / "runs", {}
    runs = [write_ranked_run(root, seed)[1] for seed in (1, 2)]
    assert run_report(root, "--figures", "0") == 0
    rows = {row["metric"]: row for row in read_table(root, "baby_users")}
    names = [name for name in rows["recall@5"] if name.endswith("users)")]
    covered = []
    for name in names:
        ends = [int(end) for end in name.split()[0].split("–")]
        inside = [user for user, length in enumerate(runs[0]["history"]) if ends[0] <= length <= ends[-1]]
        covered += inside
        assert f"({len(inside)} users)" in name and len(inside) >= 5
        for metric in METRICS:
            means = [per_user(arrays, metric)[inside].mean() for arrays in runs]
            assert float(rows[metric][name]) == pytest.approx(np.mean(means)) and float(
                rows[metric][f"{name} sd"]
            ) == pytest.approx(np.std(means, ddof=1))
    assert sorted(covered) == list(range(50)) and 3 <= len(names) <= 4


def test_breakdown_by_popularity(tmp_path):
    root = tmp_path / "runs"
    arrays = write_ranked_run(root, 1)[1]
    assert run_report(root, "--figures", "0") == 0
    popularity, total, so_far, bins = arrays["popularity"].tolist(), arrays["popularity"].sum(), 0, {}
    for item in sorted(range(len(popularity)), key=lambda item: (-popularity[item], item)):
        bins[item] = (
            "cold"
            if popularity[item] == 0
            else "head"
            if so_far < total / 2
            else "middle"
            if so_far < 0.8 * total
            else "tail"
        )
        so_far += popularity[item]
    assert set(bins.values()) == {"head", "middle", "tail", "cold"}
    for row in read_table(root, "baby_items"):
        k = int(row["metric"].split("@")[1])
        for name in set(bins.values()):
            (column,) = (column for column in row if column.startswith(name))
            pairs = [
                (user, item)
                for user, (low, high) in enumerate(zip(arrays["relevant_crow"], arrays["relevant_crow"][1:]))
                for item in arrays["relevant_items"][low:high]
                if bins[item] == name
            ]
            found = sum(item in arrays["items"][user, :k] for user, item in pairs)
            assert float(row[column]) == pytest.approx(found / len(pairs))
            assert column == f"{name} ({list(bins.values()).count(name)} items, {len(pairs)} relevant)"


def test_users_of_one_history_length_are_one_bin():
    bins, names = rankings.history_bins(np.array([4, 4, 4, 4]))
    assert bins.tolist() == [0, 0, 0, 0] and names == ["4"]


def test_rows_without_lists_are_named(tmp_path, capsys):
    root = tmp_path / "runs"
    write_ranked_run(root, 1, model="lgn"), write_run(root, 1, 0.3, model="mf")
    assert run_report(root, "--figures", "0") == 0
    assert "no test_ranking.npz: MF." in capsys.readouterr().out and {
        row["method"] for row in read_table(root, "baby_users")
    } == {"LightGCN"}


# ---------------------------------------------------------------- seconds, published figures


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


# ---------------------------------------------------------------- formats

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


class Page(html.parser.HTMLParser):
    """Collects tags and text, and fails on one that is closed out of turn."""

    EMPTY = {"meta", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


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


def check_figure(path):
    """Both files of a figure are there, and the picture holds many colours."""
    from PIL import Image

    assert path.with_name(path.name + ".pdf").read_bytes()[:5] == b"%PDF-"
    with Image.open(path.with_name(path.name + ".png")) as image:
        assert min(image.size) > 300 and len(image.convert("RGB").getcolors(10**6)) > 50


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


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    two_names(tmp_path / "runs")
    assert run_report(tmp_path / "runs") == 2
    assert "pip install" in capsys.readouterr().err
    assert run_report(tmp_path / "runs", "--figures", "0") == 0


# ---------------------------------------------------------------- from end to end


def test_two_trained_runs(small_dataset, capsys):
    runs = small_dataset.parent.parent / "runs"
    for seed, model in itertools.product((1, 2), ("lgn", "lgn_mm")):
        assert (
            train(
                [
                    "--dataset",
                    "small",
                    "--data_root",
                    str(small_dataset.parent),
                    "--path",
                    str(runs),
                    "--recdim",
                    "8",
                    "--attn_heads",
                    "2",
                    "--item_knn_k",
                    "4",
                    "--topks",
                    "5,10",
                    "--epochs",
                    "3",
                    "--eval_every",
                    "1",
                    "--tensorboard",
                    "0",
                    "--cuda",
                    "0",
                    "--model",
                    model,
                    "--seed",
                    str(seed),
                ]
            )
            == 0
        )
    capsys.readouterr()
    assert run_report(runs) == 0
    results = [
        json.loads((folder / "result.json").read_text())
        for folder in sorted(runs.iterdir())
        if "_lgn_mm_" in folder.name
    ]
    (row,) = (row for row in read_table(runs, "small_results") if row["method"] == "RecGOAT")
    for metric in METRICS:
        assert float(row[metric]) == pytest.approx(np.mean([result["test"][metric] for result in results]))
    users = read_table(runs, "small_users")
    assert {row["method"] for row in users} == {"LightGCN", "RecGOAT"} and all(
        float(row["epoch_seconds"]) > 0 for row in read_table(runs, "small_seconds")
    )
    check_figure(runs.parent / "out" / "small_learning")
    Page((runs.parent / "out" / "report.html").read_text())
