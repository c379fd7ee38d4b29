"""Built-in models and classes from a user's own file, as --model names them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from main import main
from models.base import Recommender
from models.registry import MODELS, checked, config_class, find_model, is_external, label, slug, source_hash
from parse import parse_args
from utils import UserError
from world import Config

ROOT = Path(__file__).resolve().parents[2]
MODEL = """
from models.mf import MF
from world import setting

class Mine(MF):
    settings = {"margin": setting(0.5, "model", "a margin", low=0.0, high=2.0)}
"""


@pytest.fixture
def own_model(tmp_path):
    """Function: source text of a file -> its --model for the class Mine."""

    def write(text=MODEL, name="own.py"):
        (tmp_path / name).write_text(text)
        return f"{tmp_path / name}:Mine"

    return write


# ---------------------------------------------------------------- built-in models


@pytest.mark.parametrize("model", MODELS)
def test_every_built_in_model_is_a_recommender_with_a_label(model):
    found = find_model(model)
    assert issubclass(found, Recommender) and found.__name__ == MODELS[model].target.partition(":")[2]
    assert label(model) == MODELS[model].label and slug(model) == model and not is_external(model)
    assert source_hash(model) is None and MODELS[model].summary
    assert found.settings == MODELS[model].settings


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"--model light: choose from mf, lgn, .*lgn_mm.*FILE\.py:CLASS"):
        find_model("light")
    assert label("light") == "light"


def test_names_are_known_without_torch():
    code = "import sys; from models.registry import label; print(label('lgn_mm'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "RecGOAT False\n"


def test_config_of_a_model_without_settings_is_the_common_one():
    assert config_class("lgn") is Config
    names = {field.name for field in dataclasses.fields(config_class("itemknn"))}
    assert names - {field.name for field in dataclasses.fields(Config)} == {"itemknn_k", "itemknn_similarity"}


def test_checked_returns_the_config_or_refuses_what_the_model_cannot_have(own_model):
    config = Config(model="lgn", recdim=10)
    assert checked(config) is config
    with pytest.raises(UserError, match="--recdim 10 is not divisible by --attn_heads 8"):
        checked(Config(model="lgn_mm", recdim=10))
    with pytest.raises(UserError, match="choose from"):
        checked(Config(model="nothing"))
    model = own_model(
        MODEL
        + """
    @classmethod
    def check(cls, config):
        if config.margin > config.lr:
            from utils import UserError
            raise UserError("--margin: must not exceed --lr")
