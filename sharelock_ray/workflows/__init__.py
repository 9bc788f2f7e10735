"""WORKFLOWS: one file for each verb of the command: what it reads, does, leaves and says."""
