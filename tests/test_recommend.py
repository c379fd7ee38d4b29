"""recommend.py: lists as the evaluation ranks, vectors of new users and cold items against naive ones, bad input in one line."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import dataset_of

import main
import recommend
from data.formats import read_interactions
from layers.attention import GraphAttention, attention_graph

ROOT = Path(__file__).resolve().parents[1]
N_USERS, N_ITEMS = 40, 30  # of the fixture small_dataset
MM = ["--item_knn_k", "4", "--attn_heads", "4"]


def train(folder, runs, model, *flags):
    """Train two epochs on a dataset folder; returns the run folder."""
    with torch.enable_grad():
        code = main.main(
            [
                "--dataset",
                folder.name,
                "--data_root",
                str(folder.parent),
                "--path",
                str(runs),
                "--model",
                model,
                "--epochs",
                "2",
                "--eval_every",
                "1",
                "--topks",
                "5,10",
                "--tensorboard",
                "0",
                "--cuda",
                "0",
                "--recdim",
                "16",
                *flags,
            ]
        )
    assert code == 0
    return next(iter(runs.glob(f"*_{model}_*")))


@pytest.fixture
def lgn(small_dataset, tmp_path):
    return train(small_dataset, tmp_path / "runs", "lgn")


@pytest.fixture
def mm(small_dataset, tmp_path):
    return train(small_dataset, tmp_path / "runs", "lgn_mm", *MM)


@pytest.fixture
def run(tmp_path, capsys):
    """Run the tool into a file; returns (exit code, text of the file or None, stderr)."""

    def run(folder, *flags, output="out"):
        target = ["--output", str(tmp_path / output)] if output else []
        code = recommend.main(["--checkpoint", str(folder), "--cuda", "0", *flags, *target])
        text = (tmp_path / output).read_text("utf-8") if output and (tmp_path / output).exists() else None
        return code, text, capsys.readouterr().err

    return run


def name_things(folder):
    """Original ids and titles for a dataset folder."""
    (folder / "user_ids.tsv").write_text("".join(f"{u}\tuser-{u}é\n" for u in range(N_USERS)), "utf-8")
    (folder / "item_ids.tsv").write_text("".join(f"{i}\tB{i:04d}\n" for i in range(N_ITEMS)))
    records = (
        {"item": i, "id": f"B{i:04d}", "title": f"Title\tof  {i}\n" if i % 2 else ""}
        for i in reversed(range(N_ITEMS))
    )
    (folder / "item_text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def table(text):
    """TSV -> {query: [(item, score, *title), ...]}, checking header and ranks."""
    header, *lines = text.splitlines()
    lists = {}
    for line in lines:
        query, rank, item, score, *title = line.split("\t")
        lists.setdefault(query, []).append((item, float(score), *title))
        assert int(rank) == len(lists[query])
    return header.split("\t"), lists


def metrics(lists, relevant, k):
    """Recall, NDCG, precision, MAP and hit rate from lists of item numbers, a plain loop over users."""
    sums = np.zeros(5)
    for user, items in relevant.items():
        hits = [item in items for item in lists[user][:k]]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(items)) + 1))
        gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, 1) if hit)
        average = sum(sum(hits[:rank]) / rank for rank, hit in enumerate(hits, 1) if hit)
        sums += [sum(hits) / len(items), gain / ideal, sum(hits) / k, average / min(k, len(items)), any(hits)]
    return dict(
        zip(
            (f"{name}@{k}" for name in ("recall", "ndcg", "precision", "map", "hitrate")),
            sums / len(relevant),
        )
    )


def relevant_items(folder):
    """{user: set of test items} of a dataset folder, read without the loader."""
    rows = ([int(word) for word in line.split()] for line in (folder / "test.txt").read_text().splitlines())
    return {user: set(items) for user, *items in rows if items}


# ---------------------------------------------------------------- the lists are the evaluation's


@pytest.mark.parametrize(
    "model, flags",
    [
        ("mf", []),
        ("lgn", ["--mask_valid_at_test", "1"]),
        ("vbpr", []),
        ("freedom", ["--item_knn_k", "4"]),
        ("lgn_mm", MM),
    ],
)
def test_metrics_from_the_lists_are_those_of_the_run(small_dataset, tmp_path, run, model, flags):
    folder = train(small_dataset, tmp_path / "runs", model, *flags)
    code, text, _ = run(folder, "--topk", "10")
    assert code == 0
    lists = {int(user): [int(item) for item, *_ in rows] for user, rows in table(text)[1].items()}
    expected = json.loads((folder / "result.json").read_text())["test"]
    for k in (5, 10):
        for name, value in metrics(lists, relevant_items(small_dataset), k).items():
            assert value == pytest.approx(expected[name], abs=1e-12)


def test_metrics_on_baby(baby, tmp_path, run):
    """The same at full size: 19,445 users, one epoch."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "baby").symlink_to(baby.resolve())
    folder = train(
        tmp_path / "data" / "baby",
        tmp_path / "runs",
        "lgn",
        "--epochs",
        "1",
        "--data_format",
        "txt",
        "--bpr_batch",
        "8192",
    )
    code, text, said = run(folder, "--topk", "10")
    assert code == 0 and "19445 lists of up to 10 from 7050 items" in said
    lists = {int(user): [int(item) for item, *_ in rows] for user, rows in table(text)[1].items()}
    expected = json.loads((folder / "result.json").read_text())["test"]
    for name, value in metrics(lists, relevant_items(baby), 10).items():
        assert value == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize(
    "exclude, splits",
    [("", ["train"]), ("none", []), ("train,valid", ["train", "valid"]), ("test", ["test"])],
)
def test_lists_are_the_best_of_what_is_left(lgn, small_dataset, run, exclude, splits):
    code, text, _ = run(lgn, "--topk", str(N_ITEMS), "--exclude", exclude)
    model, dataset, _ = recommend.load_run(lgn / "best.pt", {"cuda": 0})
    user, item = (part.detach().double().numpy() for part in model.embeddings())
    seen = {tuple(pair) for split in splits for pair in getattr(dataset.interactions, split)}
    for name, rows in table(text)[1].items():
        u = int(name)
        left = [i for i in range(N_ITEMS) if (u, i) not in seen]
        assert [int(row[0]) for row in rows] == sorted(left, key=lambda i: -user[u] @ item[i])
        assert [row[1] for row in rows] == pytest.approx(
            [user[u] @ item[int(row[0])] for row in rows], rel=1e-4, abs=1e-6
        )
    assert code == 0 and len(table(text)[1]) == N_USERS


