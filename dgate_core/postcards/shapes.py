"""Polygons in an object's own coordinates, and a figure made of them: x to the right around 0, y up from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Point = tuple[float, float]
Points = npt.NDArray[np.float64]
INK: Final = "ink"


@dataclass(frozen=True, slots=True)
class Shape:
    """One filled polygon."""

    points: Points
    """Corners in order, (n, 2)."""
    tone: str
    """Which of the object's tones fills it (see choose_tones)."""
    layer: int = 0
    """Shapes of one layer share an outline; a higher layer lies on top with its own."""
    inked: bool = True
    """Whether it has an outline at all."""


@dataclass(frozen=True, slots=True)
class Figure:
    """All polygons of one object in the order of painting."""

    points: Points
    """Corners of all polygons, one after the other, (n, 2)."""
    outward: Points
    """For each corner, by how much it moves for an outline of width 1, (n, 2)."""
    strokes: tuple[tuple[int, int, str], ...]
    """What to fill: first corner, corner after the last, tone; the tone INK fills the widened polygon."""


def compose_figure(shapes: Iterable[Shape]) -> Figure:
    """Put shapes in painting order: layer by layer, first the outlines, then the fills."""
    ordered = sorted(shapes, key=lambda shape: shape.layer)
    starts = np.cumsum([0, *(len(shape.points) for shape in ordered)]).tolist()
    spans = list(zip(ordered, starts[:-1], starts[1:], strict=True))
    strokes: list[tuple[int, int, str]] = []
    for layer in sorted({shape.layer for shape in ordered}):
        members = [span for span in spans if span[0].layer == layer]
        strokes += [(start, stop, INK) for shape, start, stop in members if shape.inked]
        strokes += [(start, stop, shape.tone) for shape, start, stop in members]
    outward = np.concatenate([_outward_moves(shape.points) for shape in ordered])
    return Figure(np.concatenate([shape.points for shape in ordered]), outward, tuple(strokes))


def polygon(tone: str, *corners: Point, layer: int = 0, inked: bool = True) -> Shape:
    """A polygon with these corners."""
    return Shape(np.array(corners, dtype=np.float64), tone, layer, inked)


def box(tone: str, low: Point, high: Point, layer: int = 0, inked: bool = True) -> Shape:
    """A rectangle from its lower left to its upper right corner."""
    (left, bottom), (right, top) = low, high
    return polygon(tone, (left, bottom), (right, bottom), (right, top), (left, top), layer=layer, inked=inked)


def ellipse(tone: str, centre: Point, radii: Point, layer: int = 0, inked: bool = True) -> Shape:
    """An ellipse, as a polygon fine enough for the picture."""
    angle = np.linspace(0, 2 * np.pi, 24 if max(radii) > 0.1 else 14, endpoint=False)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radii + centre
    return Shape(points, tone, layer, inked)


def capsule(tone: str, start: Point, end: Point, radius: float, layer: int = 0) -> Shape:
    """A thick line with round ends: a limb, a stem, a mast."""
    direction = float(np.arctan2(end[1] - start[1], end[0] - start[0]))
    around = np.linspace(-np.pi / 2, np.pi / 2, 6)
    angle = np.concatenate([direction + around, direction + np.pi + around])
    centres = np.repeat([end, start], 6, axis=0)
    return Shape(np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + centres, tone, layer)


def rotate_points(points: Points, centre: Point, radians: float) -> Points:
    """Turn points counter-clockwise around a centre."""
    cosine, sine = np.cos(radians), np.sin(radians)
    turned = (points - centre) @ np.array([[cosine, sine], [-sine, cosine]])
    return np.asarray(turned + centre, dtype=np.float64)


def _outward_moves(points: Points) -> Points:
    """Miter joints: how each corner moves when every edge moves outward by 1 (limited at sharp corners)."""
    edges = np.roll(points, -1, axis=0) - points
    x, y = points.T
    counter_clockwise = float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) >= 0
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1) * (1 if counter_clockwise else -1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    summed = normals + np.roll(normals, 1, axis=0)
    return np.asarray(summed / np.maximum(np.sum(summed * summed, axis=1, keepdims=True) / 2, 0.6), dtype=np.float64)
