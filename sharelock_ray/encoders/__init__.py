"""ENCODERS: frozen vision and language models, of several libraries, that turn images and texts into embeddings.

Knows nothing of storage layouts, training or Ray. One actor, one notebook or one test uses the same classes.
"""
