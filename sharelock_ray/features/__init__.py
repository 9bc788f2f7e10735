"""FEATURES: sets of frozen embeddings on storage: schema, exactly-once writing, reading and auditing.

Independent of models and Ray. The contract is section 3 of the design.
"""
