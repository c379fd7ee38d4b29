"""data/check.py: verdicts on correct and reordered features, real and synthetic; all faults are listed."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import random_pairs, write_inter, write_txt

from data import check, row_order, synthetic
from data.graphs import nearest_neighbours

ROOT = Path(__file__).resolve().parents[1]


def run(capsys, folder, *flags):
    """Check a dataset folder in process. Returns (exit code, stdout)."""
    code = check.main([folder.name, "--data_root", str(folder.parent), *map(str, flags)])
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def wrong_order(kind, n, seed=0):
    """Permutation [n] of row numbers that puts features in a wrong order of some kind."""
    order, rng = np.arange(n), np.random.default_rng(seed)
    if kind == "permuted":
        return rng.permutation(n)
    if kind == "shifted":
        return np.roll(order, 1)
    if kind == "one inserted":
        order[n // 3 + 1 :] = np.arange(n // 3, n - 1)
    if kind == "second half permuted":
        order[n // 2 :] = rng.permutation(order[n // 2 :])
    return order


WRONG = {
    "permuted": "share no more than chance",
    "shifted": "features of id r -1",
    "one inserted": "features of id r -1",
    "second half permuted": "no better than chance, while the others fit",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A synthetic dataset folder of 2,000 users and 1,000 items."""
    root = tmp_path_factory.mktemp("data")
    assert synthetic.main(["made", "--data_root", str(root), "--users", "2000", "--items", "1000"]) == 0
    return root / "made"


# ---------------------------------------------------------------- row order of the features


def test_synthetic_passes(made, capsys):
    code, out = run(capsys, made)
    assert code == 0 and out.splitlines()[-1] == "verdict: pass" and "problem" not in out


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("modality", ["text", "image"])
def test_wrong_orders_fail(kind, modality, made, tmp_path, capsys):
    features = np.load(made / f"{modality}_feat.npy")
    np.save(tmp_path / "f.npy", features[wrong_order(kind, len(features))])
    code, out = run(capsys, made, f"--{modality}_feat", tmp_path / "f.npy")
    assert code == 1 and WRONG[kind] in out and out.splitlines()[-1] == "verdict: fail, 1 problem"


@pytest.mark.parametrize("modality", ["text", "image"])
def test_baby_passes_and_permuted_fails(modality, baby, tmp_path, capsys):
    path = baby / f"{modality}_feat_recon_d128.npy"
    code, out = run(capsys, baby, f"--{modality}_feat", path)
    assert code == 0 and "19,445 users, 7,050 items, 160,792 distinct" in out
    assert out.endswith("verdict: pass\n")
    np.save(tmp_path / "f.npy", np.load(path)[wrong_order("permuted", 7050)])
    code, out = run(capsys, baby, f"--{modality}_feat", tmp_path / "f.npy")
    assert code == 1 and WRONG["permuted"] in out


@pytest.mark.parametrize(
    "name, modality, kind",
    [
        ("text_feat.npy", "text", None),
        ("text_feat.npy", "text", "permuted"),
        ("audio_feat_vggish.npy", "audio", None),
        ("audio_feat_vggish.npy", "audio", "one inserted"),
        ("audio_feat_vggish.npy", "audio", "second half permuted"),
    ],
)
def test_lastfm(name, modality, kind, baby, tmp_path, capsys):
    folder = baby.parent / "lastfm"
    features = np.load(folder / name)
    np.save(tmp_path / "f.npy", features[wrong_order(kind, len(features))])
    code, out = run(capsys, folder, f"--{modality}_feat", tmp_path / "f.npy")
    assert (code, "verdict: pass" in out) == ((1, False) if kind else (0, True))
    assert WRONG.get(kind, "share users or items") in out


