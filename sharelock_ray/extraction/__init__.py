"""EXTRACTION: streams samples through pools of actors that hold the frozen encoders (Ray Data).

Moves rows and places work; what is computed and how it is committed lives in `encoders` and `features`.
"""
