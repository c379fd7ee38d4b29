"""Settings from files: presets and --config, with their precedence."""

import json

import pytest

from parse import parse_args
from settings_file import preset_names, preset_path
from utils import UserError
from world import RECIPES, Config, recipe_settings

PAPER = {
    "baby-paper": (800, 20, 0.032),
    "sports-paper": (600, 30, 0.005),
    "electronics-paper": (200, 20, 0.05),
}


@pytest.fixture
def write(tmp_path):
    """Function: settings or text -> path of a file with them."""

    def write(content, name="settings.json"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_what_it_is_and_names_data_and_model(name):
    stored = json.loads(preset_path(name).read_text())
    config, notes = parse_args(["--preset", name])
    assert stored.pop("about") and stored["dataset"] and not notes
    assert {key: value for key, value in config.as_dict().items() if key in stored} == stored
    flags = [word for key, value in stored.items() for word in (f"--{key}", str(value))]
    assert parse_args(flags)[0] == config


@pytest.mark.parametrize("name", PAPER)
def test_presets_of_the_paper_are_the_published_settings(name):
    config, _ = parse_args(["--preset", name])
    assert (config.recdim, config.item_knn_k, config.contrastive_weight) == PAPER[name]
    assert (config.lr, config.layer, config.bpr_batch, config.topks) == (8e-4, 3, 4096, (10,))


def test_a_flag_precedes_config_precedes_preset_precedes_default(write):
    argv = ["--preset", "baby-small", "--config", write({"lr": 0.5, "layer": 1}), "--layer", "2"]
    config, _ = parse_args(argv)
    assert (config.layer, config.lr, config.recdim, config.seed) == (2, 0.5, 64, Config.seed)
    assert parse_args(argv[2:])[0] == Config(lr=0.5, layer=2)


def test_a_recipe_precedes_what_is_written_after_it_and_no_more(write):
    in_file = write({"recipe": "released", "eval_every": 7})
    values = {**recipe_settings("released", {}), "recipe": "released"}
    assert parse_args(["--config", in_file])[0] == Config(**{**values, "eval_every": 7})
    in_file = write({"eval_every": 7, "lr": 0.5})
    assert parse_args(["--config", in_file, "--recipe", "released"])[0] == Config(**values, lr=0.5)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("file", ["baby-small", "baby-plus", "lastfm", "baby-paper", "released", "paper"])
def test_a_recipe_beside_a_file_is_the_recipe_alone(write, file, recipe):
    given = ["--preset", file]
    if file in RECIPES:
        given = ["--config", write(parse_args(["--recipe", file])[0].as_dict())]
    config, alone = (parse_args([*argv, "--recipe", recipe])[0] for argv in (given, []))
    kept = {"dataset", "recdim", "layer", "lr", "epochs", "bpr_batch", "precision", "eval_every", "patience"}
    kept |= {"model", "fusion", "beta", "alpha", "item_knn_k", "contrastive_weight", "topks"}
    kept |= {"item_branch_layers", "user_branch_layers"}
    for name in vars(alone).keys() - (kept - RECIPES[recipe].keys()):
        assert getattr(config, name) == getattr(alone, name), name
    flags = ["--modality_decay", "0.3", "--fuse_norm", "layer"]
    config = parse_args([*given, "--recipe", recipe, *flags])[0]
    assert config.modality_decay == 0.3 and config.fuse_norm == "layer"


def test_settings_follow_a_flag_as_the_recipe_of_a_file_says(write):
    config, _ = parse_args(["--config", write({"recipe": "released"}), "--fuse_drop", "0.3"])
    assert config.fuse_drop == config.attn_dropout == config.feat_dropout == config.branch_dropout == 0.3


def test_cut_offs_have_one_order(write):
    config, _ = parse_args(["--config", write({"topks": [20, 10, 20]})])
    assert config.topks == (10, 20) and config.selection_metric == "ndcg@10"


def test_the_config_of_a_run_gives_its_settings_but_not_its_state(write):
    config = Config(dataset="demo", lr=0.25, topks=(5,), resume="runs/old", name="mine")
    path = write({**config.as_dict(), "provenance": {"torch": "2"}})
    assert parse_args(["--config", path])[0] == Config(dataset="demo", lr=0.25, topks=(5,), name="mine")


def test_settings_that_a_model_alone_has(write):
    path = write({"model": "itemknn", "itemknn_k": 5, "lr": 0.5})
    assert vars(parse_args(["--config", path])[0])["itemknn_k"] == 5
    assert parse_args(["--config", path, "--model", "mf"])[0] == Config(model="mf", lr=0.5)
    path = write({"ease_l2": 3})
    assert vars(parse_args(["--config", path, "--model", "ease"])[0])["ease_l2"] == 3


def test_other_names_of_a_setting(write):
    expected = Config(alpha=0.1, beta=0.7)
    assert parse_args(["--config", write({"image_weight": 0.1, "text_weight": 0.7})])[0] == expected
    assert parse_args(["--image_weight", "0.1", "--text_weight", "0.7"])[0] == expected


def test_yaml(write):
    pytest.importorskip("yaml")
    path = write("about: a comment\nmodel: mf\nlr: 1e-3\ntopks: [10, 20]\nname: it's\n", "settings.yaml")
    assert parse_args(["--config", path])[0] == Config(model="mf", lr=1e-3, topks=(10, 20), name="it's")


@pytest.mark.parametrize(
    "content, name, words",
    [
        ({"learning_rat": 3}, "a.json", "a.json: has unknown settings (learning_rat)"),
        ({"recdm": 3}, "a.json", "did you mean recdim?"),
        ({"lr": "fast"}, "a.json", "--lr fast: must be of type float"),
        ({"recipe": [[1]]}, "a.json", "--recipe"),
        ({"model": ["mf"]}, "a.json", "model is ['mf'], not a text"),
        ({"lr": -1}, "a.json", "--lr -1: must be at least 0"),
        ({"model": "svd"}, "a.json", "--model svd: choose from"),
        ({"model": "own.py:Mine"}, "a.json", "add --model own.py:Mine"),
        ("[1]", "a.json", "a.json: is not a JSON object"),
        ("{", "a.json", "a.json: is not JSON"),
        ("lr: [", "a.yaml", "a.yaml: is not YAML"),
        ("- lr", "a.yaml", "a.yaml: contains no settings"),
        ("lr: !!python/object/apply:os.getcwd []", "a.yml", "a.yml: is not YAML"),
    ],
)
def test_bad_files_are_refused(write, content, name, words):
    with pytest.raises(UserError) as caught:
        parse_args(["--config", write(content, name)])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--resume", "--checkpoint"])
def test_a_run_keeps_its_own_settings(write, flag):
    with pytest.raises(UserError, match="drop --preset and --config"):
        parse_args([flag, "runs/old", "--config", write({"lr": 0.5})])
