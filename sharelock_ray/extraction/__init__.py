"""EXTRACTION: encodes a chunk of samples by a group of encoders, and measures it. Knows nothing of Ray."""
