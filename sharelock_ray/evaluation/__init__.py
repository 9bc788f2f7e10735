"""EVALUATION: tasks on embeddings and frozen features, with confidence intervals and comparisons of models.

`tasks` holds one module a task, `scoring` applies them to heads and feature sets. Knows neither recipes nor Ray.
"""