"""
    )
    assert checked(config_class(model)(model=model, margin=0.5, lr=0.6)).margin == 0.5
    with pytest.raises(UserError, match="--margin: must not exceed --lr"):
        checked(config_class(model)(model=model, margin=0.5, lr=0.1))


# ---------------------------------------------------------------- classes from a file


def test_a_class_of_a_file_is_found_once(own_model):
    model = own_model()
    found = find_model(model)
    assert issubclass(found, Recommender) and found.__name__ == "Mine" and find_model(model) is found
    assert is_external(model) and label(model) == slug(model) == "Mine"
    changed = source_hash(model)
    own_model(MODEL + "\n# a comment\n")
    assert len(changed) == 64 and source_hash(model) != changed


@pytest.mark.parametrize(
    "name", ["absent.py:Mine", "folder.py:Mine", "own.txt:Mine", ":Mine", "own.py::Mine"]
)
def test_a_file_that_does_not_exist_or_is_no_python_file_is_refused(own_model, tmp_path, name):
    own_model(), own_model(name="own.txt")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UserError, match=r"is not a Python file; name a class as FILE\.py:CLASS"):
        find_model(f"{tmp_path}/{name}")
    with pytest.raises(UserError, match=r"choose from .*, or name a class of your own as FILE\.py:CLASS"):
        find_model(f"{tmp_path}/own.py")


@pytest.mark.parametrize("text", ["", "Mine = 3", "class Mine:\n    pass", "def Mine(config, dataset): ..."])
def test_a_class_that_is_missing_or_no_recommender_is_refused(own_model, text):
    with pytest.raises(UserError, match=r"own\.py has no class Mine that extends models\.base\.Recommender"):
        find_model(own_model(text))


@pytest.mark.parametrize(
    "text, line, error",
    [
        ("x = 1\ny = x / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("import json\n\njson.loads('{')\n", 3, "JSONDecodeError: Expecting property name"),
        ("import no_such_module\n", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f():\n    return missing\n\nf()\n", 2, "NameError: name 'missing' is not defined"),
    ],
)
def test_an_exception_in_the_file_names_its_innermost_line(own_model, text, line, error):
    with pytest.raises(UserError, match=rf"own\.py, line {line}: {error}.*; correct the file"):
        find_model(own_model(text))


def test_a_syntax_error_names_its_line(own_model):
    with pytest.raises(UserError, match=r"own\.py.*SyntaxError: .*line 2"):
        find_model(own_model("x = 1\nclass Mine(:\n"))


def test_a_relative_file_name_works_and_its_exceptions_name_their_line(own_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_model(name="good.py"), own_model("x = 1\nx.y\n", name="bad.py")
    assert find_model("good.py:Mine").__name__ == "Mine"
    with pytest.raises(UserError, match=r"^bad\.py, line 2: AttributeError"):
        find_model("bad.py:Mine")


def test_two_files_of_the_same_name_are_two_modules(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(MODEL + f"    home = {folder!r}\n")
    found = [find_model(f"{tmp_path / folder / 'own.py'}:Mine") for folder in ("a", "b")]
    assert [model.home for model in found] == ["a", "b"]
    assert found[0].__module__ != found[1].__module__


# ---------------------------------------------------------------- settings of a model


def test_own_settings_become_checked_fields_and_flags(own_model):
    model = own_model()
    config = config_class(model)(model=model)
    assert config.margin == 0.5 and isinstance(config, Config)
    assert config.as_dict()["margin"] == 0.5
    assert config_class(model)(model=model, margin=1.5).non_defaults() == ["model", "margin"]
    assert parse_args(["--model", model, "--margin", "0.75", "--lr", "0.01"])[0].margin == 0.75
    for words, message in (
        (["--margin", "3"], "--margin 3.0: must be at most 2"),
        (["--margin", "x"], "margin"),
    ):
        with pytest.raises(UserError, match=message):
            parse_args(["--model", model, *words])
    with pytest.raises(UserError, match="--margin"):
        parse_args(["--model", "mf", "--margin", "0.75"])


@pytest.mark.parametrize(
    "name, value",
    [
        ("lr", "setting(0.5, 'model', 'a rate')"),
        ("selection_metric", "setting(0.5, 'model', 'a name of a property')"),
        ("as_dict", "setting(0.5, 'model', 'a name of a method')"),
        ("two words", "setting(0.5, 'model', 'no name')"),
        ("help", "setting(0.5, 'model', 'a flag of every program')"),
        ("test_u_batch_size", "setting(0.5, 'model', 'a second flag of a setting')"),
        ("margin", "setting(0.5, 'margins', 'an unknown group')"),
        ("class", "setting(0.5, 'model', 'a keyword')"),
        ("margin", "setting((1, 2), 'model', 'a tuple')"),
        ("margin", "setting(None, 'model', 'nothing')"),
        ("margin", "dataclasses.field(default=0.5)"),
        ("margin", "0.5"),
    ],
)
def test_settings_that_cannot_be_fields_are_refused(own_model, name, value):
    text = f"import dataclasses\n{MODEL}".replace('"margin"', repr(name))
    model = own_model(text.replace('setting(0.5, "model", "a margin", low=0.0, high=2.0)', value))
    message = rf"--model .*own\.py:Mine: setting '{name}' must have a new name and be made by world\.setting"
    with pytest.raises(UserError, match=message):
        config_class(model)


# ---------------------------------------------------------------- a run


def test_a_class_of_a_file_trains_and_scores_like_a_built_in_model(own_model, small_dataset, tmp_path):
    model = own_model()
    flags = {
        "dataset": "small",
        "data_root": small_dataset.parent,
        "path": tmp_path / "runs",
        "recdim": 4,
        "epochs": 1,
        "eval_every": 1,
        "topks": 5,
        "tensorboard": 0,
        "cuda": 0,
    }
    run_flags = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert main(["--model", model, "--margin", "0.25", *run_flags]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert "Mine" in folder.name and os.sep not in folder.name
    stored = json.loads((folder / "config.json").read_text())
    assert stored["margin"] == 0.25 and stored["model"] == model
    checkpoint = ["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt"), "--cuda", "0"]
    assert main([*checkpoint, "--model", model]) == 0
    # A stored file name alone never runs code.
    assert main(checkpoint) == 2


def test_an_own_setting_may_have_the_name_of_a_flag_without_effect(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from models.mf import MF\nfrom world import setting\n\n\n"
        'class Mine(MF):\n    settings = {"batch_size": setting(3, "model", "a size", low=1)}\n'
    )
    config, notes = parse_args(["--model", f"{path}:Mine", "--batch_size", "7"])
    assert vars(config)["batch_size"] == 7 and not notes
    assert parse_args(["--batch_size", "7"])[1] == [
        "note: --batch_size has no effect: --bpr_batch sets the batch size"
    ]
