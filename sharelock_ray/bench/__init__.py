"""BENCH: benchmarks, as ratios within one run; docs/benchmarks.md records the results.

May import every other package; only the command line imports it.
"""
