"""Concept separation: which concepts of a test are strictly unseen in training, with evidence for those that are not.

Concepts are related by WordNet, by their surface forms in captions, and by similarity. This room decides and explains;
it does not extract, train or score, and it never changes a feature set: a split is data that others apply.
"""
