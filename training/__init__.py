"""Training runs: checkpoints, evaluation, logs and signals."""
