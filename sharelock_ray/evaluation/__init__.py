"""EVALUATION: zero-shot classification and retrieval with aligned models, with confidence intervals.

Works on embeddings. Knows neither recipes nor Ray.
"""
