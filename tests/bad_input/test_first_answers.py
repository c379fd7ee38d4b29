"""Answers that come at once, without torch: help, typing errors, wrong names and paths, foreign tables."""

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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with the datasets shop_raw, ml and split in data/."""
    write_txt(tmp_path / "data" / "shop_raw", **random_pairs(0, 40, 30, 6))
    for name, text in (("ml", RECBOLE), ("split", FOREIGN_SPLIT)):
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / name / f"{name}.inter").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_answered_with_what_was_meant(case, folder, capsys):
    argv, words = MISTAKES[case]
    assert_refused(main(argv), capsys.readouterr().err, words)
    assert not (folder / "runs").exists()


def test_neither_help_nor_a_mistake_waits_for_torch_or_pandas(folder):
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from main import main\n"
        f"for argv in {[argv for argv, _ in MISTAKES.values()]}:\n"
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


def test_the_command_that_is_named_converts_the_table(folder, capsys):
    from data.prepare import main as prepare

    rows = [f"u{user}\ti{item}\t3\t{user + item}" for user in range(30) for item in range(user % 3, 20, 3)]
    table = folder / "data" / "ml" / "ml.inter"
    table.write_text("\n".join([RECBOLE.split("\n")[0], *rows]) + "\n")
    assert main(["--dataset", "ml"]) == 2
    command = capsys.readouterr().err.partition("python -m data.prepare ")[2].split()
    assert prepare(command) == 0
    run = ["--model", "mf", "--recdim", "4", "--epochs", "1", "--topks", "3", "--cuda", "0"]
    assert main(["--dataset", "ml_split", *run]) == 0
