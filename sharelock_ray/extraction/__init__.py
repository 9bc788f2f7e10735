"""EXTRACTION: encoding of chunks of samples by groups of encoders, and its measurement. Independent of Ray."""
