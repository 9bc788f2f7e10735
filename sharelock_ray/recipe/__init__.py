"""RECIPE: one YAML file that describes a run: its schema, how it is read, and the recipes that are shipped.

Computes nothing itself.
"""
