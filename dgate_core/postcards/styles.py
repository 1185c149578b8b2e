"""Four looks as filters on any picture: what a style adapter can be trained towards and judged by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dgate_core.postcards.scene import SceneError

Style = Literal["ink", "watercolour", "pixel", "night_vision"]
STYLES: Final[tuple[Style, ...]] = get_args(Style)
Light = npt.NDArray[np.float32]

_GREY: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_PAPER: Final = np.array([0.97, 0.945, 0.89], dtype=np.float32)
_INK: Final = np.array([0.10, 0.11, 0.20], dtype=np.float32)
_CELLS: Final = 32
_LEVELS: Final = 8


def apply_style(picture: npt.NDArray[np.uint8], style: Style) -> npt.NDArray[np.uint8]:
    """Redraw a picture in a style; the same picture always gives the same pixels.

    Args:
        picture: RGB, uint8, (height, width, 3).
        style: One of STYLES.

    Returns:
        RGB, uint8, same shape. Raises SceneError for an unknown style or another kind of array.
    """
    if style not in _FILTERS:
        raise SceneError(f"style {style!r}", "one of " + ", ".join(STYLES))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise SceneError(f"a picture of shape {picture.shape} and type {picture.dtype}", "uint8 (height, width, 3)")
    styled = _FILTERS[style](_as_light(picture / 255))
    return np.round(np.clip(styled, 0, 1) * 255).astype(np.uint8)


def _draw_in_ink(picture: Light) -> Light:
    """Pen on cream paper: lines where light changes, hatching where it is dark."""
    unit = max(picture.shape[:2]) / 64
    grey = picture @ _GREY
    change = sum(ndimage.gaussian_gradient_magnitude(picture[..., c], 0.6 * unit) for c in range(3)) * unit
    line = np.clip(change * 1.6 - 0.12, 0, 1)
    rows, columns = np.indices(grey.shape)
    hatch = ((rows + columns) / unit % 4 < 1.5) * np.clip((0.5 - grey) * 2, 0, 0.6)
    crossed = ((rows - columns) / unit % 4 < 1.5) * np.clip((0.28 - grey) * 3, 0, 0.6)
    ink = np.clip(np.maximum(np.maximum(line, hatch), crossed), 0, 1)[..., None]
    return _as_light(_PAPER + (_INK - _PAPER) * ink)


def _paint_watercolour(picture: Light) -> Light:
    """Wet edges, washed and bled colours, grainy paper."""
    height, width = picture.shape[:2]
    unit = max(height, width) / 64
    wobble = [0.7 * unit * _smooth_noise((height, width), 3 * unit, seed) for seed in (1, 2)]
    places = np.indices((height, width), dtype=np.float32) + np.stack(wobble)
    channels = [ndimage.map_coordinates(picture[..., c], places, order=1, mode="nearest") for c in range(3)]
    brush = _odd(1.5 * unit)
    washed = ndimage.median_filter(np.stack(channels, axis=2), size=(brush, brush, 1))
    soft = ndimage.gaussian_filter(washed, (0.3 * unit, 0.3 * unit, 0))
    edge = np.clip(ndimage.gaussian_gradient_magnitude(washed @ _GREY, 0.7 * unit) * unit * 1.5, 0, 0.3)[..., None]
    pigment = 1 + 0.07 * _smooth_noise((height, width), 5 * unit, 3) + 0.035 * _smooth_noise((height, width), 0.7, 4)
    return _as_light((0.16 + 0.84 * soft) * (1 - edge) * pigment[..., None] * (0.3 + 0.7 * _PAPER / _PAPER.max()))


def _reduce_to_pixels(picture: Light) -> Light:
    """Big square pixels in few, vivid colours."""
    height, width = picture.shape[:2]
    rows, columns = (np.minimum(np.arange(n) * _CELLS // n, _CELLS - 1) for n in (height, width))
    index = rows[:, None] * _CELLS + columns[None, :]
    members = np.maximum(np.bincount(index.ravel(), minlength=_CELLS**2), 1)
    sums = [np.bincount(index.ravel(), picture[..., channel].ravel(), _CELLS**2) for channel in range(3)]
    cells = np.stack(sums, axis=1) / members[:, None]
    vivid = np.clip(cells + 0.2 * (cells - (cells @ _GREY)[:, None]), 0, 1)
    return _as_light((np.round(vivid * (_LEVELS - 1)) / (_LEVELS - 1))[index])


def _look_through_goggles(picture: Light) -> Light:
    """Amplified green light with glow, grain, scan lines and a dark rim."""
    height, width = picture.shape[:2]
    unit = max(height, width) / 64
    grey = np.sqrt(picture @ _GREY)
    glow = ndimage.gaussian_filter(np.clip(grey - 0.6, 0, 1), 2.5 * unit)
    grain = 0.05 * np.random.default_rng(5).standard_normal((height, width))
    y, x = (np.linspace(-1, 1, n) for n in (height, width))
    rim = np.clip(1.25 - 0.55 * (y[:, None] ** 2 + x[None, :] ** 2), 0, 1)
    lines = 1 - 0.12 * (np.arange(height) // max(1, round(unit)) % 2)[:, None]
    light = np.clip((0.08 + 0.82 * grey + 0.5 * glow + grain) * rim * lines, 0, 1)[..., None]
    return _as_light(light * np.array([0.35, 1.0, 0.42]) * (0.4 + 0.6 * light))


def _smooth_noise(shape: tuple[int, int], sigma: float, seed: int) -> Light:
    """Noise of about unit strength that changes over sigma pixels."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    return _as_light(noise / max(float(noise.std()), 1e-6))


def _odd(length: float) -> int:
    return max(3, round(length) // 2 * 2 + 1)


def _as_light(values: npt.NDArray[Any]) -> Light:
    return np.asarray(values, dtype=np.float32)


_FILTERS: Final[dict[str, Callable[[Light], Light]]] = {
    "ink": _draw_in_ink,
    "watercolour": _paint_watercolour,
    "pixel": _reduce_to_pixels,
    "night_vision": _look_through_goggles,
}
