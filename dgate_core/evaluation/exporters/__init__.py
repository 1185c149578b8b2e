"""A run's pictures in the folder layouts that other people's benchmarks read."""
