"""Checks of a machine, a cluster and their storage, for `sharelock doctor`: what is found, and what to do.

A check is a function that returns a `Check` and changes nothing that it does not restore. `examine` runs those of a
machine; on a cluster, the engine calls it on every node.
"""
