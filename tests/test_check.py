"""data/check.py: real and synthetic data pass, features in a wrong order fail, too little data is unknown; all faults at once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import random_pairs, write_inter, write_txt

from data import check, synthetic
from data.graphs import nearest_neighbours

ROOT = Path(__file__).resolve().parents[1]


def run(capsys, folder, *flags):
    """Check a dataset folder in process. Returns (exit code, stdout)."""
    code = check.main([folder.name, "--data_root", str(folder.parent), *map(str, flags)])
    out, err = capsys.readouterr()
    assert "error" not in err  # progress bars may be there
    return code, out


def reordered(kind, n, seed=0):
    """Row numbers [n] that put features in a wrong order of some kind."""
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
    "permuted": "no more in common than chance",
    "shifted": "features of id r -1",
    "one inserted": "features of id r -1",
    "second half permuted": "are like chance",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A synthetic dataset folder of 2,000 users and 1,000 items."""
    root = tmp_path_factory.mktemp("data")
    assert synthetic.main(["made", "--data_root", str(root), "--users", "2000", "--items", "1000"]) == 0
    return root / "made"


# ---------------------------------------------------------------- features in another order


def test_synthetic_passes(made, capsys):
    code, out = run(capsys, made)
    assert code == 0 and out.splitlines()[-1] == "verdict: pass" and "problem" not in out


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("modality", ["text", "image"])
def test_wrong_orders_fail(kind, modality, made, tmp_path, capsys):
    features = np.load(made / f"{modality}_feat.npy")
    np.save(tmp_path / "f.npy", features[reordered(kind, len(features))])
    code, out = run(capsys, made, f"--{modality}_feat", tmp_path / "f.npy")
    assert code == 1 and WRONG[kind] in out and out.splitlines()[-1] == "verdict: fail, 1 problems"


@pytest.mark.parametrize("modality", ["text", "image"])
def test_baby_passes_and_permuted_fails(modality, baby, tmp_path, capsys):
    path = baby / f"{modality}_feat_recon_d128.npy"
    code, out = run(capsys, baby, f"--{modality}_feat", path)
    assert (
        code == 0 and "19,445 users, 7,050 items, 160,792 distinct" in out and out.endswith("verdict: pass\n")
    )
    np.save(tmp_path / "f.npy", np.load(path)[reordered("permuted", 7050)])
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
    np.save(tmp_path / "f.npy", features[reordered(kind, len(features))])
    code, out = run(capsys, folder, f"--{modality}_feat", tmp_path / "f.npy")
    assert (code, "verdict: pass" in out) == ((1, False) if kind else (0, True))
    assert WRONG.get(kind, "belong together") in out


def test_user_features(made, tmp_path, capsys):
    """Users whose features are the mean of their items' fit their ids; permuted ones do not."""
    features, users = np.load(made / "text_feat.npy"), []
    for line in (made / "train.txt").read_text().splitlines():
        users.append(features[list(map(int, line.split()[1:]))].mean(axis=0))
    for order, code in ((np.arange(2000), 0), (reordered("permuted", 2000), 1)):
        np.save(tmp_path / "u.npy", np.array(users)[order])
        assert run(capsys, made, "--user_text_feat", tmp_path / "u.npy")[0] == code


def history_of(folder):
    """Sparse [items, users] 0/1 of a synthetic folder."""
    pairs = [
        (int(item), user)
        for split in ("train", "valid", "test")
        for user, line in enumerate((folder / f"{split}.txt").read_text().splitlines())
        for item in line.split()[1:]
    ]
    return sp.csr_matrix((np.ones(len(pairs), np.float32), np.array(pairs).T))


def test_lift_is_that_of_a_naive_sum(made):
    """The whole chain against dense matrices: neighbours among items with interactions, cosine of histories, its mean
    over all pairs (the exact expectation over random orders)."""
    history = history_of(made)
    active = np.diff(history.indptr) > 0
    history, features = history[active], np.load(made / "text_feat.npy")[active]
    dense = history.toarray()
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    cosine, near = dense @ dense.T, nearest_neighbours(features, 10, check.torch.device("cpu"))
    observed = np.take_along_axis(cosine, near, axis=1).mean()
    expected = cosine[~np.eye(len(cosine), dtype=bool)].mean()
    whole = check.measure_fit(features, np.ones(len(features), bool), history, 0)[0]
    standard_error = whole.error / np.sqrt(check.PERMUTATIONS)  # of the mean under the null, relative to it
    assert abs(whole.lift / (observed / expected) - 1) < 4 * standard_error


def test_random_orders_look_like_chance(made):
    """Over 20 random orders: z is about standard normal, and none passes."""
    features, history = np.load(made / "image_feat.npy")[:300], history_of(made)[:300]
    z = []
    for seed in range(20):
        fits = check.measure_fit(
            features[reordered("permuted", 300, seed)], np.ones(300, bool), history, seed
        )
        assert check.judge(fits)[0] != "pass"
        z.append(fits[0].z)
    assert abs(np.mean(z)) < 0.8 and 0.6 < np.std(z) < 1.6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("users, items", [(150, 120), (40, 60), (12, 30)])
