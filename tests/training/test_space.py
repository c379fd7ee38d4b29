"""Search spaces of tune.py: how entries are parsed, and what each model recommends."""

import pytest
from small_runs import small_config

optuna = pytest.importorskip("optuna")

from optuna.distributions import FloatDistribution

from models.registry import MODELS
from training.space import check_space, default_space, parse_space
from utils import UserError
from world import Config


def test_ranges_and_choices():
    entries = ["lr=1e-4..1e-2:log", "layer=1..4", "decay=0..1", "fuse_norm=none,l2", "item_knn_k=5,10,5"]
    space = parse_space(entries, Config)
    assert list(space) == ["lr", "layer", "decay", "fuse_norm", "item_knn_k"]
    assert space["lr"] == FloatDistribution(1e-4, 1e-2, log=True)
    assert space["layer"] == optuna.distributions.IntDistribution(1, 4)
    assert space["decay"] == FloatDistribution(0, 1)
    assert space["fuse_norm"].choices == ("none", "l2") and space["item_knn_k"].choices == (5, 10)


# Refused by the form of the entry.
BAD_ENTRIES = [
    "lr",
    "lr=",
    "lr=1",
    "lr=1,1.0",
    "lr=1..1",
    "lr=2..1",
    "lr=0..1:log",
    "lr=a..b",
    "lr=1..inf",
    "lr=nan..1",
    "layer=1.5..3",
    "layer=1,x",
    "fuse_norm=a..b",
    "speed=1..2",
    "seed=1..9",
    "epochs=1..9",
    "dataset=a,b",
    "missing=text:0.1,text:0.2",
    "missing_fill=zero,mean",
    "topks=1,2",
    "valid_metric=ndcg@3,ndcg@5",
]
# Refused because a value is not allowed for the setting.
BAD_VALUES = ["lr=-1..1", "lr=-inf..1", "layer=-1..2", "fuse_norm=none,l3"]


@pytest.mark.parametrize("entry", BAD_ENTRIES)
def test_bad_entries_are_refused(entry):
    with pytest.raises(UserError, match=f"^--space {entry.replace('.', '[.]')}"):
        parse_space([entry], Config)


@pytest.mark.parametrize("entry", BAD_VALUES)
def test_values_that_are_not_allowed_are_refused(entry):
    with pytest.raises(UserError, match=f"^--{entry.split('=')[0]} "):
        check_space(parse_space([entry], Config), Config(), ())


def test_a_list_that_a_study_cannot_hold_is_refused():
    """The record of a list in a study's file may have 4,000 characters."""
    values = [f"{i / 10000:.4f}" for i in range(1, 1000)]
    assert len(parse_space([f"lr={','.join(values[:300])}"], Config)["lr"].choices) == 300
    with pytest.raises(UserError, match=r"^--space lr=.{,70}: the list is too long; give fewer values"):
        parse_space([f"lr={','.join(values)}"], Config)


def test_a_setting_that_is_both_given_and_searched_is_refused():
    space = parse_space(["lr=1e-3..1e-2"], Config)
    check_space(space, Config(), {"layer"})
    with pytest.raises(UserError, match="--lr is both given as a flag and searched"):
        check_space(space, Config(), {"lr"})


@pytest.mark.parametrize("model", MODELS)
def test_the_recommended_space_of_each_model_is_allowed(small_dataset, model):
    config = small_config(small_dataset, model=model)
    space = default_space(config, ())
    check_space(space, config, ())
    untrained = {"itemknn": {"itemknn_k"}, "ease": {"ease_l2"}}
    if model in untrained:
        assert space.keys() == untrained[model]
    else:
        assert space.keys() >= {"lr", "decay"}


def test_the_recommended_space_omits_settings_that_are_given_or_have_no_effect(small_dataset):
    def names(given=(), **changes):
        return set(default_space(small_config(small_dataset, **changes), given))

    everything = names()
    assert {"lr", "decay", "beta", "alpha", "modality_consistency_weight"} <= everything
    assert "audio_weight" not in everything
    assert everything - names(["lr", "beta"]) == {"lr", "beta"}
    assert everything - names(fusion="sum") == {"beta", "alpha"}
    assert everything - names(["contrastive_weight"], contrastive_weight=0.0) == {
        "contrastive_weight",
        "modality_consistency_weight",
    }
