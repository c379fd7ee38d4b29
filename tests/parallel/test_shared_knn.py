"""kNN graphs that several processes build together: the graph of one process, and failures of one of them."""

import functools

import numpy as np
import pytest
from helpers import random_features
from model_helpers import CPU
from parallel_helpers import in_processes

from data.graphs import cached_neighbours, nearest_neighbours
from layers.agreement import together
from layers.columns import rank
from utils import UserError


def tied_features():
    """Rows of which many are equal, so that the order of the neighbours depends on that of the work."""
    features = random_features(70, 6)
    features[10:40:3] = features[9]
    features[[3, 60]] = 0
    return features


@pytest.mark.parametrize("p", [2, 3])
def test_processes_together_find_the_neighbours_of_one(p):
    """Five blocks make fifteen pairs; the last block has fewer rows than there are neighbours."""
    build = functools.partial(nearest_neighbours, tied_features(), 7, CPU, 16)
    for found in in_processes(p, build):
        np.testing.assert_array_equal(found, build())


def through_the_cache(folder, each):
    """Neighbours through a cache of all processes, or of each, after one of them has lost its file."""
    cache = folder / (str(rank()) if each else "cache")
    first = cached_neighbours(tied_features(), 7, cache, 0, CPU)
    if each and rank() == 1:
        next(cache.iterdir()).unlink()
    return first, cached_neighbours(tied_features(), 7, cache, 0, CPU)


@pytest.mark.parametrize("each", [False, True])
def test_the_cache_has_the_neighbours_of_one_process(tmp_path, each):
    expected = nearest_neighbours(tied_features(), 7, CPU)
    for results in in_processes(2, through_the_cache, tmp_path, each):
        for found, notes in results:
            np.testing.assert_array_equal(found, expected)
            assert notes == []
    assert len(list(tmp_path.glob("*/*"))) == (2 if each else 1)


def fails_in_one(inner):
    try:
        with together():
            with together():
                if inner and rank() == 1:
                    raise UserError("a file is missing")
            if not inner and rank() == 1:
                raise UserError("a file is missing")
            with together():
                pass
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("inner", [False, True])
def test_an_error_of_one_process_in_nested_blocks_is_raised_by_all(inner):
    assert in_processes(3, fails_in_one, inner) == ["a file is missing"] * 3
