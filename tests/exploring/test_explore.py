"""explore.py: the data of the page are the lists of recommend.py; whatever a title contains, it is text."""

import base64
import html.parser
import io
import json
import re
import sys
import tomllib
import types
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_txt
from pretend_cuda import CUDA, pretend_cuda
from recommend_helpers import N_ITEMS, N_USERS, load, train, write_names

import explore
import recommend
from data.graphs import nearest_neighbours
from exploring.items import agreement, item_map, near_by_cosine, near_by_users, on_grid
from exploring.packing import pack, pack_rows
from exploring.payload import UNKNOWN
from exploring.runs import run_names
from outgoing import json_in_html
from recommending.explanations import make_explainer

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
OWN_MODEL = """from models.lightgcn import LightGCN


class MyModel(LightGCN):
    pass
"""
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'`&amp;<!--",
    "\u2028{{title}}",
]


class Page(html.parser.HTMLParser):
    """The tags of a page, and the text of its data element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self.inside = [], "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.data += data if self.inside else ""


def unpack(packed):
    """The numbers of a packed array, by the documentation of packing."""
    data = base64.b64decode(packed["data"])
    if packed["type"] == "bf16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}[packed["type"]])


def unpack_rows(packed):
    start, values = unpack(packed["start"]), unpack(packed["values"])
    return [values[a:b].tolist() for a, b in pairwise(start)]


@pytest.fixture
def page(tmp_path, capsys):
    """Function that runs explore.py on run folders: (text of the page, its data)."""

    def page(folder, *flags):
        path = tmp_path / "page.html"
        code = explore.main(["--checkpoint", str(folder), "--cuda", "0", "--output", str(path), *flags])
        assert code == 0, capsys.readouterr().err
        text = path.read_text("utf-8")
        return text, json.loads(Page(text).data)

    return page


def lists_of(run, k):
    """[[(item, parts, [(reason, adds), ...]), ...] for each user] of a run in the data of a page."""
    names, none = run["partNames"], N_ITEMS
    items, because, adds = (unpack(run[key]) for key in ("items", "because", "adds"))
    parts = unpack(run["parts"]).reshape(-1, k, len(names))
    items, because, adds = items.reshape(-1, k), because.reshape(-1, k, 3), adds.reshape(-1, k, 3)
    return [
        [
            (
                int(items[user, n]),
                dict(zip(names, parts[user, n].tolist())),
                [(int(j), a) for j, a in zip(because[user, n], adds[user, n].tolist()) if j != none],
            )
            for n in range(k)
            if items[user, n] != none
        ]
        for user in range(len(items))
    ]


def explained(folder, tmp_path, k):
    """The records of recommend.py --explain on internal ids."""
    path = tmp_path / "lists.jsonl"
    flags = ["--explain", "--format", "jsonl", "--topk", str(k), "--cuda", "0", "--output", str(path)]
    assert recommend.main(["--checkpoint", str(folder), *flags]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- the data


@pytest.mark.parametrize(
    "model, changes", [("lgn_mm", {"neighbour_weight": 2.0}), ("itemknn", {}), ("mf", {})]
)
def test_the_lists_are_those_of_recommend_and_parts_sum_to_the_scores(
    small_dataset, tmp_path, page, model, changes
):
    folder = train(small_dataset, tmp_path / "runs", model, **changes)
    k = N_ITEMS  # longer than the lists: the rest is "none"
    lists = lists_of(page(folder, "--topk", str(k))[1]["runs"][0], k)
    records = explained(folder, tmp_path, k)
    assert len(lists) == len(records) == N_USERS
    for shown, record in zip(lists, records, strict=True):
        assert [item for item, *_ in shown] == [int(item) for item in record["item"]]
        for n, (_, parts, because) in enumerate(shown):
            assert sum(parts.values()) == pytest.approx(record["score"][n], abs=1e-5)
            assert parts == pytest.approx({m: v[n] for m, v in record["parts"].items()}, abs=1e-5)
            reasons = record["because"][n]
            assert [item for item, _ in because] == [int(reason["item"]) for reason in reasons]
            assert [a for _, a in because] == pytest.approx([r["adds"] for r in reasons], rel=5e-3, abs=1e-6)


def test_users_histories_and_held_out_items(recgoat, small_dataset, page):
    write_names(small_dataset)
    _, data = page(recgoat)
    users, interactions = data["users"], load(recgoat)[1].interactions
    assert users["ids"] == [f"user-{u}é" for u in range(N_USERS)]
    for split in ("train", "valid", "test"):
        expected = [[] for _ in range(N_USERS)]
        for user, item in getattr(interactions, split).tolist():
            expected[user].append(item)
        assert unpack_rows(users[split]) == expected
    count = np.bincount(interactions.train[:, 1], minlength=N_ITEMS)
    assert unpack(data["items"]["count"]).tolist() == count.tolist()
    assert data["items"]["titles"][3] == "Title of 3" and data["items"]["ids"][3] == "B0003"


def test_of_many_users_an_even_sample_is_shown(lgn, page, monkeypatch):
    monkeypatch.setattr("exploring.payload.MAX_USERS", 4)
    _, data = page(lgn)
    assert data["users"]["ids"] == ["0", "13", "26", "39"]
    every = page(lgn, "--topk", "5")[1]
    assert every["users"]["ids"] == data["users"]["ids"] and len(lists_of(every["runs"][0], 5)) == 4


def test_neighbours_by_each_similarity(recgoat, page):
    near = page(recgoat)[1]["items"]["near"]
    assert list(near) == ["text", "image", "id", "together"]
    features = load(recgoat)[1].features["text"].double().numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(N_ITEMS)
    expected = np.argsort(-cosine, 1)[:, :8]
    assert unpack(near["text"]["items"]).reshape(-1, 8).tolist() == expected.tolist()
    values = np.take_along_axis(cosine, expected, 1).ravel()
    assert unpack(near["text"]["values"]) == pytest.approx(values, abs=5e-3)


def test_items_bought_together_are_counted_by_users(lgn):
    model, dataset, _ = load(lgn)
    history = make_explainer(model, dataset).history
    assert near_by_users(history[:, :3], 8).items.shape == (3, 2)
    found = near_by_users(history, 4)
    owners = [set() for _ in range(N_ITEMS)]
    for user, item in dataset.interactions.train.tolist():
        owners[item].add(user)
    for i in range(N_ITEMS):
        both = {j: len(owners[i] & owners[j]) for j in range(N_ITEMS) if j != i and owners[i] & owners[j]}
        best = sorted(both, key=lambda j: (-both[j], len(owners[j]), j))[:4]
        assert found.items[i].tolist() == best + [i] * (4 - len(best))
        assert found.values[i].tolist() == [both[j] for j in best] + [0] * (4 - len(best))


def test_many_common_buyers_are_counted_exactly(tmp_path, page):
    """257 has more digits than a bf16 number."""
    every = [(user, item) for user in range(257) for item in (0, 1)]
    folder = tmp_path / "data" / "many"
    write_txt(
        folder, train=[*every, *((user, 2) for user in range(9)), (256, 3)], valid=[(0, 3)], test=[(1, 3)]
    )
    near = page(train(folder, tmp_path / "runs", "itemknn", topks="2"), "--topk", "2")[1]["items"]["near"]
    assert unpack(near["together"]["values"]).tolist() == [257, 9, 1, 257, 9, 1, 9, 9, 0, 1, 1, 0]


def test_neighbours_by_a_modality_are_computed_once(recgoat, page, monkeypatch):
    searched = []

    def search(vectors, k, device):
        searched.append((vectors.shape[1], k))
        return nearest_neighbours(vectors, k, device)

    monkeypatch.setattr("exploring.items.nearest_neighbours", search)
    page(recgoat)
    assert searched[:2] == [(12, 10), (20, 10)] and len(searched) == 3  # the third are ID vectors


def test_the_agreement_of_items_without_features_is_unknown(small_dataset, tmp_path, page):
    for m, item in (("text", 3), ("image", 4)):
        features = np.load(small_dataset / f"{m}_feat.npy")
        features[item] = 0
        np.save(small_dataset / f"{m}_feat.npy", features)
    packed = page(train(small_dataset, tmp_path / "runs", "mf"))[1]["items"]["agreement"]
    assert np.flatnonzero(unpack(packed) == UNKNOWN).tolist() == [3, 4]


def test_a_run_without_vectors_or_features_has_a_page(small_dataset, tmp_path, page):
    folder = train(small_dataset, tmp_path / "runs", "itemknn")
    for name in ("text_feat.npy", "image_feat.npy"):
        (small_dataset / name).unlink()
    items = page(folder)[1]["items"]
    assert items["places"] is None and items["agreement"] is None and list(items["near"]) == ["together"]


# ---------------------------------------------------------------- numbers


def test_modalities_agree_fully_with_themselves_and_not_with_noise():
    x, y = np.random.default_rng(0).standard_normal((2, 400, 16)).astype(np.float32)
    near_x, near_y = (near_by_cosine(vectors, 10, CPU) for vectors in (x, y))
    assert agreement(near_x, near_x, 3 * x, CPU).min() > 0.99
    assert agreement(near_x, near_y, y, CPU).mean() < 0.2


@pytest.mark.parametrize("n", [6, 11, 12, 20])
def test_agreement_is_unknown_where_all_other_items_are_neighbours(n):
    x = np.random.default_rng(0).standard_normal((n, 8)).astype(np.float32)
    near = near_by_cosine(x, 10, CPU)
    found = agreement(near, near, x, CPU)
    assert np.isnan(found).all() if n <= 11 else found == pytest.approx(1, abs=1e-3)


def test_agreement_of_few_items_with_features_among_many_is_unknown():
    x = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    x[9:] = 0
    near = near_by_cosine(x, 10, CPU)
    assert np.isnan(agreement(near, near, x, CPU)).all()


def test_agreement_is_about_items_with_features_of_both_modalities():
    """Against a loop; 40 items lack the first, 60 others the second."""
    x, y = np.random.default_rng(3).standard_normal((2, 200, 16)).astype(np.float32)
    y += x
    x[:40], y[40:100] = 0, 0
    near_x, near_y = (near_by_cosine(vectors, 10, CPU) for vectors in (x, y))
    found = agreement(near_x, near_y, y, CPU)
    assert np.isnan(found[:100]).all()
    unit = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
    for i in range(100, 200):
        others, best = ([j for j in near.items[i] if y[j].any()] for near in (near_x, near_y))
        means = [np.mean([unit[i] @ unit[j] for j in items]) for items in (others, best)]
        chance = np.mean([unit[i] @ unit[j] for j in range(200) if y[j].any() and j != i])
        expected = np.clip((means[0] - chance) / (means[1] - chance), 0, 1)
        assert found[i] == pytest.approx(expected, abs=1e-4)


def test_neighbours_are_found_on_a_gpu():
    vectors = np.random.default_rng(2).standard_normal((300, 8)).astype(np.float32)
    expected = near_by_cosine(vectors, 4, CPU)
    with pretend_cuda():
        found = near_by_cosine(vectors, 4, CUDA)
        share = agreement(found, found, vectors, CUDA)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    np.testing.assert_allclose(share, agreement(expected, expected, vectors, CPU), atol=1e-5)


def test_the_map_has_the_plane_of_largest_variance():
    rng = np.random.default_rng(1)
    plane = rng.standard_normal((200, 2)) * [5, 2]
    vectors = np.concatenate([plane, 0.01 * rng.standard_normal((200, 6))], 1) + 7
    places = item_map(vectors, "pca")
    assert abs(np.corrcoef(places[:, 0], plane[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(places[:, 1], plane[:, 1])[0, 1]) > 0.97
    grid = on_grid(places)
    assert grid.min() == 0 and grid.max() == 65535 and (grid == grid.round()).all()
    assert item_map(vectors[:, :1], "pca").shape == (200, 2)


def test_umap_takes_the_place_of_pca_where_it_is_installed(monkeypatch):
    class Umap:
        def __init__(self, random_state):
            assert random_state == 0

        def fit_transform(self, vectors):
            return vectors[:, 2:4]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    vectors = np.arange(12.0).reshape(3, 4)
    assert item_map(vectors, "umap").tolist() == vectors[:, 2:].tolist()


def test_packed_numbers_are_as_exact_as_their_type():
    values = np.float32([0, 1, -2.5, 1e-6, 77.29277, 3e8])
    assert unpack(pack(values, "f32")).tolist() == values.tolist()
    assert unpack(pack(values, "bf16")) == pytest.approx(values, rel=2**-8)
    assert unpack_rows(pack_rows([[1, 300], [], [2]], 300)) == [[1, 300], [], [2]]


def test_rows_without_direction_are_near_to_nothing():
    vectors = np.float32([[1, 0], [1, 0.1], [0, 0]])
    near = near_by_cosine(vectors, 2, CPU)
    assert near.items[2].tolist() == [2, 2] and 2 not in near.items[:2, 0]


# ---------------------------------------------------------------- the page


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_html_is_data_whatever_it_contains(text):
    element = f'<script type="application/json" id="data">{json_in_html([text])}</script>'
    page = Page(element)
    assert [tag for tag, _ in page.tags] == ["script"] and json.loads(page.data) == [text]


def test_hostile_titles_and_ids_add_no_tag(recgoat, small_dataset, page):
    plain = [tag for tag, _ in Page(page(recgoat)[0]).tags]
    write_names(small_dataset)
    titles = [{"item": i, "title": HOSTILE[i % len(HOSTILE)]} for i in range(N_ITEMS)]
    (small_dataset / "item_text.jsonl").write_text("".join(json.dumps(t) + "\n" for t in titles))
    ids = "".join(f"{u}\t{HOSTILE[0]}{u}\n" for u in range(N_USERS))
    (small_dataset / "user_ids.tsv").write_text(ids)
    text, data = page(recgoat)
    assert [tag for tag, _ in Page(text).tags] == plain and text.count("</script>") == 2
    assert data["items"]["titles"][0] == HOSTILE[0] and data["users"]["ids"][1] == f"{HOSTILE[0]}1"


def test_the_page_refers_to_nothing_outside(recgoat, page):
    text, _ = page(recgoat)
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", text.replace("src: urls", ""))
    assert "default-src 'none'" in text


def test_the_program_never_parses_data_as_html():
    program = (ROOT / "exploring" / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", program)


def test_the_files_of_the_page_are_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (pattern,) = project["tool"]["setuptools"]["package-data"]["exploring"]
    names = {path.name for path in (ROOT / "exploring").glob(pattern)} - {"page.py"}
    assert names == {"page.html", "page.css", "page.js"}


def test_thumbnails_of_a_folder(recgoat, small_dataset, tmp_path, page, capsys):
    image = pytest.importorskip("PIL.Image")
    write_names(small_dataset)
    (tmp_path / "pictures").mkdir()
    image.new("RGBA", (300, 150), (200, 0, 0, 255)).save(tmp_path / "pictures" / "B0002.png")
    (tmp_path / "pictures" / "B0004.png").write_bytes(b"no picture")
    _, data = page(recgoat, "--pictures", str(tmp_path / "pictures"))
    assert "1 of 30 items have a picture, 1 pictures are broken" in capsys.readouterr().err
    start, files = unpack(data["pictures"]["start"]), base64.b64decode(data["pictures"]["data"])
    assert [i for i in range(N_ITEMS) if start[i] < start[i + 1]] == [2]
    assert image.open(io.BytesIO(files[start[2] : start[3]])).size == (72, 36)


# ---------------------------------------------------------------- refusals


@pytest.fixture
def no_payload(monkeypatch):
    """What takes long must not be reached."""

    def payload(*args):
        raise AssertionError("the lists were made before the pictures were looked for")

    monkeypatch.setattr("exploring.payload.payload", payload)


def assert_refused(argv, capsys, *messages):
    """Assert exit code 2 and one line on stderr with these messages."""
    capsys.readouterr()
    code, err = explore.main([*map(str, argv), "--cuda", "0"]), capsys.readouterr().err
    assert code == 2 and err.count("error:") == 1 and all(message in err for message in messages), err
    return err


def test_a_folder_without_pictures_of_the_items_is_refused_first(recgoat, tmp_path, capsys, no_payload):
    pytest.importorskip("PIL.Image")
    (tmp_path / "nothing").mkdir()
    argv = ["--checkpoint", recgoat, "--pictures", tmp_path / "nothing"]
    err = assert_refused(argv, capsys, "holds no picture of the 30 items", "or leave --pictures out")
    assert "--ids" not in err


def test_pictures_without_pillow_are_refused_before_a_run_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "best.pt").write_bytes(b"not read")
    argv = ["--checkpoint", tmp_path, "--pictures", tmp_path]
    assert_refused(argv, capsys, "--pictures needs the package pillow: install it with pip install")


def test_a_class_of_the_users_own_beside_a_built_in_model(small_dataset, tmp_path, page, capsys):
    (tmp_path / "my_model.py").write_text(OWN_MODEL)
    model = f"{tmp_path}/my_model.py:MyModel"
    own = train(small_dataset, tmp_path / "own", model)
    lgn = train(small_dataset, tmp_path / "lgn", "lgn")
    for first, second in ((own, lgn), (lgn, own)):
        data = page(first, "--compare", str(second), "--model", model)[1]
        assert {run["name"] for run in data["runs"]} == {"MyModel", "LightGCN"}
    assert_refused(["--checkpoint", own, "--compare", lgn], capsys, f"add --model {model}")
    assert_refused(["--checkpoint", lgn, "--model", model], capsys, "drop --model")
    assert page(lgn, "--model", "lgn")[1]["runs"][0]["name"] == "LightGCN"


def test_two_classes_of_the_users_own(small_dataset, tmp_path, page, capsys):
    (tmp_path / "my_model.py").write_text(OWN_MODEL)
    (tmp_path / "new_model.py").write_text(OWN_MODEL.replace("MyModel", "NewModel"))
    model, new = f"{tmp_path}/my_model.py:MyModel", f"{tmp_path}/new_model.py:NewModel"
    first, second = train(small_dataset, tmp_path / "a", model), train(small_dataset, tmp_path / "b", new)
    data = page(first, "--compare", str(second), "--model", model, "--compare_model", new)[1]
    assert [run["name"] for run in data["runs"]] == ["MyModel", "NewModel"]
    argv = ["--checkpoint", first, "--compare", second, "--model", model]
    assert_refused(argv, capsys, str(second), f"add --compare_model {new}")
    assert_refused(["--checkpoint", first, "--compare_model", new], capsys, "add --compare")
    # A class of the same name in another file is another class.
    (tmp_path / "copy.py").write_text(OWN_MODEL)
    third = train(small_dataset, tmp_path / "c", f"{tmp_path}/copy.py:MyModel")
    argv = ["--checkpoint", first, "--compare", third, "--model", model]
    assert_refused(argv, capsys, f"add --compare_model {tmp_path}/copy.py:MyModel")


def test_what_cannot_be_shown_is_refused(recgoat, small_dataset, tmp_path, capsys):
    other = small_dataset.with_name("other")
    other.mkdir()
    for path in small_dataset.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    lines = (other / "train.txt").read_text().splitlines(keepends=True)
    (other / "train.txt").write_text("".join(lines[1:]))
    with torch.enable_grad():
        second = train(other, tmp_path / "second", "mf")
    cases = {
        "--topk 31: there are only": ["--topk", "31"],
        "--topk 0: must be": ["--topk", "0"],
        "different interactions": ["--compare", str(second)],
        "no such folder": ["--pictures", str(tmp_path / "absent")],
        "name a file in an existing folder": ["--output", str(tmp_path)],
        "needs the package umap-learn": ["--map", "umap"],
        "give some of": ["--exclude", "all"],
    }
    for message, flags in cases.items():
        capsys.readouterr()
        code = explore.main(["--checkpoint", str(recgoat), "--cuda", "0", *flags])
        err = capsys.readouterr().err
        assert code == 2 and message in err and err.count("error:") == 1, err
    assert not (recgoat / "explore.html").exists()


def test_the_page_is_written_into_the_run_folder(lgn, capsys):
    assert explore.main(["--checkpoint", str(lgn), "--cuda", "0"]) == 0
    assert f"{lgn / 'explore.html'}: 40 users, 30 items" in capsys.readouterr().err


def test_runs_of_the_same_name_are_told_apart(small_dataset, tmp_path, page):
    first = train(small_dataset, tmp_path / "a", "mf")
    second = train(small_dataset, tmp_path / "b", "mf", seed=2)
    third = train(small_dataset, tmp_path / "c", "lgn")
    names = [run["name"] for run in page(first, "--compare", str(second))[1]["runs"]]
    assert names == [f"MF ({first.name})", f"MF ({second.name})"]
    assert [run["name"] for run in page(first, "--compare", str(third))[1]["runs"]] == ["MF", "LightGCN"]
    files = page(first / "best.pt", "--compare", str(second / "best.pt"))[1]
    assert [run["name"] for run in files["runs"]] == names


def test_names_of_runs_always_differ(tmp_path):
    run = types.SimpleNamespace(config=types.SimpleNamespace(name="", model="mf"))
    for folder in ("a/run", "b/run"):
        (tmp_path / folder).mkdir(parents=True)
    a, b = (str(tmp_path / folder) for folder in ("a/run", "b/run"))
    assert run_names([run, run], [a, b]) == [f"MF ({a})", f"MF ({b})"]
    last = run_names([run, run], [f"{a}/best.pt", f"{a}/last.pt"])
    assert last == [f"MF ({a}/best.pt)", f"MF ({a}/last.pt)"]
    assert run_names([run, run], [a, a]) == ["MF 1", "MF 2"]