def test_user_features(made, tmp_path, capsys):
    """Users whose features are the mean of their items' fit their ids; permuted ones do not."""
    features, users = np.load(made / "text_feat.npy"), []
    for line in (made / "train.txt").read_text().splitlines():
        users.append(features[list(map(int, line.split()[1:]))].mean(axis=0))
    for order, code in ((np.arange(2000), 0), (wrong_order("permuted", 2000), 1)):
        np.save(tmp_path / "u.npy", np.array(users)[order])
        assert run(capsys, made, "--user_text_feat", tmp_path / "u.npy")[0] == code


def item_histories(folder):
    """Sparse 0/1 [items, users] of a synthetic folder, over all splits."""
    pairs = [
        (int(item), user)
        for split in ("train", "valid", "test")
        for user, line in enumerate((folder / f"{split}.txt").read_text().splitlines())
        for item in line.split()[1:]
    ]
    return sp.csr_matrix((np.ones(len(pairs), np.float32), np.array(pairs).T))


def test_lift_equals_a_dense_computation(made):
    """The lift is the mean cosine of histories over neighbours divided by that over all pairs of items.

    The latter is the exact expectation over random orders. Items without interactions are left out.
    """
    history = item_histories(made)
    active = np.diff(history.indptr) > 0
    history, features = history[active], np.load(made / "text_feat.npy")[active]
    dense = history.toarray()
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    cosine, near = dense @ dense.T, nearest_neighbours(features, 10, torch.device("cpu"))
    observed = np.take_along_axis(cosine, near, axis=1).mean()
    expected = cosine[~np.eye(len(cosine), dtype=bool)].mean()
    whole = row_order.measure_fit(features, np.ones(len(features), bool), history, 0)[0]
    # Standard error of the mean under the null, relative to that mean.
    standard_error = whole.error / np.sqrt(row_order.N_PERMUTATIONS)
    assert abs(whole.lift / (observed / expected) - 1) < 4 * standard_error


def test_random_orders_do_not_pass(made):
    """Over 20 random orders, z is about standard normal and none passes."""
    features, history = np.load(made / "image_feat.npy")[:300], item_histories(made)[:300]
    z = []
    for seed in range(20):
        fits = row_order.measure_fit(
            features[wrong_order("permuted", 300, seed)], np.ones(300, bool), history, seed
        )
        assert row_order.judge(fits)[0] != "pass"
        z.append(fits[0].z)
    assert abs(np.mean(z)) < 0.8 and 0.6 < np.std(z) < 1.6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("users, items", [(150, 120), (40, 60), (12, 30)])
def test_small_correct_data_do_not_fail(users, items, seed, tmp_path, capsys):
    sizes = f"--users {users} --items {items} --seed {seed} --interactions-per-user 4".split()
    assert synthetic.main(["s", "--data_root", str(tmp_path), *sizes]) == 0
    capsys.readouterr()
    code, out = run(capsys, tmp_path / "s")
    assert code == 0
    if items < row_order.MIN_ROWS:
        assert "verdict: unknown" in out and "fewer than 100 rows" in out


def test_histories_without_information_are_unknown():
    """If no items share users, or all share all, the verdict is unknown and not fail."""
    features = np.random.default_rng(0).standard_normal((200, 8))
    for history in (
        sp.eye(200, format="csr", dtype=np.float32),
        sp.csr_matrix(np.ones((200, 3), np.float32)),
    ):
        assert (
            row_order.judge(row_order.measure_fit(features, np.ones(200, bool), history, 0))[0] == "unknown"
        )


def test_filled_rows_are_left_out_of_the_test(made, tmp_path, capsys):
    """With half the rows replaced by the mean, a note says so and the other rows still pass."""
    features = np.load(made / "text_feat.npy")
    features[::2] = features.mean(axis=0)
    np.save(tmp_path / "f.npy", features)
    code, out = run(capsys, made, "--text_feat", tmp_path / "f.npy")
    assert code == 0 and "500 rows are equal" in out and "verdict: pass" in out


