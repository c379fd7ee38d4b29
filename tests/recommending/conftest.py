"""Fixtures of the tests of recommend.py."""

from recommend_helpers import lgn, recgoat, run

__all__ = ["lgn", "recgoat", "run"]
