"""The command line of main.py, made from the fields of world.Config.

    config, notes = parse_args(["--dataset", "baby_raw", "--model", "lgn_mm", "--topks", "[10,20]"])

A field's help and default are those of its flag. A model can have settings of its own, which are
flags while --model names it. Nothing here imports torch, unless --model names a class of the user's own: an
error in a command line is reported at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli import Parser
from models.registry import MODELS, checked, config_class, is_external, label
from settings_file import preset_names, preset_path, read_file
from training.folder import changed_settings, known_settings
from training.records import read_settings
from utils import UserError
from world import GROUPS, OF_RECIPES, Config, recipe_settings

EPILOG = """examples:
  python main.py --dataset demo --model lgn
  python main.py --preset baby-small
Results are written to a new folder under --path; view them with: tensorboard --logdir runs"""

RESUME_REMEDY = "--resume takes a run folder"
# A run writes config.json first: a run folder without it was left by a process that was killed at its start.
NO_CONFIG = f"{RESUME_REMEDY}; if it was killed before it wrote anything, remove it and start a new run"

# Flags of the released code's parser that have no effect there either, so that its command lines still run.
NO_EFFECT = {
    "warm_up_steps": "the learning rate has no warm-up",
    "batch_size": "--bpr_batch sets the batch size",
    "multicore": "evaluation is vectorised; --threads sets the CPU threads",
    "pretrain": "embeddings always start from N(0, 0.1^2)",
    "a_split": "the user-item graph is never split",
    "a_fold": "the user-item graph is never split",
}


def integer_list(text: str) -> tuple[int, ...]:
    """Parse '[10, 20]', '10,20' or '20' as (10, 20): sorted, without repetitions."""
    body = re.fullmatch(r"\s*\[?\s*(\d{1,9}(?:\s*,\s*\d{1,9})*)\s*\]?\s*", text, re.ASCII)
    if not body or text.count("[") != text.count("]"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of whole numbers as 10,20 or [10,20]")
    return tuple(sorted({int(word) for word in body[1].split(",")}))


def make_parser(cls: type[Config] = Config) -> Parser:
    """Parser with a flag for each field of a Config class, in groups. Flags that are not given are absent."""
    parser = Parser(
        prog="python main.py",
        usage=f"python main.py --dataset NAME --model {{{','.join(MODELS)},FILE.py:CLASS}} [flags]",
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="RecGOAT (arXiv 2602.00682): multimodal recommendation with graphs. Trains a model,\n"
        "selects its best epoch on validation, scores the test split once, and writes a run folder.\n"
        "[NAME] marks a flag that only the models NAME have.",
    )
    parser.elsewhere = {
        name: f"--model {model}" for model, entry in MODELS.items() for name in entry.settings
    }
    files = parser.add_argument_group("settings from a file; flags take precedence")
    presets = ", ".join(preset_names())
    files.add_argument("--preset", metavar="NAME", help=f"settings of presets/NAME.json: {presets}")
    files.add_argument("--config", metavar="FILE", help="JSON or YAML, such as the config.json of a run")
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for field in dataclasses.fields(cls):
        add_flag(groups[field.metadata["group"]], field)
    ignored = parser.add_argument_group("accepted without effect, for command lines of the released code")
    for name, reason in without_effect(cls).items():
        ignored.add_argument(f"--{name}", metavar="X", help=reason)
    return parser


def add_flag(group: argparse._ArgumentGroup, field: dataclasses.Field) -> None:
    """Add the flag of a setting, with its aliases and its help, to a group of the parser."""
    rules, is_list = field.metadata, isinstance(field.default, tuple)
    kind = integer_list if is_list else type(field.default)
    group.add_argument(
        f"--{field.name}",
        *(f"--{name}" for name in rules["alias"]),
        type=kind,
        dest=field.name,
        choices=rules["choices"],
        metavar=None if rules["choices"] else kind.__name__.removesuffix("_list").upper(),
        help=help_text(field).replace("%", "%%"),
    )


def help_text(field: dataclasses.Field) -> str:
    """The help of a setting: the models that have it, if not all do, what it is, and its default."""
    models, default = field.metadata["models"], field.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    text = (f"[{', '.join(models)}] " if models else "") + field.metadata["help"]
    text += f" (default {shown})" if shown else ""
    if field.name == "model":
        text += "; " + "; ".join(f"{name}: {entry.summary}" for name, entry in MODELS.items())
        text += ". With --model NAME, --help lists the flags that NAME alone has"
    return text


def without_effect(cls: type[Config]) -> dict[str, str]:
    """NO_EFFECT without the names that a model has given to settings of its own."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: reason for name, reason in NO_EFFECT.items() if name not in names}


