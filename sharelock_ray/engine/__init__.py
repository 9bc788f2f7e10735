"""ENGINE: the only package that imports Ray. It moves rows, schedules work on nodes and handles failures.

Computation belongs to the packages below it.
"""
