"""Benchmarks of training, evaluation, graphs and data preparation: see docs/performance.md."""