def test_chunks_do_not_matter(lgn, run):
    assert table(run(lgn, "--eval_chunk", "7")[1]) == table(run(lgn)[1])


# ---------------------------------------------------------------- ids, titles, formats


def test_original_ids_and_titles(lgn, small_dataset, run):
    plain = table(run(lgn, "--topk", "3")[1])[1]
    name_things(small_dataset)
    header, named = table(run(lgn, "--topk", "3")[1])
    assert header == ["user", "rank", "item", "score", "title"]
    assert named == {
        f"user-{u}é": [
            (f"B{int(item):04d}", score, f"Title of {item}" if int(item) % 2 else "") for item, score in rows
        ]
        for u, rows in plain.items()
    }


def test_formats_say_the_same(lgn, small_dataset, run, tmp_path):
    name_things(small_dataset)
    lists = table(run(lgn, "--topk", "3")[1])[1]
    records = [
        json.loads(line)
        for line in run(lgn, "--topk", "3", "--format", "jsonl", output="out.jsonl")[1].splitlines()
    ]
    assert {r["user"]: list(zip(r["item"], r["score"], r["title"])) for r in records} == lists
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="pyarrow is optional")
    target = str(tmp_path / "o.parquet")
    assert (
        recommend.main(["--checkpoint", str(lgn), "--topk", "3", "--format", "parquet", "--output", target])
        == 0
    )
    frame = pandas.read_parquet(tmp_path / "o.parquet")
    assert (
        list(frame) == ["user", "rank", "item", "score", "title"]
        and frame["rank"].tolist() == [1, 2, 3] * N_USERS
    )
    expected = [(user, item, title) for user, rows in lists.items() for item, _, title in rows]
    assert list(zip(frame["user"], frame["item"], frame["title"])) == expected
    assert frame["score"].tolist() == pytest.approx([row[1] for rows in lists.values() for row in rows])