def test_sampled_rows_suffice(made, tmp_path, capsys, monkeypatch):
    """With only a sample of the rows, correct features do not fail and permuted ones do not pass."""
    monkeypatch.setattr(row_order, "MAX_QUERIES", 300)
    monkeypatch.setattr(row_order, "MAX_MULTIPLICATIONS", 300 * 600 * 96)
    features = np.load(made / "text_feat.npy")
    assert run(capsys, made, "--text_feat", made / "text_feat.npy")[0] == 0
    np.save(tmp_path / "f.npy", features[wrong_order("permuted", len(features))])
    assert "verdict: pass" not in run(capsys, made, "--text_feat", tmp_path / "f.npy")[1]


# ---------------------------------------------------------------- faults of the files


def test_all_faults_are_listed(tmp_path, capsys):
    folder = tmp_path / "bad"
    write_txt(folder, **random_pairs(0, 40, 30, 6))
    train = (folder / "train.txt").read_text().splitlines()
    valid = (folder / "valid.txt").read_text().splitlines()
    train[4] += " x7"  # line 5 cannot be read
    train[9] += " 12345678901"  # nor line 10
    train[0] += " " + train[0].split()[1]  # a repeated pair
    train[1] += " " + valid[1].split()[1]  # a pair of valid
    (folder / "train.txt").write_text("\n".join(train) + "\n")
    text = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    text[3] = np.nan
    text[7] = 0
    np.save(folder / "text_feat.npy", text)
    np.save(folder / "image_feat.npy", text[:20, :2] + 1)
    (folder / "audio_feat.npy").write_bytes(b"nothing")
    np.save(folder / "user_text_feat.npy", text[:0])
    (folder / "item_ids.tsv").write_text("0\ta\n")
    code, out = run(capsys, folder)
    assert code == 1
    for message in (
        "train.txt, line 5: 'x7' is not an id",
        "2 lines cannot be read: 5, 10",
        "1 pairs of valid are also in train",
        "train: 1 repeated pairs",
        "1 rows hold NaN",
        "the first is row 3",
        "1 rows are zero",
        "has 20 rows for 30 items",
        "audio_feat.npy: is not a plain .npy",
        "user_text_feat.npy: has no rows",
        "item_ids.tsv: names 1 items for 30 in the data",
        "verdict: fail",
        "cold users",
    ):
        assert message in out, message
    assert out.count("\nproblem: ") == int(out.split("fail, ")[1].split()[0]) == 9


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("item_ids.tsv", "".join(f"{row}\n" for row in range(30)), "line 1: must be '0', a tab, and"),
        ("item_ids.tsv", "".join(f"{row}\ta\n" for row in range(30)), "line 2: the id 'a' is on line 1"),
        ("user_ids.tsv", b"0\t\xff\n", "user_ids.tsv: cannot be read (not UTF-8)"),
        ("item_text.jsonl", '{"item": 30, "title": "a"}\n', "line 1: must be"),
        ("item_text.jsonl", '{"item": 3, "title": "a"}\n' * 2, "line 2: 'item' 3 is already on line 1"),
    ],
)
def test_id_maps_and_texts_that_their_readers_refuse(name, text, message, small_dataset, tmp_path, capsys):
    folder = shutil.copytree(small_dataset, tmp_path / "copy")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out = run(capsys, folder)
    assert code == 1 and f"problem: {folder / name}" in out and message in out and out.endswith("1 problem\n")


def test_texts_of_some_items_in_any_order_are_no_problem(small_dataset, tmp_path, capsys):
    folder = shutil.copytree(small_dataset, tmp_path / "copy")
    path = folder / "item_text.jsonl"
    path.write_text('{"item": 7, "title": "a"}\n{"item": 2, "title": ""}\n{"item": 0, "description": "b"}\n')
    code, out = run(capsys, folder)
    assert code == 0 and f"note: {path}: 28 of 30 items have no text" in out


