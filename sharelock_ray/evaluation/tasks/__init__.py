"""TASKS: one module a task, each with its formula and its source.

A task is arithmetic on embeddings. It gives what each sample did, for comparisons of models, and a result of
`evaluation/result.py`. Knows neither heads nor feature sets.
"""