def test_parquet_without_pyarrow(lgn, run, monkeypatch):
    monkeypatch.setattr(recommend.importlib.util, "find_spec", lambda name: None)
    code, text, said = run(lgn, "--format", "parquet")
    assert code == 2 and "pip install pyarrow" in said and text is None


def test_chosen_users_in_their_order_to_stdout(lgn, small_dataset, run, tmp_path):
    name_things(small_dataset)
    everybody = table(run(lgn)[1])[1]
    (tmp_path / "who").write_text("user-7é\nuser-3é\n\nuser-7é\n", "utf-8")
    command = [sys.executable, "recommend.py", "--checkpoint", str(lgn), "--users", str(tmp_path / "who")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode("utf-8")
    assert shown == run(lgn, "--users", "user-7é,user-3é")[1]
    lists = table(shown)[1]
    assert list(lists) == ["user-7é", "user-3é"]
    for name, rows in lists.items():
        assert [row[0] for row in rows] == [row[0] for row in everybody[name]]


def test_checkpoint_may_be_a_file_or_a_folder(lgn, run):
    assert run(lgn)[1] == run(lgn / "best.pt")[1]
    (lgn / "best.pt").rename(lgn / "last.pt")
    assert run(lgn)[0] == 0


def test_moved_data_are_found_and_changed_data_are_noticed(lgn, small_dataset, run, tmp_path):
    before = run(lgn)[1]
    small_dataset.parent.rename(tmp_path / "elsewhere")
    code, _, said = run(lgn, output="x")
    assert code == 2 and "no such dataset folder" in said
    code, text, said = run(lgn, "--data_root", str(tmp_path / "elsewhere"))
    assert code == 0 and text == before and "not what this run was trained on" not in said
    test = tmp_path / "elsewhere" / "small" / "test.txt"
    test.write_text(test.read_text().split("\n", 1)[1])
    assert "not what this run was trained on" in run(lgn, "--data_root", str(tmp_path / "elsewhere"))[2]


# ---------------------------------------------------------------- similar items, vectors


def test_similar_items(lgn, small_dataset, run):
    name_things(small_dataset)
    header, lists = table(run(lgn, "--similar_items", "B0004,B0002", "--topk", "5")[1])
    assert header[:3] == ["item", "rank", "similar_item"] and list(lists) == ["B0004", "B0002"]
    item = recommend.load_run(lgn / "best.pt", {"cuda": 0})[0].embeddings()[1].detach().double().numpy()
    cosine = item @ item.T / np.outer(*2 * [np.linalg.norm(item, axis=1)])
    for number, rows in ((4, lists["B0004"]), (2, lists["B0002"])):
        order = [i for i in np.argsort(-cosine[number]) if i != number][:5]
        assert [row[0] for row in rows] == [f"B{i:04d}" for i in order]
        assert [row[1] for row in rows] == pytest.approx(cosine[number][order], abs=1e-5)


def test_export(mm, small_dataset, run, tmp_path):
    name_things(small_dataset)
    assert run(mm, "--export_embeddings", str(tmp_path / "v.npz"), output=None)[0] == 0
    with np.load(tmp_path / "v.npz", allow_pickle=False) as arrays:
        user, item, users, items = (arrays[name] for name in ("user", "item", "user_ids", "item_ids"))
    assert user.shape == (N_USERS, 16) and item.shape == (N_ITEMS, 16)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in (user, item))
    lists = table(run(mm, "--topk", "4", "--exclude", "none")[1])[1]
    for name, vector in zip(users.tolist(), user):
        assert [row[0] for row in lists[name]] == items[np.argsort(-(item @ vector))[:4]].tolist()


