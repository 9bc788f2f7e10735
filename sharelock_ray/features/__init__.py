"""FEATURES: sets of frozen embeddings on storage: their schema, how they are written exactly once, opened and audited.

Knows nothing of models or Ray. The contract is the design's section 3.
"""
