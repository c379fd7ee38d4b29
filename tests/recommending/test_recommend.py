"""Lists, similar items and vectors of recommend.py: ranked as the evaluation does, with original ids."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recommend_helpers import N_ITEMS, N_USERS, items_of, load, read_table, train, write_names
from small_runs import METRICS, read_json

import recommend

ROOT = Path(__file__).resolve().parents[2]


def metrics(lists, relevant, k):
    """Metrics of lists of item numbers, by a loop over users."""
    sums = np.zeros(5)
    for user, items in relevant.items():
        hits = [item in items for item in lists[user][:k]]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(items)) + 1))
        gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, 1) if hit)
        average = sum(sum(hits[:rank]) / rank for rank, hit in enumerate(hits, 1) if hit)
        sums += [sum(hits) / len(items), gain / ideal, sum(hits) / k, average / min(k, len(items)), any(hits)]
    return dict(zip((f"{name}@{k}" for name in METRICS), sums / len(relevant)))


def held_out_items(folder):
    """{user: set of test items} of a dataset folder, read without the loader."""
    rows = ([int(word) for word in line.split()] for line in (folder / "test.txt").read_text().splitlines())
    return {user: set(items) for user, *items in rows if items}


def numbered_lists(text):
    """{user: [item, ...]} of output without original ids."""
    return {int(user): [int(item) for item in items_of(rows)] for user, rows in read_table(text)[1].items()}


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize(
    "model, changes",
    [
        ("mf", {}),
        ("lgn", {"mask_valid_at_test": 1}),
        ("vbpr", {}),
        ("freedom", {}),
        ("bm3", {}),
        ("lattice", {}),
        ("mgcn", {}),
        ("smore", {}),
        ("itemknn", {}),
        ("lgn_mm", {}),
    ],
)
def test_the_metrics_of_the_lists_are_those_of_the_run(small_dataset, tmp_path, run, model, changes):
    folder = train(small_dataset, tmp_path / "runs", model, **changes)
    code, text, _ = run(folder, "--topk", "10")
    assert code == 0
    expected = read_json(folder)["test"]
    for k in (5, 10):
        for name, value in metrics(numbered_lists(text), held_out_items(small_dataset), k).items():
            assert value == pytest.approx(expected[name], abs=1e-12)


def test_the_metrics_of_the_lists_on_baby(baby, tmp_path, run):
    """The same at full size: 19,445 users."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "baby").symlink_to(baby.resolve())
    settings = dict(epochs=1, data_format="txt", bpr_batch=8192)
    folder = train(tmp_path / "data" / "baby", tmp_path / "runs", "lgn", **settings)
    code, text, err = run(folder, "--topk", "10")
    assert code == 0 and "19445 lists of up to 10 from 7050 items" in err
    expected = read_json(folder)["test"]
    for name, value in metrics(numbered_lists(text), held_out_items(baby), 10).items():
        assert value == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize(
    "exclude, splits",
    [("", ["train"]), ("none", []), ("train,valid", ["train", "valid"]), ("test", ["test"])],
)
def test_lists_are_the_best_items_that_are_not_excluded(lgn, run, exclude, splits):
    code, text, _ = run(lgn, "--topk", str(N_ITEMS), "--exclude", exclude)
    model, dataset, _ = load(lgn)
    user, item = (vectors.detach().double().numpy() for vectors in model.embeddings())
    excluded = {tuple(pair) for split in splits for pair in getattr(dataset.interactions, split)}
    lists = read_table(text)[1]
    for name, rows in lists.items():
        u = int(name)
        candidates = [i for i in range(N_ITEMS) if (u, i) not in excluded]
        assert [int(i) for i in items_of(rows)] == sorted(candidates, key=lambda i: -user[u] @ item[i])
        scores = [user[u] @ item[int(i)] for i in items_of(rows)]
        assert [row[1] for row in rows] == pytest.approx(scores, rel=1e-4, abs=1e-6)
    assert code == 0 and len(lists) == N_USERS


