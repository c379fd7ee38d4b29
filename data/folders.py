"""Dataset folders: where they are, and whether their interactions have a known format.

folder, note = dataset_folder(config)     # data/baby, or data/baby_raw with a note
table = find_inter_table(folder)          # data/baby_raw/baby.inter, or None: train.txt, valid.txt, test.txt

Imports neither pandas nor torch, so that a wrong name or a foreign file is reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from outgoing import shell_command
from utils import UserError, did_you_mean

SPLITS = ("train", "valid", "test")
TABLE_COLUMNS = ("userID", "itemID", "x_label")
# Column names that other programs give to users, items and times, in order of preference.
FOREIGN_COLUMNS = {
    "user": ("user_id:token", "userID:token", "userID", "user_id", "user", "reviewerID"),
    "item": ("item_id:token", "itemID:token", "itemID", "item_id", "item", "asin"),
    "rating": ("rating:float", "rating"),
    "time": ("timestamp:float", "timestamp", "time"),
}


class DatasetName(Protocol):
    """The settings that locate a dataset folder; world.Config has them, among others."""

    @property
    def dataset(self) -> str:
        """Name of the folder."""
        ...

    @property
    def data_root(self) -> str:
        """Folder that contains it."""
        ...


def dataset_folder(config: DatasetName) -> tuple[Path, str | None]:
    """Return the folder <data_root>/<dataset> and None, or <data_root>/<dataset>_raw and a note to the user.

    The second is used only where the first does not exist. Raises UserError if neither exists.
    """
    root, name = Path(config.data_root), Path(config.dataset)
    if not config.dataset:
        raise UserError(f"no dataset is named: add --dataset NAME{there(root)}")
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise UserError(
            f"--dataset {config.dataset}: must be the name of a folder below --data_root; "
            "give its parent as --data_root"
        )
    folder = root / name
    raw = folder.with_name(f"{folder.name}_raw")
    try:
        if folder.is_dir():
            return folder, None
        if raw.is_dir():
            return raw, f"note: {folder} does not exist; using {raw}"
        names = dataset_names(root)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); correct the permissions") from None
    hint = did_you_mean(config.dataset, {*names, *(name.removesuffix("_raw") for name in names)})
    raise UserError(f"{folder}: no such dataset folder{hint or '; choose with --dataset'}{there(root)}")


def dataset_names(root: Path) -> list[str]:
    """The folders below `root` that hold interactions, by name."""
    files = [*root.glob("*/train.txt"), *root.glob("*/*.inter")]
    return sorted({path.parent.name for path in files})


def there(root: Path) -> str:
    """The datasets below `root` in words, or how to get one, for the end of a message."""
    names = dataset_names(root)
    if names:
        return f" ({root} has {', '.join(names)[:300]}; --data_root names another folder)"
    return (
        f" ({root} has none: python -m data.synthetic demo makes one, python -m data.download fetches one, "
        "--data_root names another folder)"
    )


def find_inter_table(folder: Path, data_format: str = "auto") -> Path | None:
    """Path of the .inter table to read, or None if the folder is to be read as .txt files.

    data_format: "txt", "inter", or "auto", which prefers train.txt. Raises UserError if there is neither.
    """
    if data_format == "txt" or (data_format == "auto" and (folder / "train.txt").exists()):
        return None
    return inter_path(folder)


def inter_path(folder: Path) -> Path:
    """Return the .inter table of a dataset folder: <folder name>.inter, or else the only *.inter file."""
    named = folder / f"{folder.resolve().name.removesuffix('_raw')}.inter"
    found = [named] if named.exists() else sorted(folder.glob("*.inter"))
    if not found:
        raise UserError(f"{folder}: contains neither train.txt nor a .inter table; see README, 'Data'")
    if len(found) > 1:
        raise UserError(f"{folder}: contains {len(found)} .inter tables, none named {named.name}; keep one")
    return found[0]


def check_first_line(path: Path) -> None:
    """check_header of a table's first line; what else may be wrong with a table is found when it is read."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            columns = file.readline(10**6).rstrip("\r\n").split("\t")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if len(columns) > 1:
        check_header(path, columns)


def check_header(path: str | Path, columns: Sequence[str]) -> None:
    """Raise UserError, with the command that converts the table, unless it has the columns it needs."""
    missing = [name for name in TABLE_COLUMNS if name not in columns]
    if not missing:
        return
    found = {
        role: next((name for name in names if name in columns), None)
        for role, names in FOREIGN_COLUMNS.items()
    }
    remedy = ""
    if found["user"] and found["item"]:
        if "x_label" in columns:
            remedy = (
                f": rename {found['user']} and {found['item']} to keep the split, or make a new one with "
            )
        else:
            remedy = "; a table without a split is converted by "
        folder = Path(path).resolve().parent
        words = ["python", "-m", "data.prepare", f"{folder.name}_split"]
        if folder.parent != Path("data").resolve():
            words += ["--data_root", str(folder.parent)]
        words += ["--interactions", str(path)]
        for role, name in found.items():
            words += [f"--{role}_column", name] if name else []
        remedy += shell_command(words)
    raise UserError(
        f"{path}, line 1: the header lacks {', '.join(missing)}; it must name userID, itemID and x_label "
        f"(0 train, 1 valid, 2 test), separated by tabs{remedy}"
    )
