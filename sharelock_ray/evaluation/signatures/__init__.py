"""Failure signatures: known ways in which an aligned model or its evaluation fails, each with its evidence.

A module for each kind of data that a signature is read from. A signature whose data are missing is not computed.
"""
