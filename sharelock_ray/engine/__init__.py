"""ENGINE: everything that imports ray. It moves rows, places work on nodes and survives failures.

The arithmetic lives in the core packages below it.
"""
