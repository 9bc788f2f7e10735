"""RUNS: a training run: its folder, its training loop, its checkpoints, its metrics and its trained model."""
