"""The command line of main.py: its flags and defaults are those of world.Config; recipes, notes, errors."""

import dataclasses
import re
import shlex

import pytest
from released_commands import COMMANDS

from parse import NO_EFFECT, make_parser, parse_args
from utils import UserError
from world import GROUPS, RECIPES, Config, recipe_settings

# The settings of the released commands: those that differ, and those that they share.
RELEASED = {
    "baby": dict(
        dataset="baby_raw",
        recdim=800,
        item_knn_k=20,
        epochs=1000,
        contrastive_weight=0.032,
        text_feat="./data/baby_raw/text_feat.npy",
        image_feat="./data/baby_raw/image_feat.npy",
    ),
    "sports": dict(
        dataset="sports_raw",
        recdim=600,
        item_knn_k=30,
        epochs=1000,
        contrastive_weight=0.005,
        text_feat="./data/sports_raw/text_feat.npy",
        image_feat="./data/sports_raw/image_feat.npy",
    ),
    "electronics": dict(
        dataset="electronics",
        recdim=200,
        item_knn_k=20,
        epochs=2000,
        contrastive_weight=0.05,
        text_feat="./data/electronics_raw/text_feat.npy",
        image_feat="./data/electronics_raw/image_feat.npy",
    ),
}
SHARED = dict(
    model="lgn_mm",
    use_multimodal=1,
    item_branch_layers=1,
    layer=3,
    lr=8e-4,
    bpr_batch=4096,
    topks=(10,),
    fusion="oat",
)

# All flags of the parser of the released code.
RELEASED_FLAGS = """
    seed cuda gpu_id recdim layer lr decay bpr_batch epochs topks test_u_batch_size tensorboard
    dataset path model use_multimodal text_feat user_text_feat image_feat audio_feat item_text_graph
    user_text_graph item_image_graph item_audio_graph force_build_item_knn item_knn_k
    item_branch_layers user_branch_layers fusion attn_heads attn_dropout fuse_drop alpha beta eta
    contrastive_weight temperature modality_consistency_weight warm_up_steps batch_size multicore
    pretrain a_split a_fold
"""


def test_flags_and_settings_are_the_same():
    flags = {
        option.removeprefix("--") for action in make_parser()._actions for option in action.option_strings
    }
    fields = {field.name for field in dataclasses.fields(Config)}
    assert fields <= flags
    others = {"preset", "config", "test_u_batch_size", "image_weight", "text_weight"}
    assert flags - fields == {"h", "-h", "help"} & flags | others | set(NO_EFFECT)


def test_all_flags_of_the_released_parser_are_known():
    known = {option for action in make_parser()._actions for option in action.option_strings}
    assert [name for name in RELEASED_FLAGS.split() if f"--{name}" not in known] == []


def test_no_flags_give_the_defaults_and_no_notes():
    assert parse_args([]) == (Config(), [])


# These flags read a run, and are tested with one.
READS_A_RUN = ("resume", "checkpoint", "evaluate_only")


@pytest.mark.parametrize(
    "field",
    [field for field in dataclasses.fields(Config) if field.name not in READS_A_RUN],
    ids=lambda field: field.name,
)
def test_a_flag_sets_its_own_field_and_no_other(field):
    rules, kind = field.metadata, type(field.default)
    if rules["choices"]:
        value = next(choice for choice in rules["choices"] if choice != field.default)
    elif kind is tuple:
        value = (3, 7)
    elif kind is str:
        checked = {"valid_metric": "ndcg@10", "model": "vbpr", "missing": "text:0.3"}
        value = checked.get(field.name, "elsewhere")
    else:
        value = kind(field.default + 1)
        if rules["high"] is not None and value > rules["high"]:
            value = kind(rules["high"] / 2)
    assert value != field.default
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    config, _ = parse_args([f"--{field.name}", text])
    recipe = recipe_settings(value, {}) if field.name == "recipe" else {}
    assert config == Config(**{**recipe, field.name: value})
    assert type(getattr(config, field.name)) is kind


def test_test_u_batch_size_is_an_alias_of_eval_chunk():
    assert parse_args(["--test_u_batch_size", "77"])[0].eval_chunk == 77


@pytest.mark.parametrize(
    "text, ks",
    [
        ("[10]", (10,)),
        ("[10,20]", (10, 20)),
        ("10,20", (10, 20)),
        ("20", (20,)),
        ("[10, 20]", (10, 20)),
        (" 20 , 5,20 ", (5, 20)),
        ("[ 1 ]", (1,)),
    ],
)
def test_accepted_forms_of_topks(text, ks):
    assert parse_args(["--topks", text])[0].topks == ks


@pytest.mark.parametrize(
    "text",
    [
        "[10",
        "10]",
        "[[10]]",
        '__import__("os")',
        "10;20",
        "10 20",
        "",
        "[]",
        "-1",
        "0",
        "5,0",
        "10.5",
        "1e2",
        "ten",
        "10,",
        "٣",
        "9" * 30,
    ],
)
def test_refused_forms_of_topks(text):
    with pytest.raises(UserError, match="--topks"):
        parse_args(["--topks", text])


