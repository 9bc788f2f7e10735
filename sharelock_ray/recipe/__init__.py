"""RECIPE: one YAML file that describes a run: its schema, how it is read, and the stages that it drives.

What `sharelock VERB` and `jobs/VERB.py` have in common. Computes nothing itself.
"""