# ---------------------------------------------------------------- new users


def dense_propagation(model, dataset, histories):
    """New users' vectors from a dense adjacency with a row, but no column, for each of them: layers 0..L, their layer 0 zero."""
    u, i = len(model.user), len(model.item)
    train = np.zeros((u, i))
    train[tuple(dataset.interactions.train.T)] = 1
    a = np.zeros((u + i + len(histories), u + i + len(histories)))
    degree = train.sum(0)
    normal = train / np.sqrt(np.outer(np.maximum(train.sum(1), 1), np.maximum(degree, 1)))
    a[:u, u : u + i], a[u : u + i, :u] = normal, normal.T
    for row, items in enumerate(histories):
        for item in items:
            a[u + i + row, u + item] = 1 / math.sqrt(len(items) * (degree[item] + 1))
    new = np.zeros((len(histories), model.user.shape[1]))
    layer = mean = np.concatenate([model.user.detach().numpy(), model.item.detach().numpy(), new]).astype(
        float
    )
    for _ in range(model.layers):
        layer = a @ layer
        mean = mean + layer
    return (mean / (model.layers + 1))[u + i :]


def sparse_rows(histories):
    rows = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    return sp.csr_matrix(
        (np.ones(len(rows), np.float32), (rows, np.concatenate(histories))), (len(histories), N_ITEMS)
    )


@torch.no_grad()
def test_new_users_are_propagated(lgn, small_dataset):
    model, dataset, config = recommend.load_run(lgn / "best.pt", {"cuda": 0})
    histories = [[3, 5, 8], [N_ITEMS - 1], [0, 1, 2, 3, 4, 5]]  # the last item has no train interaction
    vectors = recommend.new_user_vectors(
        model, model.embeddings()[1], sparse_rows(histories), dataset, config
    )
    np.testing.assert_allclose(
        vectors.numpy(), dense_propagation(model, dataset, histories), rtol=1e-4, atol=1e-6
    )


@torch.no_grad()
def test_with_one_layer_a_new_user_is_one_that_had_been_there(small_dataset, tmp_path):
    """Retrain nothing: put the user into the graph with a zero vector at layer 0, and propagate."""
    folder = train(small_dataset, tmp_path / "runs", "lgn", "--layer", "1")
    model, dataset, config = recommend.load_run(folder / "best.pt", {"cuda": 0})
    vector = recommend.new_user_vectors(
        model, model.embeddings()[1], sparse_rows([[3, 5, 8]]), dataset, config
    )
    with open(small_dataset / "train.txt", "a") as file:
        file.write(f"{N_USERS} 3 5 8\n")
    data = read_interactions(small_dataset)
    model.adjacency = dataset_of(config).adjacency
    model.user = torch.nn.Parameter(torch.cat([model.user, torch.zeros(1, 16)]))
    assert data.n_users == N_USERS + 1
    np.testing.assert_allclose(vector[0].numpy(), model.embeddings()[0][-1].numpy(), rtol=1e-5, atol=1e-7)


def test_new_users_lists(lgn, small_dataset, run, tmp_path):
    """A known user's train items as a new user: nearly the same list, none of these items in it; blanks and tabs both separate."""
    data = read_interactions(small_dataset)
    rows = {u: data.train[data.train[:, 0] == u, 1].tolist() for u in range(N_USERS - 1)}
    name_things(small_dataset)
    lines = [
        f"new{u}{sep}{sep.join(f'B{i:04d}' for i in items)}\n"
        for (u, items), sep in zip(rows.items(), "\t " * N_USERS)
    ]
    (tmp_path / "new").write_text("".join(lines) + "\n")
    lists = table(run(lgn, "--new_users", str(tmp_path / "new"), "--topk", "10")[1])[1]
    known = table(run(lgn, "--topk", "10")[1])[1]
    assert list(lists) == [f"new{u}" for u in rows]
    shared = [
        len({row[0] for row in lists[f"new{u}"]} & {row[0] for row in known[f"user-{u}é"]}) for u in rows
    ]
    assert all(
        {row[0] for row in lists[f"new{u}"]}.isdisjoint(f"B{i:04d}" for i in items)
        for u, items in rows.items()
    )
    assert np.mean(shared) > 5  # 10 of 24 at random would be 4.2


