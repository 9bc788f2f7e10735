"""SOURCES: where image-caption pairs come from. Readers turn any input into the same rows, or into rejects.

Knows nothing of encoders, features or Ray.
"""
