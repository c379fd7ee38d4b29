"""Flags that all tools share that use the network."""

import argparse

from data.web import check_url
from utils import UserError


def proxy_url(text: str) -> str:
    """A value of --proxy: "" or http://HOST:PORT. Raises UserError for anything else."""
    if text:
        check_url(text, "--proxy")
        if not text.startswith("http://") or text.count("/") > 2 + text.endswith("/"):
            raise UserError(f"--proxy {text!r:.60}: must be http://HOST:PORT")
    return text


def add_proxy_flag(parser: argparse.ArgumentParser) -> None:
    """The flag --proxy."""
    parser.add_argument(
        "--proxy",
        type=proxy_url,
        default="",
        metavar="URL",
        help="proxy for connections to other machines, as http://HOST:PORT; those of the environment are "
        "not used (default none)",
    )
