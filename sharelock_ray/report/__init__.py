"""REPORT: pages and tables, rendered from the stages' stored results.

Reads results without recomputing them; needs neither torch nor Ray.
"""
