"""recommend.py with flags, files, checkpoints and data that cannot be used: exit code 2 and one line."""

import errno
import re

import pytest
from recommend_helpers import N_USERS, read_table

import recommend
from recommending import writers


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
        (["--format", "parquet"], "needs --output"),
        (["--new_users", "absent.tsv"], "absent.tsv"),
        (["--output", "no/such/folder/x"], "no/such/folder/x"),
        (["--output", "."], ".: is a folder"),
        (["--cuda", "3"], "--cuda"),
        (["--eval_chunk", "-1"], "--eval_chunk"),
        (["--export_faiss", "no/such/x"], "no/such/x"),
        (["--export_hub", "hub", "--users", "1"], "are for lists"),
        (["--export_embeddings", "a.npz", "--output", "b"], "are for lists"),
        (["--export_embeddings", "a.npz", "--format", "jsonl", "--topk", "5"], "--format and --topk are for"),
        (["--export_embeddings", "a.parquet"], "name it .npz or .safetensors"),
        (["--similar_by", "weights"], "needs --similar_items"),
        (["--similar_items", "1", "--exclude", "test"], "--exclude is for lists of users"),
        (["--model", "my_model.py:MyModel"], "was trained with --model lgn; drop --model"),
    ],
)
def test_flags(lgn, flags, word, capsys):
    capsys.readouterr()
    code = recommend.main(["--checkpoint", str(lgn), *flags])
    err = capsys.readouterr().err
    assert code == 2 and re.fullmatch(r"error: .*\n", err) and word in err


def test_a_long_list_of_ids_is_not_a_file_name(lgn, run):
    assert list(read_table(run(lgn, "--users", "1," * 3000 + "2")[1])[1]) == ["1", "2"]


@pytest.mark.parametrize(
    "name, text, word",
    [
        ("user_ids.tsv", "0\ta\n", "1 users"),
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
def test_names_of_the_dataset(lgn, small_dataset, run, name, text, word):
    (small_dataset / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = run(lgn)
    assert code == 2 and out is None and len(err.splitlines()) == 1 and name in err and word in err


def test_checkpoints(lgn, run, tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for path, word in (
        (tmp_path / "absent", "cannot be read"),
        (tmp_path / "junk.pt", "damaged"),
        (tmp_path, "neither best.pt nor last.pt"),
    ):
        code, _, err = run(path)
        assert code == 2 and len(err.splitlines()) == 1 and word in err


def test_another_dataset(lgn, small_dataset, run):
    with open(small_dataset / "train.txt", "a") as file:
        file.write(f"{N_USERS} 1\n")
    code, _, err = run(lgn)
    assert code == 2 and "does not fit" in err and len(err.splitlines()) == 1


def test_an_output_that_fails_leaves_the_file_before(lgn, run, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("before")

    def fail(lists, file):
        file.write("half")
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setitem(writers.WRITERS, "tsv", fail)
    code, text, err = run(lgn)
    assert code == 1 and text == "before" and f"{tmp_path / 'out'}: disk full" in err.splitlines()[-1]
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))
