"""The page: page.html with the style, the program and the data in it. It refers to no other file."""

from __future__ import annotations

import re
import typing
from pathlib import Path

from outgoing import html_text, json_in_html

FOLDER = Path(__file__).parent


def make_page(title: str, data: dict[str, typing.Any]) -> str:
    """The whole page."""
    values = {
        "title": html_text(title),
        "style": (FOLDER / "page.css").read_text("utf-8"),
        "program": (FOLDER / "page.js").read_text("utf-8"),
        "data": json_in_html(data),
    }
    template = (FOLDER / "page.html").read_text("utf-8")
    # In one pass: what is put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)
