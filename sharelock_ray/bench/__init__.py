"""BENCH: measures what the product claims, as ratios within one run; the figures are kept in docs/benchmarks.md.

May use every other room, and none uses it but the command line.
"""