@torch.no_grad()
def test_new_users_of_other_models(small_dataset, tmp_path, capsys):
    model, dataset, config = recommend.load_run(
        train(small_dataset, tmp_path / "mf", "mf") / "best.pt", {"cuda": 0}
    )
    vector = recommend.new_user_vectors(model, model.item, sparse_rows([[3, 5], [7]]), dataset, config)
    torch.testing.assert_close(vector, torch.stack([(model.item[3] + model.item[5]) / 2, model.item[7]]))
    flags = [*MM, "--user_knn_k", "4", "--user_text_feat"]
    folder = train(small_dataset, tmp_path / "mean", "lgn_mm", *flags, "mean")
    model, dataset, config = recommend.load_run(folder / "best.pt", {"cuda": 0})
    vector = recommend.new_user_vectors(model, model.embeddings()[1], sparse_rows([[3, 5]]), dataset, config)
    text = model.text_features[[3, 5]].mean(0, keepdim=True)
    z, _ = recommend.attend(model.user_branch, model.user_graph, model.user_features, text, 4)
    id_part = dense_propagation(model.backbone, dataset, [[3, 5]])
    np.testing.assert_allclose(vector.numpy(), 0.8 * id_part + 0.2 * z.numpy(), rtol=1e-4, atol=1e-6)
    np.save(tmp_path / "users.npy", np.random.default_rng(0).standard_normal((N_USERS, 5)).astype(np.float32))
    model, dataset, config = recommend.load_run(
        train(small_dataset, tmp_path / "file", "lgn_mm", *flags, str(tmp_path / "users.npy")) / "best.pt",
        {"cuda": 0},
    )
    capsys.readouterr()
    recommend.new_user_vectors(model, model.embeddings()[1], sparse_rows([[3, 5]]), dataset, config)
    assert "without the user-user branch" in capsys.readouterr().err


# ---------------------------------------------------------------- cold items


def test_extended_graph_attends_as_a_full_one():
    """Rows of new nodes against a graph of all nodes built by the loader, in which nobody else names them; old rows are unchanged."""
    torch.manual_seed(0)
    old = np.array([[1, 2], [2, 3], [3, 0], [0, 1], [2, 1]])
    graph, layer, x = (
        attention_graph(old, 4, torch.device("cpu")),
        GraphAttention(6, 8, 4).eval(),
        torch.randn(7, 6),
    )
    new = torch.tensor([[3, 1], [0, 4]])
    out = layer(recommend.extend_graph(graph, new), x).detach()
    torch.testing.assert_close(out[:5], layer(graph, x[:5]).detach())
    for row, neighbours in enumerate(new, 5):
        nodes = [*neighbours.tolist(), row]
        h = (x @ layer.weight.T).view(7, 4, 2)
        score = torch.nn.functional.leaky_relu(
            (h[row] * layer.a_dst).sum(1) + (h[nodes] * layer.a_src).sum(2), 0.2
        )  # [3, H]
        expected = (score.softmax(0)[..., None] * h[nodes]).sum(0).flatten() + layer.bias
        torch.testing.assert_close(out[row], expected.detach())


@pytest.fixture
def new_items(small_dataset, tmp_path):
    """A folder of two items that look like items 4 and 9 of the catalogue."""
    folder = tmp_path / "new_items"
    folder.mkdir()
    for m in ("text", "image"):
        np.save(folder / f"{m}_feat.npy", np.load(small_dataset / f"{m}_feat.npy")[[4, 9]] * 1.5)
    (folder / "item_ids.tsv").write_text("0\tfourth\n1\tninth\n")
    return folder


