"""Fewer bits: calibration, 8-bit and 4-bit layers, and the artefacts that passed their gate."""
