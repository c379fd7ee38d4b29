"""Answers that come at once, without torch: help, typing errors, wrong names and paths, foreign tables."""

import importlib
import subprocess
import sys

import pytest
from broken import ROOT, assert_refused
from helpers import random_pairs, write_txt

from main import main

RECBOLE = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\ti1\t3\t4\n"
FOREIGN_SPLIT = "user\titem\tx_label\n1\t2\t0\n"
MISTAKES = {
    "flag": (["--mdoel", "lgn"], ["--mdoel", "did you mean --model?"]),
    "flag with hyphens": (["--item-knn-k", "5"], ["did you mean --item_knn_k?"]),
    "flag of another model": (["--model", "vbpr", "--ease_l2", "5"], ["--ease_l2 belongs to --model ease"]),
    "model": (["--model", "lgnmm"], ["did you mean lgn_mm?", "itemknn", "FILE.py:CLASS"]),
    "recipe": (["--recipe", "relesed"], ["did you mean released?"]),
    "preset": (["--preset", "baby-smal"], ["did you mean baby-small?", "baby-paper"]),
    "no dataset": ([], ["no dataset is named", "--dataset NAME", "ml, shop_raw, split"]),
    "dataset": (["--dataset", "shap"], ["did you mean shop?", "ml, shop_raw, split"]),
    "data root": (
        ["--dataset", "shop", "--data_root", "no"],
        ["no has none", "python -m data.synthetic demo"],
    ),
    "features": (["--dataset", "shop", "--text_feat", "no.npy"], ["no.npy", "cannot be read"]),
    "run": (["--resume", "no"], ["no/config.json", "--resume takes a run folder"]),
    "checkpoint": (["--evaluate_only", "1", "--checkpoint", "no.pt"], ["no.pt", "RUN_FOLDER/best.pt"]),
    "settings": (["--config", "no.json"], ["no.json", "name a file of settings"]),
    "table of RecBole": (
        ["--dataset", "ml"],
        [
            "lacks userID, itemID, x_label",
            "python -m data.prepare ml_split --interactions data/ml/ml.inter --user_column user_id:token "
            "--item_column item_id:token --rating_column rating:float --time_column timestamp:float",
        ],
    ),
    "table with other names": (
        ["--dataset", "split"],
        [
            "lacks userID, itemID",
            "rename user and item to keep the split",
            "python -m data.prepare split_split",
        ],
    ),
}

# Those of the other commands: (command, arguments, words of the message).
OTHERS = [
    ("tune", ["--study", "s"], ["--trials", "--best"]),
    ("tune", ["--study", "s", "--trials", "3", "--mdoel", "lgn"], ["did you mean --model?"]),
    ("tune", ["--study", "s", "--trials", "3", "--dataset", "shap"], ["did you mean shop?"]),
    ("tune", ["--study", "s", "--trials", "3", "--dataset", "shop", "--space", "lr=1"], ["--space lr=1"]),
    ("tune", ["--study", "s", "--best"], ["runs/tune/s.db", "does not exist", "--storage"]),
    ("recommend", [], ["--checkpoint"]),
    ("recommend", ["--checkpoint", "no"], ["no: cannot be read", "a run folder or a checkpoint"]),
    ("recommend", ["--checkpoint", "data"], ["neither best.pt nor last.pt"]),
    ("recommend", ["--checkpoint", "a.pt", "--topk", "0"], ["--topk 0"]),
    ("recommend", ["--checkpoint", "a.pt", "--topn", "5"], ["did you mean --topk?"]),
    ("recommend", ["--checkpoint", "a.pt", "--format", "csv"], ["tsv", "jsonl"]),
    ("recommend", ["--checkpoint", "a.pt", "--exclude", "trian"], ["--exclude trian", "train, valid, test"]),
    ("recommend", ["--checkpoint", "a.pt", "--new_users", "no.tsv"], ["no.tsv: cannot be read"]),
    ("recommend", ["--checkpoint", "a.pt", "--output", "no/x"], ["no/x", "name a file"]),
    ("explore", [], ["--checkpoint"]),
    ("explore", ["--checkpoint", "no"], ["no: cannot be read", "a run folder or a checkpoint"]),
    ("explore", ["--checkpoint", "a.pt", "--compare", "no.pt"], ["no.pt: cannot be read"]),
    ("explore", ["--checkpoint", "a.pt", "--picture", "x"], ["did you mean --pictures?"]),
    ("explore", ["--checkpoint", "a.pt", "--map", "umap2"], ["pca", "umap"]),
    ("report", [], ["RUNS"]),
    ("report", ["data"], ["data: no run folder here or below"]),
    ("report", ["data", "--curve", "layer", "--figures", "0"], ["--figures 0 contradicts --curve"]),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with the datasets shop_raw, ml and split in data/."""
    write_txt(tmp_path / "data" / "shop_raw", **random_pairs(0, 40, 30, 6))
    for name, text in (("ml", RECBOLE), ("split", FOREIGN_SPLIT)):
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / name / f"{name}.inter").write_text(text)
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_answered_with_what_was_meant(case, folder, capsys):
    argv, words = MISTAKES[case]
    assert_refused(main(argv), capsys.readouterr().err, words)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("command, argv, words", OTHERS)
def test_mistake_of_another_command(command, argv, words, folder, capsys):
    assert_refused(importlib.import_module(command).main(argv), capsys.readouterr().err, words)


@pytest.mark.parametrize("command", ["main", "tune", "recommend", "explore", "report"])
def test_neither_help_nor_a_mistake_waits_for_torch_or_pandas(folder, command):
    mistakes = [argv for argv, _ in MISTAKES.values()] if command == "main" else []
    mistakes += [argv for name, argv, _ in OTHERS if name == command]
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"from {command} import main\n"
        f"for argv in {mistakes}:\n"
        "    assert main(argv) == 2\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    print({'torch', 'pandas', 'scipy'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\nset()\n")


@pytest.mark.parametrize("root", ["data", "other"])
def test_the_command_that_is_named_converts_the_table(folder, capsys, root):
    from data.prepare import main as prepare

    rows = [f"u{user}\ti{item}\t3\t{user + item}" for user in range(30) for item in range(user % 3, 20, 3)]
    table = folder / root / "ml" / "ml.inter"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join([RECBOLE.split("\n")[0], *rows]) + "\n")
    assert main(["--dataset", "ml", "--data_root", root]) == 2
    command = capsys.readouterr().err.partition("python -m data.prepare ")[2].split()
    assert prepare(command) == 0
    run = ["--model", "mf", "--recdim", "4", "--epochs", "1", "--topks", "3", "--cuda", "0"]
    assert main(["--dataset", "ml_split", "--data_root", root, *run]) == 0
