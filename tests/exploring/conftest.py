"""Fixtures of the tests of explore.py."""

from recommend_helpers import lgn, recgoat

__all__ = ["lgn", "recgoat"]
