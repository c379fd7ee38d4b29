"""The command line, made from the fields of world.Config: a field's help is the flag's help, its default the default.

parse_args(["--dataset", "baby_raw", "--topks", "[10,20]"])  ->  (Config(...), notes)
"""

import argparse
import dataclasses
import re
from pathlib import Path

from cli import Parser
from training.checkpoint import read_checkpoint
from utils import UserError
from world import GROUPS, RECIPES, Config, changed_settings, read_settings, settings_of

EPILOG = """examples:
  python main.py --dataset demo --model lgn
  python main.py --dataset baby_raw --model lgn_mm --text_feat data/baby_raw/text_feat.npy --image_feat data/baby_raw/image_feat.npy
Results land in a new folder under --path; look at them with: tensorboard --logdir runs"""

# Flags of the released parser that do nothing there either: accepted, so that old command lines run, and answered.
NO_EFFECT = {
    "warm_up_steps": "the learning rate has no warm-up",
    "batch_size": "--bpr_batch sets the batch size",
    "multicore": "evaluation is vectorised; --threads sets the CPU threads",
    "pretrain": "embeddings always start from N(0, 0.1^2)",
    "a_split": "the user-item graph is never split",
    "a_fold": "the user-item graph is never split",
}


def integer_list(text):
    """'[10, 20]', '10,20' or '20' -> (10, 20): sorted, each once."""
    body = re.fullmatch(r"\s*\[?\s*(\d{1,9}(?:\s*,\s*\d{1,9})*)\s*\]?\s*", text, re.ASCII)
    if not body or text.count("[") != text.count("]"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of whole numbers as 10,20 or [10,20]")
    return tuple(sorted({int(word) for word in body[1].split(",")}))


def make_parser():
    """One flag a field of Config, in the groups of world.GROUPS. Absent flags stay absent, so recipes can tell."""
    parser = Parser(
        prog="python main.py",
        usage="python main.py --dataset NAME --model {mf,lgn,vbpr,freedom,lgn_mm} [flags]",
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="RecGOAT (arXiv 2602.00682): multimodal recommendation with graphs. Trains, selects on "
        "validation,\nscores the test split once, and leaves a run folder.",
    )
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for field in dataclasses.fields(Config):
        rules = field.metadata
        kind = integer_list if field.type is tuple else field.type
        default = ",".join(map(str, field.default)) if field.type is tuple else field.default
        shown = "" if default == "" else f" (default {default})"
        groups[rules["group"]].add_argument(
            f"--{field.name}",
            *(f"--{name}" for name in rules["alias"]),
            type=kind,
            dest=field.name,
            choices=rules["choices"],
            metavar=None if rules["choices"] else kind.__name__.removesuffix("_list").upper(),
            help=(rules["help"] + shown).replace("%", "%%"),
        )
    ignored = parser.add_argument_group("accepted without effect, for command lines of the released code")
    for name, why in NO_EFFECT.items():
        ignored.add_argument(f"--{name}", metavar="X", help=why)
    return parser


def parse_args(argv=None):
    """Command line -> (Config, notes): explicit flags, then the recipe's settings, then defaults.

    With --resume or --checkpoint, the settings of that run stand in place of the defaults.
    notes are lines for the user about flags that have no effect. Raises UserError on an unknown flag or value.
    """
    given = vars(make_parser().parse_args(argv))
    notes = [
        f"note: --{name} has no effect: {why}"
        for name, why in NO_EFFECT.items()
        if given.pop(name, None) is not None
    ]
    given = {**RECIPES.get(given.get("recipe", "paper"), {}), **given}
    if given.get("resume"):
        return resumed_config(given), notes
    stored = {}
    if given.get("checkpoint"):
        stored = settings_of(read_checkpoint(given["checkpoint"])["config"], given["checkpoint"])
    return make_config({**stored, "resume": "", **given}), notes


def make_config(values):
    """Config of these settings; refuses numbers and paths that no library below could take, whatever their origin."""
    for name, value in values.items():
        if isinstance(value, int) and abs(value) > 2**32:
            raise UserError(f"--{name}: is too large a number; give a smaller one")
        if isinstance(value, str) and re.search("[\\0-\\x1f\\ud800-\\udfff]", value):
            raise UserError(
                f"--{name} {value!r:.60}: holds control characters or bytes that are no UTF-8; give another"
            )
    return Config(**values)


def resumed_config(given):
    """Config of a resumed run: its stored settings and the given changes. Raises UserError if these change the result."""
    path = Path(given["resume"]) / "config.json"
    stored = read_settings(path)
    changes = changed_settings(stored, given)
    if changes:
        raise UserError(
            f"{path}: a resumed run keeps its settings; drop {', '.join(changes)}, or start a new run"
        )
    config = make_config({**stored, "evaluate_only": 0, "checkpoint": "", **given})
    if config.epochs < stored.get("epochs", 0):
        raise UserError(
            f"--epochs {config.epochs}: the run was started with {stored['epochs']}; a resumed run may only have more"
        )
    return config
