"""A small trained run, for tests that damage copies of its files."""

import numpy as np
import pytest
from helpers import random_pairs, write_txt

from main import main

TRAINED = {
    "model": "lgn",
    "recdim": 8,
    "topks": "5,10",
    "epochs": 2,
    "eval_every": 1,
    "bpr_batch": 64,
    "tensorboard": 0,
    "cuda": 0,
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(dataset folder, run folder) of two epochs of LightGCN. Shared by all tests: damage copies only."""
    root = tmp_path_factory.mktemp("trained")
    folder = root / "data" / "small"
    write_txt(folder, **random_pairs(0, 40, 30, 6))
    np.save(folder / "text_feat.npy", np.random.default_rng(1).standard_normal((30, 12)).astype(np.float32))
    settings = {**TRAINED, "dataset": "small", "data_root": folder.parent, "path": root / "runs"}
    code = main([str(word) for name, value in settings.items() for word in (f"--{name}", value)])
    assert code == 0
    (run_folder,) = (root / "runs").iterdir()
    return folder, run_folder
