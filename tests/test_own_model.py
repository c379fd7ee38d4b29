"""A model from a user's own file, as CONTRIBUTING.md describes it, and ItemKNN, which has nothing to train.

Both go through the command lines of main.py, tune.py, report.py and recommend.py.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import stop_after
from small_runs import SMALL, command_line, flags, only, read_json, read_metrics, read_state

import main
import recgoat
import recommend
from recommending.trained import load_run

ROOT = Path(__file__).resolve().parents[1]
SOURCE = '''import torch

from models.lightgcn import LightGCN
from world import setting


class ScaledLightGCN(LightGCN):
    """LightGCN whose user vectors are multiplied by a learnt scale."""

    settings = {"scale": setting(1.0, "model", "initial scale of the user vectors", low=0.0)}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.scale = torch.nn.Parameter(torch.tensor(config.scale))

    def embeddings(self, users=None, items=None):
        user, item = super().embeddings(users, items)
        return self.scale * user, item
'''


@pytest.fixture
def model(tmp_path):
    """--model of the class above, in a file outside the repository."""
    (tmp_path / "my_model.py").write_text(SOURCE)
    return f"{tmp_path}/my_model.py:ScaledLightGCN"


def words(folder, runs, **changes):
    """Command line of a run with four epochs."""
    return command_line(folder, runs, **{"epochs": 4, "patience": 0, **changes})


def train(folder, runs, **changes):
    """Train with main(). Returns the run folder."""
    assert main.main(words(folder, runs, **changes)) == 0
    return only(runs)


def assert_refused(call, argv, capsys, *expected):
    """Assert exit code 2 and one line on stderr that contains the expected words."""
    capsys.readouterr()
    assert call(argv) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", err) and all(word in err for word in expected), err


def run_script(script, *argv, folder=ROOT):
    """Run a script of the repository in a process of its own. Returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, argv)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def read_lists(text):
    """{query: [item, ...]} of the output of recommend.py."""
    lists = {}
    for line in text.splitlines()[1:]:
        query, _, item, *_ = line.split("\t")
        lists.setdefault(query, []).append(int(item))
    return lists


def assert_same_training(folder, other):
    """Assert that two runs have the same metrics, weights, optimiser and random states, bit for bit."""
    for a, b in zip(read_metrics(folder), read_metrics(other), strict=True):
        assert (a["epoch"], a["train"], a["valid"]) == (b["epoch"], b["train"], b["valid"])
    a, b = read_json(folder), read_json(other)
    assert (a["best_epoch"], a["valid"], a["test"]) == (b["best_epoch"], b["valid"], b["test"])
    for name in ("best.pt", "last.pt"):
        a, b = read_state(folder / name), read_state(other / name)
        assert a["model"].keys() == b["model"].keys()
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
        moments = [state["optimizer"]["state"] for state in (a, b)]
        assert all(
            torch.equal(moments[0][key][entry], moments[1][key][entry])
            for key in moments[0]
            for entry in moments[0][key]
        )
        assert a["random"]["torch"].equal(b["random"]["torch"]) and a["sampler"].equal(b["sampler"])


# ---------------------------------------------------------------- training


def test_the_file_is_that_of_the_contributing_page():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert SOURCE in page


def test_train(small_dataset, tmp_path, model, capsys):
    folder = train(small_dataset, tmp_path / "runs", model=model, scale=2.0)
    config, result = read_json(folder, "config.json"), read_json(folder)
    assert folder.name.startswith("small_ScaledLightGCN_")
    assert (config["model"], config["scale"]) == (model, 2.0)
    assert re.fullmatch(r"[0-9a-f]{64}", config["provenance"]["model_sha256"])
    assert result["status"] == "finished" and "ScaledLightGCN on " in capsys.readouterr().out
    scale = read_state(folder / "last.pt")["model"]["scale"].item()
    assert scale != 2.0 and scale == pytest.approx(2.0, abs=1)


def test_the_initial_scale_is_that_of_the_flag(small_dataset, tmp_path, model):
    """With a scale of 1 that is not trained yet, the first loss is LightGCN's."""
    losses = {}
    for name, changes in (
        ("own", {"model": model}),
        ("own 2", {"model": model, "scale": 2.0}),
        ("lgn", {"model": "lgn"}),
    ):
        folder = train(small_dataset, tmp_path / name, **changes, epochs=1, bpr_batch=10**4)
        losses[name] = read_metrics(folder)[0]["train"]["loss"]
    assert losses["own"] == losses["lgn"] != losses["own 2"]