def test_the_size_of_chunks_has_no_influence(lgn, run):
    assert read_table(run(lgn, "--eval_chunk", "7")[1]) == read_table(run(lgn)[1])


def test_the_checkpoint_is_a_file_or_a_run_folder(lgn, run):
    assert run(lgn)[1] == run(lgn / "best.pt")[1]
    (lgn / "best.pt").rename(lgn / "last.pt")
    assert run(lgn)[0] == 0


def test_data_may_move_and_changed_data_give_a_note(lgn, small_dataset, run, tmp_path):
    before, changed = run(lgn)[1], "differ from those this run was trained on"
    small_dataset.parent.rename(tmp_path / "elsewhere")
    code, _, err = run(lgn, output="x")
    assert code == 2 and f"{small_dataset}: " in err
    data_root = ["--data_root", str(tmp_path / "elsewhere")]
    code, text, err = run(lgn, *data_root)
    assert code == 0 and text == before and changed not in err
    test = tmp_path / "elsewhere" / "small" / "test.txt"
    test.write_text(test.read_text().split("\n", 1)[1])
    assert changed in run(lgn, *data_root)[2]


def test_a_run_that_was_evaluated_with_dropout_gives_a_note(small_dataset, tmp_path, run):
    folder = train(small_dataset, tmp_path / "runs", "lgn_mm", eval_dropout=1)
    code, text, err = run(folder)
    assert code == 0 and "lists are made without" in err and text == run(folder)[1]


# ---------------------------------------------------------------- ids, titles, formats


def test_original_ids_and_titles(lgn, small_dataset, run):
    plain = read_table(run(lgn, "--topk", "3")[1])[1]
    write_names(small_dataset)
    header, named = read_table(run(lgn, "--topk", "3")[1])
    assert header == ["user", "rank", "item", "score", "title"]
    assert named == {
        f"user-{u}é": [
            (f"B{int(item):04d}", score, f"Title of {item}" if int(item) % 2 else "") for item, score in rows
        ]
        for u, rows in plain.items()
    }


def test_json_lines_have_the_lists_of_the_table(lgn, small_dataset, run):
    write_names(small_dataset)
    lists = read_table(run(lgn, "--topk", "3")[1])[1]
    text = run(lgn, "--topk", "3", "--format", "jsonl", output="out.jsonl")[1]
    records = map(json.loads, text.splitlines())
    assert {r["user"]: list(zip(r["item"], r["score"], r["title"])) for r in records} == lists


def test_parquet_has_the_lists_of_the_table(lgn, small_dataset, run, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="pyarrow is optional")
    write_names(small_dataset)
    lists = read_table(run(lgn, "--topk", "3")[1])[1]
    argv = ["--checkpoint", str(lgn), "--topk", "3", "--format", "parquet"]
    assert recommend.main([*argv, "--output", str(tmp_path / "o.parquet")]) == 0
    frame = pandas.read_parquet(tmp_path / "o.parquet")
    assert list(frame) == ["user", "rank", "item", "score", "title"]
    assert frame["rank"].tolist() == [1, 2, 3] * N_USERS
    expected = [(user, item, title) for user, rows in lists.items() for item, _, title in rows]
    assert list(zip(frame["user"], frame["item"], frame["title"])) == expected
    scores = [row[1] for rows in lists.values() for row in rows]
    assert frame["score"].tolist() == pytest.approx(scores)


