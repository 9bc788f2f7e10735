"""EVALUATION: what an aligned model is worth: zero-shot classification and retrieval, with their uncertainty.

Works on embeddings; knows nothing of recipes or Ray.
"""
