"""STUDY: the trials of a study, their records, and which factors mattered. Knows nothing of Ray."""