def test_cold_items_are_candidates(mm, small_dataset, new_items, run, tmp_path):
    name_things(small_dataset)
    cold = ["--cold_items", str(new_items)]
    known, lists = (table(run(mm, "--topk", "20", *flags)[1])[1] for flags in ([], cold))
    assert any(row[0] in ("fourth", "ninth") for rows in lists.values() for row in rows)
    for user, rows in lists.items():  # apart from them the order is as it was
        rest = [row[0] for row in rows if row[0] not in ("fourth", "ninth")]
        assert rest == [row[0] for row in known[user]][: len(rest)]
    (new_items / "item_text.jsonl").write_text('{"item": 1, "title": "Nine"}\n')
    header, near = table(run(mm, *cold, "--similar_items", "ninth,B0003", "--topk", str(N_ITEMS + 1))[1])
    assert ("ninth", "Nine") in [(row[0], row[2]) for row in near["B0003"]]
    assert len(near["ninth"]) == N_ITEMS + 1
    assert run(mm, *cold, "--export_embeddings", str(tmp_path / "v.npz"), output=None)[0] == 0
    with np.load(tmp_path / "v.npz") as arrays:
        assert arrays["item_ids"].tolist()[-2:] == ["fourth", "ninth"] and arrays["item"].shape == (
            N_ITEMS + 2,
            16,
        )


@torch.no_grad()
def test_cold_vectors(mm, new_items):
    """Attention over the nearest items, mean direction and length of their ID vectors, fusion: put together by hand."""
    model, dataset, config = recommend.load_run(mm / "best.pt", {"cuda": 0})
    vectors, ids, titles = recommend.cold_items(new_items, model, 4)
    _, z_id, _ = model.represent()
    z, near = {}, []
    for m in ("text", "image"):
        f = dataset.features[m].double().numpy()
        new = np.load(new_items / f"{m}_feat.npy").astype(float)
        cosine = new @ f.T / np.outer(np.linalg.norm(new, axis=1), np.linalg.norm(f, axis=1))
        order = np.argsort(-cosine)[:, :4]
        assert order[:, 0].tolist() == [4, 9]
        graph = recommend.extend_graph(model.graphs[m], torch.from_numpy(order.copy()))
        z[m] = model.branches[m](graph, torch.cat([dataset.features[m], torch.from_numpy(new).float()]))[-2:]
        near.append(order)
    near = z_id.numpy()[np.concatenate(near, 1)]
    mean = near.mean(1)
    id_part = (
        mean / np.linalg.norm(mean, axis=1, keepdims=True) * np.linalg.norm(near, axis=2).mean(1)[:, None]
    )
    expected = model.fusion(torch.from_numpy(id_part), z)
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-6)
    assert ids == ["fourth", "ninth"] and titles is None


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--topk", "0"], "--topk 0"),
        (["--topk", "31"], "only 30 items"),
        (["--topk", "x"], "--topk"),
        (["--users", "nobody,1"], "'nobody'"),
        (["--users", ","], "names no id"),
        (["--similar_items", "99"], "'99'"),
        (["--exclude", "trian"], "--exclude trian"),
        (["--users", "1", "--similar_items", "1"], "not allowed with"),
        (["--format", "xml"], "--format"),
        (["--new_users", "absent.tsv"], "absent.tsv"),
        (["--output", "no/such/folder/x"], "no/such/folder/x"),
        (["--output", "."], "cannot be written"),
        (["--cold_items", "."], "lgn_mm"),
        (["--cuda", "3"], "--cuda"),
        (["--eval_chunk", "-1"], "--eval_chunk"),
        (["--export_embeddings", "a.npz", "--output", "b"], "--output is for lists"),
    ],
)
def test_bad_flags(lgn, flags, word, capsys):
    code = recommend.main(["--checkpoint", str(lgn), *flags])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(said) == 1 and word in said[0]