@pytest.mark.parametrize("moved", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(
    small_dataset, tmp_path, model, monkeypatch, capsys, moved
):
    whole = train(small_dataset, tmp_path / "whole", model=model, scale=2.0)
    with monkeypatch.context() as patch:
        stop_after(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        argv = words(small_dataset, tmp_path / "runs", model=model, scale=2.0)
        assert main.main(argv) == 143
    folder = only(tmp_path / "runs")
    if moved:
        (tmp_path / "elsewhere").mkdir()
        path = shutil.move(tmp_path / "my_model.py", tmp_path / "elsewhere" / "my_model.py")
        model = f"{path}:ScaledLightGCN"
    # A stored file name never runs code: the class has to be named again.
    resume = ["--resume", str(folder)]
    assert_refused(main.main, resume, capsys, "was trained with the class", "ScaledLightGCN; add --model")
    assert_refused(main.main, [*resume, "--model", "lgn"], capsys, "add --model")
    assert_refused(main.main, [*resume, "--model", model, "--scale", "1"], capsys, "--scale 2.0 -> 1.0")
    assert main.main([*resume, "--model", model]) == 0
    assert "resumed after epoch 1, step 2" in capsys.readouterr().out
    assert_same_training(whole, folder)


def test_the_command_that_a_stopped_run_prints_continues_it(
    small_dataset, tmp_path, model, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        stop_after(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main.main(words(small_dataset, tmp_path / "runs", model=model)) == 143
    [command] = re.findall(r"continue with: python main.py (.*)", capsys.readouterr().out)
    assert main.main(shlex.split(command)) == 0


def test_resuming_with_another_file_is_noted(small_dataset, tmp_path, model, capsys):
    folder = train(small_dataset, tmp_path / "runs", model=model)
    for change, noted in (("", False), ("# edited\n", True), ("", False)):
        with open(tmp_path / "my_model.py", "a") as file:
            file.write(change)
        assert main.main(["--resume", str(folder), "--model", model]) == 0
        assert ("my_model.py:ScaledLightGCN has changed since" in capsys.readouterr().out) == noted


def test_an_edited_file_is_read_again_in_the_same_process(small_dataset, tmp_path, model):
    places = dict(dataset="small", data_root=small_dataset.parent, path=tmp_path / "runs", **SMALL)
    for factor in (1, 2):
        (tmp_path / "my_model.py").write_text(SOURCE + f"    factor = {factor}\n")
        run = recgoat.train(quiet=True, model=model, epochs=1, **places)
        assert run.model.factor == factor


def test_evaluate_only(small_dataset, tmp_path, model, capsys):
    folder = train(small_dataset, tmp_path / "runs", model=model, scale=2.0)
    scored = ["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt")]
    assert_refused(main.main, scored, capsys, "was trained with the class", "add --model")
    assert main.main([*scored, "--model", model]) == 0
    table = (folder / "train.log").read_text().split("best epoch")[1]
    assert capsys.readouterr().out.split("best epoch")[1] == table


# ---------------------------------------------------------------- flags


def test_help_shows_the_settings_of_the_class(model):
    code, out, _ = run_script("main.py", "--help", "--model", model)
    assert code == 0 and "--scale FLOAT" in out and "initial scale of the user vectors (default 1.0)" in out
    assert "--scale" not in run_script("main.py", "--help")[1]


def test_the_settings_of_the_class_are_checked(small_dataset, tmp_path, model, capsys):
    argv = words(small_dataset, tmp_path / "runs", model="lgn")
    assert_refused(main.main, [*argv, "--scale", "2"], capsys, "--scale")
    argv = words(small_dataset, tmp_path / "runs", model=model)
    assert_refused(main.main, [*argv, "--scale", "-1"], capsys, "--scale -1.0: must be at least 0")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "source, expected",
    [
        ("x = 1\n\ny = 1 / 0\n", "my_model.py, line 3: ZeroDivisionError"),
        ("def f(:\n", "SyntaxError"),
        ("import absent_package\n", "my_model.py, line 1: ModuleNotFoundError"),
        ("class ScaledLightGCN:\n    pass\n", "has no class ScaledLightGCN that extends"),
        (SOURCE.replace('"scale":', '"lr":'), "setting 'lr' must have a new name"),
        (SOURCE.replace("setting(1.0,", "setting((1, 2),"), "setting 'scale' must"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(small_dataset, tmp_path, model, capsys, source, expected):
    (tmp_path / "my_model.py").write_text(source)
    assert_refused(main.main, words(small_dataset, tmp_path / "runs", model=model), capsys, expected)


def test_a_file_that_does_not_exist_is_one_line(small_dataset, tmp_path, capsys):
    for name in ("absent.py:Model", "my_model.py", "data:Model"):
        argv = words(small_dataset, tmp_path / "runs", model=name)
        assert_refused(main.main, argv, capsys, f"--model {name}")


@pytest.mark.parametrize(
    "value, kind", [("torch.ones(3) > 0", "bool"), ("torch.eye(3).to_sparse_csr()", "sparse_csr")]
)
def test_a_state_that_no_checkpoint_can_hold_is_refused_before_training(
    small_dataset, tmp_path, capsys, value, kind
):
    for name, flag in (("refused", ""), ("accepted", ", persistent=False")):
        line = f'        self.register_buffer("mask", {value}{flag})\n'
        path = tmp_path / f"{name}.py"
        path.write_text(SOURCE.replace("        self.scale =", f"{line}        self.scale ="))
    argv = words(small_dataset, tmp_path / "runs", model=f"{tmp_path}/refused.py:ScaledLightGCN")
    assert_refused(main.main, argv, capsys, f"mask is {kind}; convert it")
    train(small_dataset, tmp_path / "kept", model=f"{tmp_path}/accepted.py:ScaledLightGCN")


# ---------------------------------------------------------------- search, report, recommendations


def test_search(small_dataset, tmp_path, model, capsys):
    tune = pytest.importorskip("tune")
    pytest.importorskip("optuna")
    study = flags({"study": "s", "storage": tmp_path / "s.db"})
    argv = [*study, "--trials", "2", "--space", "scale=0.5..4:log"]
    argv += words(small_dataset, tmp_path / "runs", model=model)
    assert tune.main(argv) == 0
    results = {}
    for folder in (tmp_path / "runs").iterdir():
        results[read_json(folder, "config.json")["scale"]] = read_json(folder)["valid"]["ndcg@3"]
    assert len(results) == 2 and all(0.5 <= scale <= 4 for scale in results)
    assert_refused(tune.main, [*study, "--best"], capsys, "was trained with the class", "add --model")
    assert tune.main([*study, "--best", "--model", model]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    best = float(command[command.index("--scale") + 1])
    assert results[best] == max(results.values())
    assert main.main([*command[2:], "--path", str(tmp_path / "best")]) == 0
    assert read_json(only(tmp_path / "best"))["valid"]["ndcg@3"] == results[best]


def test_a_study_continues_when_the_file_has_moved(small_dataset, tmp_path, model):
    tune = pytest.importorskip("tune")
    pytest.importorskip("optuna")
    study = flags({"study": "s", "storage": tmp_path / "s.db"})
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "my_model.py", tmp_path / "elsewhere")
    moved = f"{tmp_path}/elsewhere/my_model.py:ScaledLightGCN"
    for count, name in (("1", model), ("2", moved)):
        argv = [*study, "--trials", count, "--space", "scale=0.5..4:log"]
        assert tune.main([*argv, *words(small_dataset, tmp_path / "runs", model=name)]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert tune.main([*study, "--best", "--model", moved]) == 0


def test_report_does_not_need_the_file(small_dataset, tmp_path, model):
    folder = train(small_dataset, tmp_path / "runs", model=model, scale=2.0)
    (tmp_path / "my_model.py").unlink()
    code, out, err = run_script("report.py", tmp_path / "runs", "--output", tmp_path / "report")
    assert code == 0 and "ScaledLightGCN" in out, err
    assert f"{read_json(folder)['test']['recall@5']:.4f}" in out


def test_recommend(small_dataset, tmp_path, model, capsys):
    folder = train(small_dataset, tmp_path / "runs", model=model, scale=2.0)
    checkpoint = ["--checkpoint", str(folder), "--cuda", "0"]
    assert_refused(recommend.main, checkpoint, capsys, "was trained with the class", "add --model")

    def lists(*more):
        output = tmp_path / "lists.tsv"
        argv = [*checkpoint, "--model", model, "--topk", "5", "--output", str(output), *more]
        assert recommend.main(argv) == 0
        return read_lists(output.read_text())

    with np.load(folder / "test_ranking.npz") as file:
        ranking = dict(zip(map(str, file["users"].tolist()), file["items"].tolist()))
    assert {user: items for user, items in lists().items() if user in ranking} == ranking
    (tmp_path / "new.tsv").write_text("anna 3 5 8\nbert 1\n")
    new = lists("--new_users", str(tmp_path / "new.tsv"))
    assert list(new) == ["anna", "bert"] and not {3, 5, 8} & set(new["anna"]) and 1 not in new["bert"]
    similar = lists("--similar_items", "4,2")
    item = torch.nn.functional.normalize(
        load_run(folder / "best.pt", {"cuda": 0}, model)[0].embeddings()[1].detach(), dim=1
    )
    for number in (4, 2):
        order = (item @ item[number]).argsort(descending=True).tolist()
        assert similar[str(number)] == [i for i in order if i != number][:5]


# ---------------------------------------------------------------- ItemKNN


def item_cosines(folder):
    """Cosines of the items' sets of users, zero on the diagonal, by loops: [I, I]."""
    users = [set() for _ in range(30)]
    for line in (folder / "train.txt").read_text().splitlines():
        user, *items = map(int, line.split())
        for item in items:
            users[item].add(user)
    size = np.sqrt([[max(len(a) * len(b), 1) for b in users] for a in users])
    return (
        np.array([[len(a & b) * (i != j) for j, b in enumerate(users)] for i, a in enumerate(users)]) / size
    )


@pytest.fixture
def itemknn(small_dataset, tmp_path):
    """Run folder of ItemKNN."""
    return train(small_dataset, tmp_path / "runs", model="itemknn")


def test_itemknn_is_evaluated_once_and_not_trained(small_dataset, itemknn):
    [line], result, state = read_metrics(itemknn), read_json(itemknn), read_state(itemknn / "best.pt")
    assert line["epoch"] == result["epochs"] == result["best_epoch"] == 1 and line["train"] == {}
    assert state["model"] == {} and state["optimizer"] == {}
    cosines, history = item_cosines(small_dataset), np.zeros((40, 30))
    for text in (small_dataset / "train.txt").read_text().splitlines():
        user, *items = map(int, text.split())
        history[user, items] = 1
    with np.load(itemknn / "test_ranking.npz") as file:
        users, lists = file["users"], file["items"]
    scores = history @ cosines
    for user, items in zip(users, lists.tolist()):
        best = np.where(history[user], -1, scores[user])
        np.testing.assert_allclose(best[items], np.sort(best)[::-1][:5], rtol=1e-5)


def test_itemknn_can_be_resumed_and_scored(small_dataset, itemknn, capsys):
    before = {path.name: path.read_bytes() for path in itemknn.glob("*.pt")}
    table = (itemknn / "train.log").read_text().split("best epoch")[1]
    assert main.main(["--resume", str(itemknn)]) == 0
    assert (itemknn / "train.log").read_text().split("best epoch")[-1] == table
    assert read_json(itemknn)["status"] == "finished" and len(read_metrics(itemknn)) == 1
    assert before.keys() == {"best.pt", "last.pt"}
    capsys.readouterr()
    assert main.main(["--evaluate_only", "1", "--checkpoint", str(itemknn / "best.pt")]) == 0
    assert capsys.readouterr().out.split("best epoch")[1] == table


def test_itemknn_can_be_searched(small_dataset, tmp_path):
    tune = pytest.importorskip("tune")
    pytest.importorskip("optuna")
    argv = flags({"study": "s", "storage": tmp_path / "s.db", "trials": 3})
    assert tune.main([*argv, *words(small_dataset, tmp_path / "runs", model="itemknn")]) == 0
    for folder in (tmp_path / "runs").iterdir():
        assert read_json(folder)["status"] == "tuned"
        assert read_json(folder, "config.json")["itemknn_k"] in (0, 10, 20, 50, 100, 200)
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert "--model itemknn" in (tmp_path / "s.best.sh").read_text()


def test_itemknn_recommends_the_lists_of_its_test(small_dataset, itemknn, tmp_path):
    def lists(*more):
        output = tmp_path / "lists.tsv"
        argv = ["--checkpoint", str(itemknn), "--cuda", "0", "--topk", "5", "--output", str(output), *more]
        assert recommend.main(argv) == 0
        return read_lists(output.read_text())

    with np.load(itemknn / "test_ranking.npz") as file:
        ranking = dict(zip(map(str, file["users"].tolist()), file["items"].tolist()))
    assert lists() == ranking
    cosines = item_cosines(small_dataset)
    for number, items in lists("--similar_items", "4,2").items():
        order = np.argsort(-cosines[int(number)], kind="stable").tolist()
        found = cosines[int(number)][items]
        np.testing.assert_allclose(found, cosines[int(number)][[i for i in order if i != int(number)][:5]])
    # A new user with the history of a known one gets the same list.
    known = (small_dataset / "train.txt").read_text().splitlines()[7]
    (tmp_path / "new.tsv").write_text("new" + known[known.index(" ") :] + "\n")
    assert lists("--new_users", str(tmp_path / "new.tsv")) == {"new": ranking[known.split()[0]]}
