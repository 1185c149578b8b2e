"""Edges of any picture, after Canny (1986): blur, gradient, thinning, hysteresis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """How sensitive the detector is."""

    low: float = 40.0
    """Weakest gradient that continues an edge, in grey levels (0..255) per pixel times 4 (Sobel)."""
    high: float = 110.0
    """Weakest gradient that begins an edge."""
    sigma: float = 0.7
    """Radius of the blur before, in pixels."""


def detect_edges(picture: npt.NDArray[Any], options: EdgeOptions | None = None) -> npt.NDArray[np.uint8]:
    """Canny edges of a picture.

    Args:
        picture: (height, width) or (height, width, channels), values 0..255; the strongest channel counts.
        options: Thresholds and blur.

    Returns:
        255 on edges, 0 elsewhere, uint8, (height, width).
    """
    options = options or EdgeOptions()
    channels = np.atleast_3d(picture).astype(np.float32)
    blurred = ndimage.gaussian_filter(channels, (options.sigma, options.sigma, 0), mode="nearest")
    across = ndimage.sobel(blurred, axis=1, mode="nearest")
    down = ndimage.sobel(blurred, axis=0, mode="nearest")
    strengths = np.hypot(across, down)
    strongest = strengths.argmax(axis=2)[..., None]
    strength, dx, dy = (np.take_along_axis(a, strongest, axis=2)[..., 0] for a in (strengths, across, down))
    ridge = _thin_edges(strength, dx, dy)
    weak = ridge & (strength >= options.low)
    groups, _ = ndimage.label(weak, structure=np.ones((3, 3)))
    kept = np.unique(groups[ridge & (strength >= options.high)])
    return (np.isin(groups, kept) & weak).astype(np.uint8) * np.uint8(255)


def _thin_edges(strength: npt.NDArray[Any], dx: npt.NDArray[Any], dy: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Keep a pixel only where no neighbour along the gradient is stronger."""
    padded = np.pad(strength, 1)
    height, width = strength.shape
    sector = np.round(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    ridge = np.zeros(strength.shape, dtype=bool)
    for number, (step_y, step_x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        before = padded[1 - step_y : 1 - step_y + height, 1 - step_x : 1 - step_x + width]
        after = padded[1 + step_y : 1 + step_y + height, 1 + step_x : 1 + step_x + width]
        ridge |= (sector == number) & (strength > before) & (strength >= after)
    return ridge