def test_a_long_list_of_ids_is_no_file_name(lgn, run):
    assert list(table(run(lgn, "--users", "1," * 3000 + "2")[1])[1]) == ["1", "2"]


def test_parquet_needs_a_file(lgn, run):
    assert "needs --output" in run(lgn, "--format", "parquet", output=None)[2]


@pytest.mark.parametrize(
    "name, text, word",
    [
        ("user_ids.tsv", "0\ta\n", "names 1 users for 40"),
        ("user_ids.tsv", "1\ta\n", "line 1"),
        ("user_ids.tsv", "0 a\n", "line 1"),
        ("user_ids.tsv", "0\ta\tb\n", "line 1"),
        ("user_ids.tsv", "0\ta\n1\ta\n", "line 2"),
        ("item_ids.tsv", b"0\t\xff\n", "UTF-8"),
        ("item_ids.tsv", "0\t\n", "line 1"),
        ("item_text.jsonl", "{}\n", "line 1"),
        ("item_text.jsonl", '{"item": 0}\n{"item": true}\n', "line 2"),
        ("item_text.jsonl", '{"item": 30, "title": ""}\n', "line 1"),
        ("item_text.jsonl", '{"item": 1, "title": 5}\n', "line 1"),
        ("item_text.jsonl", "[" * 10**5, "line 1"),
        ("item_text.jsonl", "[]", "line 1"),
    ],
)
def test_bad_dataset_files(lgn, small_dataset, run, name, text, word):
    (small_dataset / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, said = run(lgn)
    assert code == 2 and out is None and len(said.splitlines()) == 1 and name in said and word in said


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "holds no user"),
        ("bob\n", "line 1"),
        ("bob 1 2\n\nann 77\n", "line 3: item '77'"),
        ("bob 1\nbob 2\n", "line 2: user 'bob' stands twice"),
    ],
)
def test_bad_histories(lgn, run, tmp_path, text, word):
    (tmp_path / "new").write_text(text)
    code, out, said = run(lgn, "--new_users", str(tmp_path / "new"))
    assert code == 2 and out is None and len(said.splitlines()) == 1 and word in said


def test_bad_cold_items(mm, new_items, run):
    flags = [mm, "--cold_items", str(new_items)]
    good = np.load(new_items / "image_feat.npy")
    for image, word in (
        (good[:, :-1], "it must have 20 dimensions"),
        (good[:1], "has 1 rows for 2 items"),
        (good * [[1], [0]], "row 1: is all zeros"),
        (good * np.nan, "row 0: holds NaN"),
        (good.astype(np.int64), "has type int64"),
    ):
        np.save(new_items / "image_feat.npy", image)
        code, _, said = run(*flags)
        assert code == 2 and len(said.splitlines()) == 1 and "image_feat.npy" in said and word in said
    (new_items / "image_feat.npy").unlink()
    assert run(*flags)[0] == 2
    np.save(new_items / "image_feat.npy", good)
    (new_items / "item_ids.tsv").unlink()
    code, _, said = run(*flags)
    assert code == 2 and "is in the data already" in said


def test_bad_checkpoints(lgn, run, tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for path, word in (
        (tmp_path / "absent", "cannot be read"),
        (tmp_path / "junk.pt", "damaged"),
        (tmp_path, "neither best.pt nor last.pt"),
    ):
        code, _, said = run(path)
        assert code == 2 and len(said.splitlines()) == 1 and word in said


def test_another_dataset(lgn, small_dataset, run):
    with open(small_dataset / "train.txt", "a") as file:
        file.write(f"{N_USERS} 1\n")
    code, _, said = run(lgn)
    assert code == 2 and "does not fit" in said and len(said.splitlines()) == 1


def test_nothing_is_left_of_an_output_that_fails(lgn, run, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("before")

    def fails(lists, file):
        file.write("half")
        raise OSError("disk full")

    monkeypatch.setitem(recommend.WRITERS, "tsv", fails)
    code, text, said = run(lgn)
    assert code == 1 and text == "before" and said.splitlines()[-1] == "error: disk full"
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))