def test_recipe_released_sets_its_values_and_explicit_flags_win():
    config, _ = parse_args(["--recipe", "released"])
    assert RECIPES["released"]
    for name, value in RECIPES["released"].items():
        assert getattr(config, name) == value, name
    values = {**RECIPES["released"], "recipe": "released", "feat_dropout": 0.1, "branch_dropout": 0.1}
    assert config == Config(**values) != Config(recipe="released")
    config, _ = parse_args(["--plan_every", "7", "--recipe", "released", "--contrastive_sign", "attract"])
    assert config == Config(**{**values, "plan_every": 7, "contrastive_sign": "attract"})


def test_fuse_drop_of_the_released_recipe_is_the_dropout_of_the_attention_layers_too():
    config, _ = parse_args(["--recipe", "released", "--fuse_drop", "0.3", "--branch_dropout", "0.2"])
    assert (config.attn_dropout, config.feat_dropout, config.branch_dropout) == (0.3, 0.3, 0.2)
    config, _ = parse_args(["--recipe", "paper", "--fuse_drop", "0.3"])
    assert (config.attn_dropout, config.feat_dropout, config.branch_dropout) == (0.0, 0.0, 0.0)


def test_fuse_drop_of_a_file_counts_for_a_recipe_in_it_but_not_beside_it(tmp_path):
    (tmp_path / "own.json").write_text('{"fuse_drop": 0.3}')
    config, _ = parse_args(["--config", str(tmp_path / "own.json"), "--recipe", "released"])
    assert (config.fuse_drop, config.attn_dropout, config.branch_dropout) == (0.1, 0.1, 0.1)
    (tmp_path / "own.json").write_text('{"fuse_drop": 0.3, "recipe": "released"}')
    config, _ = parse_args(["--config", str(tmp_path / "own.json")])
    assert (config.fuse_drop, config.attn_dropout, config.branch_dropout) == (0.3, 0.3, 0.3)


def test_an_explicit_flag_equal_to_the_default_wins_over_the_recipe():
    config, _ = parse_args(["--recipe", "released", "--feat_dropout", "0", "--select_on", "valid"])
    assert (config.feat_dropout, config.select_on, config.branch_dropout) == (0.0, "valid", 0.1)


def test_recipe_default_sets_nothing():
    assert parse_args(["--recipe", "default"])[0] == Config()


def test_recipe_paper_sets_its_values():
    assert parse_args(["--recipe", "paper"])[0] == Config(**RECIPES["paper"], recipe="paper") != Config()


@pytest.mark.parametrize("name", NO_EFFECT)
def test_a_flag_without_effect_gives_a_note_and_changes_nothing(name):
    config, notes = parse_args([f"--{name}", "3"])
    assert config == Config()
    assert (
        len(notes) == 1
        and notes[0].startswith("note: ")
        and f"--{name} " in notes[0]
        and NO_EFFECT[name] in notes[0]
    )


@pytest.mark.parametrize("argv", [["--dat", "baby"], ["--epoch", "3"], ["--data", "x"], ["--use_multi", "1"]])
def test_abbreviations_are_refused(argv):
    with pytest.raises(UserError, match=re.escape(argv[0])):
        parse_args(argv)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--no_such", "1"], "--no_such"),
        (["baby"], "baby"),
        (["--epochs", "ten"], "--epochs"),
        (["--epochs", "1.5"], "--epochs"),
        (["--epochs"], "--epochs"),
        (["--lr", "fast"], "--lr"),
        (["--model", "svd"], "--model"),
        (["--cuda", "2"], "--cuda"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "inf"], "--lr inf"),
        (["--eta", "1.01"], "--eta 1.01: must be at most 1"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", str(2**32)], "--seed"),
    ],
)
def test_bad_values_name_the_flag(argv, words):
    with pytest.raises(UserError) as caught:
        parse_args(argv)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_commands(name):
    assert parse_args(shlex.split(COMMANDS[name])) == (Config(**SHARED, **RELEASED[name]), [])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_groups_flags_and_defaults(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args([flag])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for group in GROUPS:
        assert f"\n{group}:\n" in text
    flat = " ".join(text.split())
    for field in dataclasses.fields(Config):
        assert re.search(rf"^ +--{field.name}\b", text, re.MULTILINE), field.name
        assert " ".join(field.metadata["help"].split()) in flat, field.name
        if field.default not in ("", (10, 20)):
            assert f"(default {field.default})" in flat
    assert "(default 10,20)" in flat
    for name, why in NO_EFFECT.items():
        assert f"--{name}" in flat and why in flat


def test_every_setting_belongs_to_a_known_group_and_has_help():
    for field in dataclasses.fields(Config):
        assert field.metadata["group"] in GROUPS and field.metadata["help"]


def test_recipes_name_real_settings_with_allowed_values():
    for recipe in RECIPES.values():
        assert set(recipe) <= {field.name for field in dataclasses.fields(Config)}
        Config(**recipe)
