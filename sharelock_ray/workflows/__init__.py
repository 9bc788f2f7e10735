"""WORKFLOWS: one file per verb of the command: its inputs, steps, outputs and messages."""