def parse_args(argv: Sequence[str] | None = None) -> tuple[Config, list[str]]:
    """Config of a command line, and notes for the user about flags without effect.

    A setting is that of its flag, else of --recipe, of --config, of --preset, or the default; beside --recipe
    those in OF_RECIPES are never of --config or --preset. With --resume or --checkpoint, the settings of that
    run take the place of the defaults. Raises UserError for an unknown flag or a value that is not allowed.
    Whether the model can be built is for models.registry.checked to say, which imports it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    named = named_values(argv)
    stored, source = stored_settings(named)
    cls = config_class(named["model"] or stored.get("model", Config.model))
    given = vars(make_parser(cls).parse_args(argv))
    notes = [
        f"note: --{name} has no effect: {reason}"
        for name, reason in without_effect(cls).items()
        if given.pop(name, None) is not None
    ]
    given = {name: value for name, value in given.items() if name not in ("preset", "config")}
    of_run = bool(named["resume"] or named["checkpoint"])
    if "recipe" in given:
        if not of_run:
            stored = {name: value for name, value in stored.items() if name not in OF_RECIPES}
        explicit = given if of_run else {**stored, **given}
        given = {**recipe_settings(given["recipe"], explicit), **given}
    elif not of_run:
        # A value that is no text is refused later, with its name.
        stored = {**recipe_settings(str(stored.get("recipe", Config.recipe)), {**stored, **given}), **stored}
    if named["checkpoint"]:
        for name in given.keys() & {"select_on", "valid_metric"}:
            raise UserError(f"--{name}: the epoch of a checkpoint has been selected already; leave it out")
        stored["valid_metric"] = make_config(cls, stored).selection_metric
    if given.get("resume"):
        return resumed_config(make_config(cls, stored), given, source), notes
    return make_config(cls, {**stored, "resume": "", **given}), notes


def named_values(argv: Sequence[str]) -> dict[str, str]:
    """The values of the flags that decide what other flags exist or what their defaults are; "" if absent."""
    parser = Parser(add_help=False, allow_abbrev=False, prog="python main.py")
    for name in ("model", "resume", "checkpoint", "preset", "config"):
        parser.add_argument(f"--{name}", default="")
    return vars(parser.parse_known_args(argv)[0])


def stored_settings(named: Mapping[str, str]) -> tuple[dict[str, typing.Any], str]:
    """Settings of the run or of the files that a command line names, and where they are from, for errors."""
    run, file = named["resume"] or named["checkpoint"], named["preset"] or named["config"]
    if run and file:
        raise UserError(f"{run}: a run keeps its own settings; drop --preset and --config")
    if named["resume"]:
        source = str(Path(named["resume"]) / "config.json")
        stored = read_settings(source, RESUME_REMEDY if Path(source).exists() else NO_CONFIG)
        return run_settings(stored, source, named["model"]), source
    if named["checkpoint"]:
        return run_settings(checkpoint_settings(run), run, named["model"]), run
    return file_settings(named), file


def run_settings(stored: typing.Any, source: object, model: str) -> dict[str, typing.Any]:
    """The settings of a run. Raises UserError if --model names another model than that of the run."""
    settings = restorable(stored, source, model)
    own = settings.get("model", Config.model)
    if model and model != own:
        raise UserError(f"{source}: was trained with --model {own}; drop --model {model}")
    return settings


def checkpoint_settings(path: str) -> typing.Any:
    """The settings in a checkpoint."""
    if not Path(path).is_file():  # said at once, without torch
        raise UserError(f"{path}: is not a file; name a checkpoint as RUN_FOLDER/best.pt")
    from training.checkpoint import read_checkpoint

    return read_checkpoint(path)["config"]


def file_settings(named: Mapping[str, str]) -> dict[str, typing.Any]:
    """Settings of --preset and, above them, of --config, without those that only another model has."""
    paths = [preset_path(named["preset"])] if named["preset"] else []
    paths += [Path(named["config"])] if named["config"] else []
    values: dict[str, typing.Any] = {}
    for path in paths:
        stored = read_file(path)
        model = stored.get("model") or named["model"] or values.get("model", Config.model)
        known = restorable({**stored, "model": model}, path, named["model"])
        values |= {name: value for name, value in known.items() if name in stored}
    cls = config_class(named["model"] or values.get("model", Config.model))
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def restorable(stored: typing.Any, source: object, model: str = "") -> dict[str, typing.Any]:
    """Stored settings of a run as arguments of its Config class; `source` names them in errors.

    model: --model as given by the user. A stored file name never runs code: a run of a user's own class is
    restored only if the user names the class again, wherever its file is now.
    """
    if not isinstance(stored, Mapping) or not isinstance(stored.get("model", ""), str):
        raise UserError(f"{source}: contains no settings")
    own = stored.get("model", Config.model)
    if is_external(own):
        if not is_external(model) or label(model) != label(own):
            raise UserError(f"{source}: was trained with the class {own}; add --model {own} to run that file")
        stored = {**stored, "model": model}
    return known_settings(stored, source, config_class(stored.get("model", Config.model)))


def restored_config(stored: typing.Any, source: object, model: str = "", **changes: typing.Any) -> Config:
    """Config of a stored run with some settings changed, for other uses than training; see restorable."""
    values = {
        **run_settings(stored, source, model),
        "resume": "",
        "evaluate_only": 0,
        "checkpoint": "",
        **changes,
    }
    return checked(make_config(config_class(values.get("model", Config.model)), values))


def make_config(cls: type[Config], values: Mapping[str, typing.Any]) -> Config:
    """Config of these settings. Raises UserError for numbers and texts that no library could handle."""
    for name, value in values.items():
        if isinstance(value, int) and abs(value) > 2**32:
            raise UserError(f"--{name}: is too large a number; give a smaller one")
        if isinstance(value, str) and re.search("[\\0-\\x1f\\ud800-\\udfff]", value):
            raise UserError(
                f"--{name} {value!r:.60}: contains control characters or is not UTF-8; give another"
            )
    return cls(**values)


def resumed_config(stored: Config, given: Mapping[str, typing.Any], source: object) -> Config:
    """Config of a resumed run: its stored settings and the given changes.

    Raises UserError if these would change the result.
    """
    if changes := changed_settings(stored, given):
        raise UserError(
            f"{source}: a resumed run keeps its settings; drop {', '.join(changes)}, or start a new run"
        )
    values = {**dataclasses.asdict(stored), "evaluate_only": 0, "checkpoint": "", **given}
    config = make_config(type(stored), values)
    if config.epochs < stored.epochs:
        raise UserError(
            f"--epochs {config.epochs}: the run was started with {stored.epochs}; a resumed run may only "
            "have more"
        )
    return config
