"""Datasets: download, preparation, features, checks, and the readers that training uses."""