def test_without_pyarrow_the_remedy_is_named(lgn, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, text, err = run(lgn, "--format", "parquet")
    assert code == 2 and "needs pyarrow: pip install" in err and text is None


def test_chosen_users_in_their_order_on_stdout(lgn, small_dataset, run, tmp_path):
    write_names(small_dataset)
    everybody = read_table(run(lgn)[1])[1]
    (tmp_path / "users").write_text("user-7é\nuser-3é\n\nuser-7é\n", "utf-8")
    argv = [sys.executable, "recommend.py", "--checkpoint", lgn, "--users", tmp_path / "users"]
    out = subprocess.run(argv, cwd=ROOT, capture_output=True, check=True).stdout.decode("utf-8")
    assert out == run(lgn, "--users", "user-7é,user-3é")[1]
    lists = read_table(out)[1]
    assert list(lists) == ["user-7é", "user-3é"]
    assert all(items_of(rows) == items_of(everybody[name]) for name, rows in lists.items())


# ---------------------------------------------------------------- similar items, vectors


def test_similar_items(lgn, small_dataset, run):
    write_names(small_dataset)
    header, lists = read_table(run(lgn, "--similar_items", "B0004,B0002", "--topk", "5")[1])
    assert header[:3] == ["item", "rank", "similar_item"] and list(lists) == ["B0004", "B0002"]
    item = load(lgn)[0].embeddings()[1].detach().double().numpy()
    length = np.linalg.norm(item, axis=1)
    cosine = item @ item.T / np.outer(length, length)
    for number, rows in ((4, lists["B0004"]), (2, lists["B0002"])):
        order = [i for i in np.argsort(-cosine[number]) if i != number][:5]
        assert items_of(rows) == [f"B{i:04d}" for i in order]
        assert [row[1] for row in rows] == pytest.approx(cosine[number][order], abs=1e-5)


def test_similar_items_by_the_weights_of_the_term(small_dataset, run, tmp_path):
    folder = train(small_dataset, tmp_path / "runs", "lgn", neighbour_weight=0.5)
    weights = load(folder)[0].item_weights().matrix.to_dense().numpy()
    lists = read_table(run(folder, "--similar_items", "4,2", "--similar_by", "weights", "--topk", "5")[1])[1]
    for item, rows in lists.items():
        row = np.delete(weights[int(item)], int(item))
        assert [score for _, score, *_ in rows] == pytest.approx(np.sort(row)[::-1][:5] / 2, abs=1e-5)
        assert all(weights[int(item), int(other)] == pytest.approx(2 * s, abs=1e-5) for other, s, *_ in rows)


def test_items_without_a_weight_are_not_similar(small_dataset, run, tmp_path):
    folder = train(small_dataset, tmp_path / "runs", "itemknn", itemknn_k=3)
    weights = load(folder)[0].item_weights().matrix.to_dense().numpy()
    untrained = len(weights) - 1
    flags = ["--similar_items", f"4,{untrained}", "--similar_by", "weights", "--topk", "8"]
    _, out, err = run(folder, *flags)
    lists = read_table(out)[1]
    assert {int(item) for item in items_of(lists["4"])} == {*np.flatnonzero(weights[4])}
    assert str(untrained) not in lists and "1 items have no weights to others" in err


def test_similar_items_by_weights_need_a_run_that_has_them(lgn, run):
    code, _, err = run(lgn, "--similar_items", "4", "--similar_by", "weights")
    assert code == 2 and len(err.splitlines()) == 1 and "--neighbour_weight" in err


def test_similar_items_go_by_vectors_alone_where_there_are_vectors(small_dataset, run, tmp_path):
    """The neighbourhood term changes no training: the vectors are the same, and so are the lists."""
    lists = []
    for weight in (0.0, 5.0):
        folder = train(small_dataset, tmp_path / str(weight), "lgn", epochs=1, neighbour_weight=weight)
        lists.append(run(folder, "--similar_items", "4,2", "--topk", "5")[1])
    assert lists[0] == lists[1]


def test_exported_vectors_give_the_lists(recgoat, small_dataset, run, tmp_path):
    write_names(small_dataset)
    assert run(recgoat, "--export_embeddings", str(tmp_path / "v.npz"), output=None)[0] == 0
    with np.load(tmp_path / "v.npz", allow_pickle=False) as arrays:
        user, item, users, items = (arrays[name] for name in ("user", "item", "user_ids", "item_ids"))
    assert user.shape == (N_USERS, 16) and item.shape == (N_ITEMS, 16)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in (user, item))
    lists = read_table(run(recgoat, "--topk", "4", "--exclude", "none")[1])[1]
    for name, vector in zip(users.tolist(), user, strict=True):
        assert items_of(lists[name]) == items[np.argsort(-(item @ vector))[:4]].tolist()
