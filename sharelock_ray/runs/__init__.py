"""RUNS: one training run: its folder, its loop on a rank, its checkpoints, its metrics and its trained model."""
