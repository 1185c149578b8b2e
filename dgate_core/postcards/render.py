"""From a scene to its picture: backdrop, shadows, figures, rain, painted large and averaged down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from dgate_core.postcards.backdrop import Canvas, paint_backdrop, paint_rain
from dgate_core.postcards.figures import draw_figure
from dgate_core.postcards.layout import FLYING, Moment, PlacedObject, layout_scene
from dgate_core.postcards.palette import GROUND_LIGHT, choose_tones, light_colour
from dgate_core.postcards.scene import Scene, SceneError
from dgate_core.postcards.shapes import INK, Figure

Picture = npt.NDArray[np.uint8]

OUTLINE_WIDTH: Final = 0.0125
_LAND_KINDS: Final = frozenset({"house", "tree", "car", "flower", "windmill", "person"})
_MIN_SIZE: Final = 16


def render_scene(scene: Scene, size: int = 64) -> Picture:
    """Draw a scene; equal scenes give equal pixels.

    Args:
        scene: What to draw.
        size: Side of the picture in pixels, from 16; the geometry is the same at every size.

    Returns:
        RGB, uint8, (size, size, 3).
    """
    return render_moment(Moment(scene, layout_scene(scene)), size)


def render_moment(moment: Moment, size: int = 64) -> Picture:
    """Draw a scene at one time (see motion.scene_at); RGB, uint8, (size, size, 3)."""
    factor = choose_oversampling(size)
    canvas = paint_backdrop(moment, size * factor)
    for thing in far_to_near(moment):
        _paint_shadow(canvas, moment.scene, thing)
        _paint_figure(canvas, moment.scene, thing)
    if moment.scene.sky == "rain":
        paint_rain(canvas, moment)
    return np.array(canvas.image.reduce(factor))


def render_contact_sheet(scenes: Sequence[Scene], size: int = 64, columns: int = 8, gap: int = 4) -> Picture:
    """Pictures of many scenes side by side on white; RGB, uint8, rows of columns pictures with gap pixels between."""
    if not scenes:
        raise SceneError("no scenes for a contact sheet", "at least one")
    rows = -(-len(scenes) // columns)
    step = size + gap
    sheet = np.full((rows * step + gap, columns * step + gap, 3), 255, np.uint8)
    for index, scene in enumerate(scenes):
        top, left = gap + index // columns * step, gap + index % columns * step
        sheet[top : top + size, left : left + size] = render_scene(scene, size)
    return sheet


def choose_oversampling(size: int) -> int:
    """How many pixels of the canvas make one pixel of the picture, along a side."""
    if size < _MIN_SIZE:
        raise SceneError(f"a picture of {size} pixels", f"at least {_MIN_SIZE}")
    return 4 if size <= 96 else 3 if size <= 192 else 2


def far_to_near(moment: Moment) -> list[PlacedObject]:
    """The order of painting."""
    return sorted(moment.placed, key=lambda thing: thing.depth)


def place_figure(thing: PlacedObject, scale: float) -> tuple[Figure, list[float], list[float]]:
    """A figure, its corners and its widened corners, both in pixels of a canvas of this scale as x, y, x, y, ..."""
    figure = draw_figure(thing.kind, thing.pose, thing.phase)
    direction = np.array([-1.0 if thing.mirrored else 1.0, -1.0])
    corners = (figure.points * (direction * thing.height) + (thing.x, thing.y)) * scale
    widened = corners + figure.outward * (direction * (OUTLINE_WIDTH * scale))
    return figure, corners.ravel().tolist(), widened.ravel().tolist()


def _paint_figure(canvas: Canvas, scene: Scene, thing: PlacedObject) -> None:
    figure, corners, widened = place_figure(thing, canvas.scale)
    tones = choose_tones(thing.colour, scene.sky, thing.tint, thing.skin)
    for start, stop, tone in figure.strokes:
        outline = widened if tone == INK else corners
        canvas.draw.polygon(outline[2 * start : 2 * stop], fill=tones[tone])


def _paint_shadow(canvas: Canvas, scene: Scene, thing: PlacedObject) -> None:
    if thing.kind in FLYING:
        return
    x, y, half = thing.x, thing.ground_y, thing.width / 2
    if scene.ground == "sea" and thing.kind in _LAND_KINDS:
        light = GROUND_LIGHT[scene.sky]
        canvas.fill_ellipse((x, y + 0.012), (half + 0.03, 0.04), light_colour((214, 240, 244), light))
        canvas.fill_ellipse((x, y + 0.004), (half + 0.018, 0.032), light_colour((236, 210, 148), light))
    elif scene.ground == "sea":
        canvas.fill_ellipse((x, y), (half * 1.2, 0.03), (235, 248, 255, 120))
    for spread, strength in ((1.15, 34), (0.95, 44)):
        canvas.fill_ellipse((x, y), (half * spread, 0.022 * spread), (10, 16, 40, strength))