def test_small_honest_data_do_not_fail(users, items, seed, tmp_path, capsys):
    assert (
        synthetic.main(
            [
                "s",
                "--data_root",
                str(tmp_path),
                "--users",
                str(users),
                "--items",
                str(items),
                "--seed",
                str(seed),
                "--interactions-per-user",
                "4",
            ]
        )
        == 0
    )
    capsys.readouterr()
    code, out = run(capsys, tmp_path / "s")
    assert code == 0
    if items < check.LEAST:
        assert "verdict: unknown" in out and "fewer than 100 rows" in out


def test_nobody_met_or_everybody_met_says_nothing():
    """Histories that tell no neighbours apart end in unknown, not in fail."""
    features = np.random.default_rng(0).standard_normal((200, 8))
    for history in (
        sp.eye(200, format="csr", dtype=np.float32),
        sp.csr_matrix(np.ones((200, 3), np.float32)),
    ):
        assert check.judge(check.measure_fit(features, np.ones(200, bool), history, 0))[0] == "unknown"


def test_filled_in_rows_do_not_count(made, tmp_path, capsys):
    """Half the rows replaced by the mean: told, and the others still pass."""
    features = np.load(made / "text_feat.npy")
    features[::2] = features.mean(axis=0)
    np.save(tmp_path / "f.npy", features)
    code, out = run(capsys, made, "--text_feat", tmp_path / "f.npy")
    assert code == 0 and "500 rows are the same" in out and "verdict: pass" in out


def test_sampling_still_tells(made, tmp_path, capsys, monkeypatch):
    """With far fewer rows than there are, right and wrong are still told apart, or left unknown."""
    monkeypatch.setattr(check, "MOST_QUERIES", 300)
    monkeypatch.setattr(check, "MOST_PRODUCTS", 300 * 600 * 96)
    features = np.load(made / "text_feat.npy")
    assert run(capsys, made, "--text_feat", made / "text_feat.npy")[0] == 0
    np.save(tmp_path / "f.npy", features[reordered("permuted", len(features))])
    assert "verdict: pass" not in run(capsys, made, "--text_feat", tmp_path / "f.npy")[1]


# ---------------------------------------------------------------- everything at once


def test_all_faults_are_told_at_once(tmp_path, capsys):
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
    (folder / "item_ids.tsv").write_text("0\ta\n")
    code, out = run(capsys, folder)
    assert code == 1
    for told in (
        "train.txt, line 5: 'x7' is not an id",
        "2 lines cannot be read: 5, 10",
        "1 pairs of valid are also in train",
        "train: 1 repeated lines",
        "1 rows hold NaN",
        "the first is row 3",
        "1 rows are zero",
        "has 20 rows for 30 items",
        "audio_feat.npy: is not a plain .npy",
        "item_ids.tsv: has 1 lines for 30 ids",
        "verdict: fail",
        "cold users",
    ):
        assert told in out, told
    assert out.count("\nproblem: ") == int(out.split("fail, ")[1].split()[0]) == 8


def test_inter_tables_too(tmp_path, capsys):
    folder = tmp_path / "bad"
    write_inter(folder, **random_pairs(0, 40, 30, 6), ratings=None)
    path = folder / "bad.inter"
    lines = path.read_text().splitlines()
    lines[3], lines[8], lines[11] = "0\tx\t0", "1\t2\t3", "1\t2"
    path.write_text("\n".join(lines) + "\n")
    code, out = run(capsys, folder)
    assert (
        code == 1
        and "line 4: itemID 'x'" in out
        and "3 lines cannot be read: 4, 9, 12" in out
        and "40 users" in out
    )


def test_what_cannot_be_read_at_all(tmp_path, capsys):
    folder = tmp_path / "bad"
    write_txt(folder, **random_pairs(0, 40, 30, 6))
    (folder / "valid.txt").unlink()
    (folder / "test.txt").write_text("")
    code, out = run(capsys, folder)
    assert code == 1 and "valid.txt: cannot be read" in out and "the test split is empty" in out


def test_good_small_folder(small_dataset, capsys):
    """Features that are noise, in a folder too small to tell: unknown, and the trainer would take it."""
    code, out = run(capsys, small_dataset)
    assert code == 0 and "verdict: unknown" in out and "problem" not in out
    assert "test: 1 cold users" in out and "1 of 30 items have no interaction at all" in out


def test_without_features(tmp_path, capsys):
    write_txt(tmp_path / "plain", **random_pairs(0, 40, 30, 6))
    code, out = run(capsys, tmp_path / "plain")
    assert code == 0 and "holds no features" in out and out.endswith("verdict: pass\n")


@pytest.mark.parametrize(
    "flags, told",
    [
        (["nothing"], "no such dataset folder"),
        ([], "NAME"),
        (["x", "--nonsense"], "--nonsense"),
        (["empty"], "neither train.txt nor a .inter"),
    ],
)
def test_bad_usage_ends_in_one_line(flags, told, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert check.main([*flags, "--data_root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ") and told in err


def test_as_a_command(made):
    done = subprocess.run(
        [sys.executable, "-m", "data.check", "made", "--data_root", str(made.parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("verdict: pass\n"), done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "data.check", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert "Exit code: 0 pass or unknown, 1 fail, 2 bad usage" in done.stdout
