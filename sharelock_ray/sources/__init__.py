"""SOURCES: readers of image-caption data. Every input becomes a sample of one common form, or a reject.

Must not depend on encoders, features or Ray.
"""
