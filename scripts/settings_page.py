"""Print docs/settings.md: every setting with its flag, default, allowed values and help, from world.Config.

python -m scripts.settings_page > docs/settings.md
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing

from models.registry import MODELS, config_class, label
from parse import NO_EFFECT
from world import GROUPS, Config

INTRODUCTION = """# Settings

The flags of `main.py`, as `python main.py --help` prints them; [NAME] marks those that only some models have.
The first of these that has a setting decides: its flag, `--recipe` ([released.md](released.md)),
`--config FILE` (JSON or YAML, such as the config.json of a run), `--preset NAME` (a file in `presets/`), the
default. Equation numbers are those of the paper.

This page is generated from `Config` in `world.py`: `python -m scripts.settings_page > docs/settings.md`.
"""


def page() -> str:
    """The whole page, in Markdown."""
    shared = dataclasses.fields(Config)
    parts = [INTRODUCTION]
    for group in GROUPS:
        fields = [field for field in shared if field.metadata["group"] == group]
        parts.append(section(group.capitalize(), fields))
    names = {field.name for field in shared}
    for model in MODELS:
        own = [field for field in dataclasses.fields(config_class(model)) if field.name not in names]
        if own:
            parts.append(section(f"Only for --model {model} ({label(model)})", own))
    parts.append(without_effect())
    return "\n".join(parts)


def section(title: str, fields: list[dataclasses.Field]) -> str:
    """A heading and a table with one row per setting."""
    rows = [f"## {title}", "| flag | default | allowed values | meaning |", "|---|---|---|---|"]
    rows += ["| " + " | ".join(row(field)) + " |" for field in fields]
    return "\n".join(rows) + "\n"


def row(field: dataclasses.Field) -> tuple[str, str, str, str]:
    """Flag, default, allowed values and help of a setting."""
    flags = ", ".join(f"`--{name}`" for name in (field.name, *field.metadata["alias"]))
    value: typing.Any = field.default
    default = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    models = ", ".join(field.metadata["models"])
    text = (f"[{models}] " if models else "") + field.metadata["help"]
    return flags, f"`{default}`" if default else "", allowed(field), escape(text)


def allowed(field: dataclasses.Field) -> str:
    """The choices or the range of a setting, else its type."""
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    if field.name == "model":
        choices = (*MODELS, "FILE.py:CLASS")
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = {int: "integer", float: "number", str: "text", tuple: "list of integers"}[type(field.default)]
    if low is not None and high is not None:
        return f"{kind} from {low:g} to {high}"
    return kind if low is None else f"{kind}, at least {low:g}"


def escape(text: str) -> str:
    """Text as the cell of a Markdown table, with flags set as code."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
    return re.sub(r"(?<![\w-])--\w+", r"`\g<0>`", text)


def without_effect() -> str:
    """The flags that are accepted for command lines of the released code."""
    rows = [
        "## Accepted without effect",
        "For command lines of the released code:\n",
        "| flag | reason |",
        "|---|---|",
    ]
    rows += [f"| `--{name}` | {escape(reason)} |" for name, reason in NO_EFFECT.items()]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
