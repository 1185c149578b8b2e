"""Weights of feature extractors, fetched on demand: where they come from, their hashes, how they are read."""
