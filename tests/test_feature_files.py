"""Feature files: .npy matrices whose row r belongs to id r."""

import numpy as np
import pytest
from helpers import random_features

from data.feature_files import feature_paths, load_features, open_features
from utils import UserError
from world import Config


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("block", [1, 7, 4096])
def test_features_are_read_in_blocks_as_float32(tmp_path, dtype, block):
    written = random_features(23, 5).astype(dtype)
    np.save(tmp_path / "f.npy", written)
    array = open_features(tmp_path / "f.npy")
    assert isinstance(array, np.memmap) and not array.flags.writeable
    features = load_features(array, "f.npy", 23, block=block)
    assert features.dtype == np.float32 and features.flags.c_contiguous
    np.testing.assert_array_equal(features, written.astype(np.float32))


def test_features_may_be_in_fortran_order(tmp_path):
    written = random_features(9, 4)
    np.save(tmp_path / "f.npy", np.asfortranarray(written))
    np.testing.assert_array_equal(load_features(open_features(tmp_path / "f.npy"), "f.npy", 9), written)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("row", [0, 6, 7, 22])
def test_the_first_row_that_is_not_finite_is_named(bad, row):
    features = random_features(23, 5).astype(np.float64)
    features[row, 3] = bad
    features[22, 0] = np.nan
    with pytest.raises(UserError, match=rf"f\.npy, row {row}: "):
        load_features(features, "f.npy", 23, block=7)


def test_feature_paths_are_the_flags_or_else_the_files_of_the_folder(tmp_path):
    for modality in ("audio", "text"):
        (tmp_path / f"{modality}_feat.npy").touch()
    found = {modality: str(tmp_path / f"{modality}_feat.npy") for modality in ("text", "audio")}
    assert list(feature_paths(Config(model="lgn_mm"), tmp_path).items()) == list(found.items())
    assert feature_paths(Config(model="lgn_mm", image_feat="x.npy"), tmp_path) == {"image": "x.npy"}
    assert feature_paths(Config(model="lgn", use_multimodal=0), tmp_path) == {}
    (tmp_path / "empty").mkdir()
    assert feature_paths(Config(model="lgn"), tmp_path / "empty") == {}
