"""Fixtures of the tests of resumed runs."""

from resume_helpers import stopped, whole

__all__ = ["stopped", "whole"]
