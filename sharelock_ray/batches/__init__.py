"""BATCHES: which pairs a step trains on, where their rows lie, and how they reach the device."""
