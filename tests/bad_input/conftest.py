"""A small run and its checkpoint, made once, for the tests that break copies of them."""

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
    """(folder of the dataset 'small', run folder of two epochs of LightGCN on it). Not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    folder = root / "data" / "small"
    write_txt(folder, **random_pairs(0, 40, 30, 6))
    np.save(folder / "text_feat.npy", np.random.default_rng(1).standard_normal((30, 12)).astype(np.float32))
    words = [str(word) for name, value in TRAINED.items() for word in (f"--{name}", value)]
    assert (
        main([*words, "--dataset", "small", "--data_root", str(folder.parent), "--path", str(root / "runs")])
        == 0
    )
    (run_folder,) = (root / "runs").iterdir()
    return folder, run_folder
