"""--projector 1: vectors, labels and the configuration that TensorBoard's projector reads."""

import json

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from helpers import random_pairs
from small_runs import best_model, script_metrics, small_config, train
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from training import projector
from utils import UserError


def write_names(folder):
    """Original ids of all items, and titles of all but item 3."""
    (folder / "item_ids.tsv").write_text("".join(f"{i}\tSKU-{i}\n" for i in range(30)))
    records = ({"item": i, "title": f"a\tthing {i}"} for i in range(30) if i != 3)
    (folder / "item_text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def read_rows(path):
    return [line.split("\t") for line in path.read_text().removesuffix("\n").split("\n")]


@pytest.mark.parametrize("changes", [{}, {"model": "mf"}])
def test_the_best_vectors_with_ids_and_titles(small_dataset, monkeypatch, changes):
    write_names(small_dataset)
    script_metrics(monkeypatch, [0.1, 0.3, 0.2])
    folder, result, _ = train(small_dataset, epochs=3, tensorboard=1, projector=1, **changes)
    assert result["best_epoch"] == 2
    with torch.inference_mode():
        vectors = best_model(small_config(small_dataset, **changes), folder).embeddings()
    for name, expected in zip(("user", "item"), vectors, strict=True):
        path = folder / "projector" / f"{name}_vectors.tsv"
        assert np.array_equal(np.loadtxt(path, dtype=np.float32, delimiter="\t"), expected.detach().numpy())
    pairs = random_pairs(0, 40, 30, 6)["train"]
    header, *items = read_rows(folder / "projector" / "item.tsv")
    assert header == ["item", "title", "id", "train"] and len(items) == 30 and items[3][1] == ""
    assert items[5] == ["5", "a thing 5", "SKU-5", str((pairs[:, 1] == 5).sum())]
    header, *users = read_rows(folder / "projector" / "user.tsv")
    assert header == ["user", "id", "train"] and users[39] == ["39", "39", "0"] and users[0][2] == "6"


def test_tensorboard_finds_the_files(small_dataset):
    folder, _, _ = train(small_dataset, epochs=1, tensorboard=1, projector=1)
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [embedding.tensor_name for embedding in config.embeddings] == ["item", "user"]
    for embedding in config.embeddings:
        labels = read_rows(folder / embedding.metadata_path)
        assert len(read_rows(folder / embedding.tensor_path)) == len(labels) - 1
    # TensorBoard looks for projector_config.pbtxt in the folders of events.
    assert list(folder.glob("events*"))


def test_the_vectors_of_many_users_are_omitted(small_dataset, monkeypatch):
    monkeypatch.setattr(projector, "MAX_USERS", 39)
    folder, _, _ = train(small_dataset, epochs=1, tensorboard=1, projector=1)
    assert {path.name for path in (folder / "projector").iterdir()} == {"item.tsv", "item_vectors.tsv"}
    assert "user" not in (folder / "projector_config.pbtxt").read_text()


def test_a_damaged_id_file_is_refused_before_training(small_dataset):
    (small_dataset / "item_ids.tsv").write_text("0\ta\n")
    with pytest.raises(UserError, match=r"item_ids\.tsv"):
        train(small_dataset, epochs=1, tensorboard=1, projector=1)


def test_the_projector_needs_tensorboard(small_dataset):
    with pytest.raises(UserError, match="drop --tensorboard 0"):
        small_config(small_dataset, projector=1, tensorboard=0)
