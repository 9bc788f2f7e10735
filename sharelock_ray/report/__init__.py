"""REPORT: pages and tables that a person looks at, made from the files that the stages leave.

Reads results, never computes them anew; needs neither torch nor Ray.
"""