def test_faults_of_an_inter_table(tmp_path, capsys):
    folder = tmp_path / "bad"
    write_inter(folder, **random_pairs(0, 40, 30, 6), ratings=None)
    path = folder / "bad.inter"
    lines = path.read_text().splitlines()
    lines[3], lines[8], lines[11] = "0\tx\t0", "1\t2\t3", "1\t2"
    path.write_text("\n".join(lines) + "\n")
    code, out = run(capsys, folder)
    assert code == 1 and "line 4: itemID 'x'" in out and "40 users" in out
    assert "3 lines cannot be read: 4, 9, 12" in out


def test_missing_and_empty_files(tmp_path, capsys):
    folder = tmp_path / "bad"
    write_txt(folder, **random_pairs(0, 40, 30, 6))
    (folder / "valid.txt").unlink()
    (folder / "test.txt").write_text("")
    code, out = run(capsys, folder)
    assert code == 1 and "valid.txt: cannot be read" in out and "the test split is empty" in out


def test_small_correct_folder_is_unknown(small_dataset, capsys):
    """Noise features in a folder too small for the test: unknown, without a problem."""
    code, out = run(capsys, small_dataset)
    assert code == 0 and "verdict: unknown" in out and "problem" not in out
    assert "test: 1 cold users" in out and "1 of 30 items have no interaction at all" in out


NO_FEATURES = "no feature file: only --model mf, lgn, itemknn and ease can be trained on this folder"


@pytest.mark.parametrize("with_user_features", [False, True])
def test_no_item_features_is_a_warning_or_a_failure(with_user_features, tmp_path, capsys):
    """User features do not help: the models that learn from features need those of items."""
    folder = tmp_path / "plain"
    write_txt(folder, **random_pairs(0, 40, 30, 6))
    if with_user_features:
        np.save(folder / "user_text_feat.npy", np.random.default_rng(0).standard_normal((40, 4)))
    code, out = run(capsys, folder)
    verdict = "unknown" if with_user_features else "pass"
    assert code == 0 and out.splitlines()[-2:] == [
        f"warning: {NO_FEATURES}",
        f"verdict: {verdict}, 1 warning",
    ]
    code, out = run(capsys, folder, "--require_features", 1)
    assert code == 1 and f"problem: {NO_FEATURES}, but --require_features 1" in out
    assert out.endswith("verdict: fail, 1 problem\n")


def test_required_features_that_exist_change_nothing(made, capsys):
    assert run(capsys, made, "--require_features", 1) == run(capsys, made)


def test_every_section_is_printed_as_soon_as_it_is_known(made, monkeypatch):
    """While the row order is tested, the counts and the statistics of that file have already been flushed."""

    class Log(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    log, seen = Log(), []
    measure_fit = check.measure_fit

    def measure(*args):
        seen.append(log.flushed)
        return measure_fit(*args)

    monkeypatch.setattr(sys, "stdout", log)
    monkeypatch.setattr(check, "measure_fit", measure)
    assert check.main(["made", "--data_root", str(made.parent)]) == 0
    assert "2,000 users, 1,000 items" in seen[0] and "\ntext: " in seen[0] and "\nimage: " not in seen[0]
    assert "\ntext and ids: lift" in seen[1] and "\nimage: " in seen[1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["nothing"], "no such dataset folder"),
        ([], "NAME"),
        (["x", "--nonsense"], "--nonsense"),
        (["empty"], "neither train.txt nor a .inter"),
        (["empty", "--seed", "-1"], "--seed -1: must be at least 0"),
    ],
)
def test_bad_usage_ends_in_one_line(flags, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert check.main([*flags, "--data_root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ") and message in err


def test_as_a_command(made):
    def tool(*flags):
        command = [sys.executable, "-m", "data.check", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = tool("made", "--data_root", str(made.parent))
    assert done.returncode == 0 and done.stdout.endswith("verdict: pass\n"), done.stderr
    assert "Exit code: 0 pass or unknown, 1 fail, 2 bad usage" in tool("--help").stdout
