"""RUNS: one training run: its folder, its checkpoints and metrics, the loop that trains, and what it leaves."""
