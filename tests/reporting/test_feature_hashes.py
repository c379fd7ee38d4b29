"""Rows of one table that were trained on other features: the report says so."""

import json

import pytest
from report_helpers import edit_json, run_report, write_run


def write(root, seed, features, **settings):
    """A finished run that recorded these hashes of features; None: a run of an older version."""
    folder = write_run(root, seed, 0.1 * seed, **settings)
    data = json.loads((folder / "result.json").read_text())["data"]
    edit_json(folder / "result.json", {"data": data if features is None else {**data, "features": features}})


def warnings_of(root, capsys):
    """The paragraphs of the report about features."""
    assert run_report(root, "--figures", "0") == 0
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if "of these hashes" in line or "Not recorded" in line]


def test_rows_of_other_features_are_named(root, capsys):
    write(root, 1, {"text": "a" * 64, "image": "c" * 64}, model="lgn_mm")
    write(root, 1, {"text": "b" * 64, "image": "c" * 64}, model="vbpr")
    write(root, 1, {}, model="lgn")
    [line] = warnings_of(root, capsys)
    assert line == (
        "**Warning.** The rows were trained on different text features, of these hashes: "
        "aaaaaaaa (RecGOAT); bbbbbbbb (VBPR)."
    )


@pytest.mark.parametrize(
    "features", [{"text": "a" * 64}, {"image": "c" * 64}, {"text": "a" * 64, "image": "c" * 64}, {}]
)
def test_rows_of_some_of_the_same_features_need_no_word(root, capsys, features):
    write(root, 1, {"text": "a" * 64, "image": "c" * 64}, model="lgn_mm")
    write(root, 1, features, model="lgn_mm", name="ablation")
    assert warnings_of(root, capsys) == []


def test_neighbours_from_other_files_are_named(root, capsys):
    write(root, 1, {"text neighbours": "a" * 64}, model="lgn_mm")
    write(root, 1, {"text neighbours": "b" * 64}, model="freedom")
    [line] = warnings_of(root, capsys)
    assert "different text neighbours, of these hashes" in line


def test_runs_of_older_versions_are_named_if_their_model_uses_features(root, capsys):
    write(root, 1, None, model="lgn_mm")
    write(root, 1, None, model="lgn")
    write(root, 1, {"text": "a" * 64}, model="vbpr")
    assert warnings_of(root, capsys) == [
        "Not recorded by their version, and not compared: the features of RecGOAT."
    ]


def test_seeds_of_a_row_must_have_the_same_features(root, capsys):
    write(root, 1, {"text": "a" * 64}, model="lgn_mm", data="one")
    write(root, 2, {"text": "b" * 64}, model="lgn_mm", data="two")
    assert run_report(root, "--figures", "0") == 2
    assert "differ in data: interactions" in capsys.readouterr().err
