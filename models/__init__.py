"""Baselines, their contract and registry."""
