"""TRAINING: runs the alignment's training steps on the workers of a cluster (Ray Train).

Starts workers and restarts them after a failure; the step, the loss and the checkpoint live in `alignment`.
"""
