"""BATCHES: sampling of pairs, placement of their features, and transfer to the device."""
