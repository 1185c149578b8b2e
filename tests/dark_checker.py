"""A safety checker for tests, as a plug-in: it takes offence at dark things in postcards."""

from __future__ import annotations

import numpy as np

DARK = 60
"""Brightest channel of what counts as dark, of 255."""
ENOUGH = 0.02
"""Share of the picture from which on it is sure."""


class DarkChecker:
    labels = ("bright", "dark")

    def rate(self, pixels: np.ndarray) -> float:
        return float(min((pixels.max(axis=2) < DARK).mean() / ENOUGH, 1.0))


class BrokenChecker:
    labels = ("yes", "no")

    def rate(self, pixels: np.ndarray) -> float:
        raise OSError("the classifier is gone")


class StrangeChecker:
    labels = ("yes", "no")

    def rate(self, pixels: np.ndarray) -> float:
        return float("nan")
