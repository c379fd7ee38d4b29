"""JSON from files that others may have made: parsed without surprises and checked against a schema.

    SCHEMA = {"epoch": COUNT, "test": {str: NUMBER}, "versions": {str: ANY}}
    result = check(read_object("result.json"), SCHEMA, "result.json")

A schema gives the kind of each known entry. Entries may be missing, and unknown ones are ignored, so that
files of older and newer versions can be read.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from outgoing import SURROGATES, printable
from utils import UserError

MAX_BYTES = 10**6  # of a JSON file of a run folder


class Kind(NamedTuple):
    """Values that an entry may have: a test, and the words for them in messages."""

    allows: Callable[[Any], bool]
    words: str


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, and so small that sums of it are finite; true is no number."""
    return type(value) in (int, float) and abs(value) <= 1e30  # false for NaN too


ANY = Kind(lambda value: True, "anything")
COUNT = Kind(lambda value: type(value) is int and 0 <= value < 2**53, "a whole number from 0")
NUMBER = Kind(is_number, "a finite number")
SHARE = Kind(lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
TEXT = Kind(
    lambda value: isinstance(value, str) and len(value) <= 4000 and not SURROGATES.search(value), "a text"
)


def one_of(*values: str) -> Kind:
    """One of several texts."""
    return Kind(lambda value: isinstance(value, str) and value in values, f"one of {', '.join(values)}")


def optional(kind: Kind) -> Kind:
    """Values of a kind, or null."""
    return Kind(lambda value: value is None or kind.allows(value), f"{kind.words} or null")


# A schema: {name: kind or schema}; {str: kind} for an object with any names; [kind] for a list.
Schema = Kind | Mapping[Any, Any] | list


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, deeply nested text included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: str | Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, which ends in `remedy`, for anything else."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError("over 1 MB")
        value = parse_json(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({str(error)[:60]}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; {remedy}")
    return value


def check(value: Any, schema: Schema, source: object, remedy: str, name: str = "") -> Any:
    """Return `value`. Raises UserError, which names `source` and the entry, if it breaks the schema."""
    where = f"{source}: {name or 'its content'}"
    if isinstance(schema, Kind):
        if not schema.allows(value):
            raise UserError(f"{where} is {printable(repr(value)[:40])}, not {schema.words}; {remedy}")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise UserError(f"{where} is not a list; {remedy}")
        for number, inner in enumerate(value):
            check(inner, schema[0], source, remedy, f"{name}[{number}]")
    else:
        if not isinstance(value, dict):
            raise UserError(f"{where} is not an object; {remedy}")
        for key, inner in value.items():
            if key in schema or str in schema:
                path = f"{name}.{printable(key)[:40]}".lstrip(".")
                check(inner, schema.get(key, schema.get(str)), source, remedy, path)
    return value
