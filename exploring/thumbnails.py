"""Thumbnails of item pictures, for embedding."""

from __future__ import annotations

import base64
import io
import typing
from pathlib import Path

from data.pictures import BrokenPicture, find_pictures, open_picture
from exploring.packing import pack

SIZE = 72  # pixels, of the longer side


def thumbnails(folder: str, item_ids: list[str]) -> tuple[dict[str, typing.Any], str]:
    """{"start": [I + 1], "data": base64 of all JPEG files in a row}, and a line for the user.

    folder: pictures named by original item id; an item without one, or with a broken one, has no bytes.
    Raises UserError for a folder that has none of them.
    """
    paths, _ = find_pictures(folder, len(item_ids), item_ids, "or leave --pictures out")
    files = [thumbnail(paths[i]) if i in paths else b"" for i in range(len(item_ids))]
    start = [0]
    for file in files:
        start.append(start[-1] + len(file))
    shown = sum(1 for file in files if file)
    data = {"start": pack(start, "u32"), "data": base64.b64encode(b"".join(files)).decode()}
    return data, f"{shown} of {len(item_ids)} items have a picture, {len(paths) - shown} pictures are broken"


def thumbnail(path: Path) -> bytes:
    """A picture as a small JPEG file; b"" if it cannot be read."""
    try:
        picture = open_picture(path)
    except BrokenPicture:
        return b""
    picture.thumbnail((SIZE, SIZE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=60, optimize=True)
    return file.getvalue()
