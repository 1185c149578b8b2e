"""How each of the ten kinds looks: a list of shapes, drawn by hand in the object's own coordinates."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np

from dgate_core.postcards.persons import draw_person
from dgate_core.postcards.shapes import Figure, Shape, box, capsule, compose_figure, ellipse, polygon, rotate_points

WINDMILL_HUB: Final = (0.0, 0.655)
WINDMILL_SECONDS_PER_TURN: Final = 4.0
WING_BEAT_SECONDS: Final = 1.0


@lru_cache(maxsize=2048)
def draw_figure(kind: str, pose: str | None, phase: float) -> Figure:
    """The figure of a kind (see OBJECTS) at a phase of its own movement, in seconds."""
    if kind == "person":
        return compose_figure(draw_person(pose or "standing", phase))
    return compose_figure(_DRAWERS[kind](phase))


def _draw_house(_: float) -> list[Shape]:
    return [
        box("dark", (0.2, 0.62), (0.31, 0.97)),
        box("base", (-0.37, 0.0), (0.37, 0.58)),
        polygon("dark", (-0.47, 0.54), (0.47, 0.54), (0.02, 1.0), (-0.02, 1.0)),
        box("light", (-0.37, 0.0), (-0.29, 0.54), inked=False),
        box("wood", (-0.085, 0.0), (0.085, 0.34), layer=1, inked=False),
        box("window", (-0.27, 0.2), (-0.14, 0.4), layer=1, inked=False),
        box("window", (0.14, 0.2), (0.27, 0.4), layer=1, inked=False),
        ellipse("window", (0.0, 0.7), (0.07, 0.07), layer=1, inked=False),
    ]


def _draw_tree(_: float) -> list[Shape]:
    return [
        polygon("bark", (-0.07, 0.0), (0.07, 0.0), (0.045, 0.5), (-0.045, 0.5)),
        ellipse("base", (-0.16, 0.5), (0.18, 0.17), layer=1),
        ellipse("base", (0.16, 0.5), (0.18, 0.17), layer=1),
        ellipse("base", (0.0, 0.7), (0.26, 0.29), layer=1),
        ellipse("dark", (0.14, 0.45), (0.13, 0.075), layer=1, inked=False),
        ellipse("light", (-0.08, 0.8), (0.12, 0.1), layer=1, inked=False),
        ellipse("light", (-0.2, 0.55), (0.07, 0.06), layer=1, inked=False),
    ]


def _draw_boat(_: float) -> list[Shape]:
    return [
        capsule("bark", (0.0, 0.25), (0.0, 0.97), 0.022),
        polygon("base", (0.04, 0.97), (0.04, 0.34), (0.42, 0.34)),
        polygon("base", (-0.04, 0.86), (-0.04, 0.34), (-0.36, 0.34)),
        polygon("light", (0.06, 0.9), (0.06, 0.36), (0.16, 0.36), (0.12, 0.8), inked=False),
        polygon("dark", (-0.47, 0.27), (0.47, 0.27), (0.33, 0.0), (-0.31, 0.0)),
        polygon("base", (-0.47, 0.27), (0.47, 0.27), (0.435, 0.19), (-0.43, 0.19), inked=False),
    ]


def _draw_car(_: float) -> list[Shape]:
    wheels = [
        part
        for x in (-0.33, 0.33)
        for part in (
            ellipse("wheel", (x, 0.14), (0.14, 0.14), layer=1),
            ellipse("metal", (x, 0.14), (0.06, 0.06), layer=1, inked=False),
        )
    ]
    return [
        polygon("base", (-0.42, 0.56), (-0.28, 1.0), (0.18, 1.0), (0.37, 0.56)),
        polygon("base", (-0.59, 0.13), (-0.59, 0.58), (-0.5, 0.65), (0.42, 0.63), (0.58, 0.52), (0.59, 0.13)),
        box("dark", (-0.58, 0.13), (0.58, 0.24), inked=False),
        polygon("window", (-0.3, 0.64), (-0.22, 0.88), (-0.08, 0.88), (-0.08, 0.64), inked=False),
        polygon("window", (0.02, 0.64), (0.02, 0.88), (0.13, 0.88), (0.24, 0.64), inked=False),
        ellipse("lamp", (0.52, 0.44), (0.05, 0.07), inked=False),
        *wheels,
    ]


def _draw_balloon(_: float) -> list[Shape]:
    return [
        capsule("bark", (-0.17, 0.36), (-0.08, 0.12), 0.012),
        capsule("bark", (0.17, 0.36), (0.08, 0.12), 0.012),
        polygon("base", (-0.33, 0.5), (0.33, 0.5), (0.12, 0.23), (-0.12, 0.23)),
        ellipse("base", (0.0, 0.64), (0.36, 0.36)),
        ellipse("light", (-0.01, 0.64), (0.22, 0.36), inked=False),
        polygon("light", (-0.225, 0.56), (0.205, 0.56), (0.075, 0.23), (-0.075, 0.23), inked=False),
        ellipse("base", (0.0, 0.64), (0.09, 0.36), inked=False),
        polygon("base", (-0.085, 0.56), (0.085, 0.56), (0.03, 0.23), (-0.03, 0.23), inked=False),
        polygon("dark", (-0.14, 0.265), (0.14, 0.265), (0.12, 0.21), (-0.12, 0.21), inked=False),
        box("wood", (-0.1, 0.0), (0.1, 0.13), layer=1),
    ]


def _draw_flower(phase: float) -> list[Shape]:
    sway = 0.03 * float(np.sin(2 * np.pi * phase / 2.4))
    head = (sway, 0.69)
    turns = np.linspace(0, 2 * np.pi, 6, endpoint=False) + np.pi / 6
    petals = [
        ellipse(
            "base", (head[0] + 0.175 * float(np.cos(a)), head[1] + 0.175 * float(np.sin(a))), (0.125, 0.125), layer=1
        )
        for a in turns
    ]
    return [
        capsule("leaf", (0.0, 0.0), head, 0.032),
        polygon("leaf", (0.0, 0.08), (0.13, 0.16), (0.25, 0.3), (0.1, 0.27)),
        polygon("leaf", (0.0, 0.14), (-0.13, 0.2), (-0.25, 0.34), (-0.1, 0.32)),
        *petals,
        ellipse("light", (head[0] - 0.1, head[1] + 0.16), (0.06, 0.05), layer=1, inked=False),
        ellipse("heart", head, (0.1, 0.1), layer=1, inked=False),
    ]


def _draw_fish(phase: float) -> list[Shape]:
    wag = 0.1 * float(np.sin(2 * np.pi * phase / 0.8))
    return [
        polygon(
            "dark",
            (-0.259, 0.5),
            (-0.555, 0.92 + wag),
            (-0.611, 0.86 + wag),
            (-0.509, 0.5 + wag),
            (-0.611, 0.14 + wag),
            (-0.555, 0.08 + wag),
        ),
        polygon("dark", (-0.13, 0.75), (0.0, 0.99), (0.278, 0.9), (0.296, 0.7)),
        polygon("dark", (0.0, 0.2), (-0.056, 0.01), (0.148, 0.04), (0.185, 0.2)),
        ellipse("base", (0.12, 0.48), (0.481, 0.36)),
        ellipse("light", (0.148, 0.34), (0.333, 0.15), inked=False),
        polygon(
            "dark",
            (-0.019, 0.8),
            (-0.093, 0.5),
            (-0.019, 0.18),
            (0.056, 0.18),
            (-0.009, 0.5),
            (0.056, 0.8),
            inked=False,
        ),
        ellipse("paper", (0.389, 0.58), (0.093, 0.1), inked=False),
        ellipse("pupil", (0.407, 0.58), (0.051, 0.055), inked=False),
    ]


def _draw_windmill(phase: float) -> list[Shape]:
    x, y = WINDMILL_HUB
    turn = 2 * np.pi * phase / WINDMILL_SECONDS_PER_TURN
    shapes = [
        polygon("base", (-0.23, 0.0), (0.23, 0.0), (0.13, 0.64), (-0.13, 0.64)),
        ellipse("dark", (0.0, 0.66), (0.15, 0.12)),
        polygon("dark", (0.14, 0.0), (0.23, 0.0), (0.13, 0.64), (0.075, 0.64), inked=False),
        box("wood", (-0.065, 0.0), (0.055, 0.2), inked=False),
        box("window", (-0.05, 0.34), (0.04, 0.45), inked=False),
    ]
    for quarter in range(4):
        sail = polygon(
            "light",
            (x - 0.01, y),
            (x + 0.02, y + 0.08),
            (x + 0.12, y + 0.1),
            (x + 0.12, y + 0.335),
            (x - 0.01, y + 0.335),
            layer=1,
        )
        shapes.append(Shape(rotate_points(sail.points, (x, y), turn + quarter * np.pi / 2), "light", 1))
    return [*shapes, ellipse("bark", (x, y), (0.045, 0.045), layer=1, inked=False)]


def _draw_bird(phase: float) -> list[Shape]:
    beat = float(np.sin(2 * np.pi * phase / WING_BEAT_SECONDS))
    tip = 0.5 + 0.47 * (beat if abs(beat) > 0.35 else (0.35 if beat >= 0 else -0.35))
    return [
        polygon("dark", (-0.21, 0.5), (-0.592, 0.66), (-0.535, 0.48), (-0.592, 0.32)),
        ellipse("base", (0.0, 0.45), (0.344, 0.25)),
        ellipse("base", (0.306, 0.58), (0.181, 0.22)),
        polygon("beak", (0.449, 0.66), (0.597, 0.56), (0.449, 0.47)),
        ellipse("light", (0.057, 0.33), (0.21, 0.11), inked=False),
        ellipse("paper", (0.353, 0.64), (0.057, 0.075), inked=False),
        ellipse("pupil", (0.368, 0.64), (0.033, 0.045), inked=False),
        polygon("dark", (0.134, 0.52), (0.0, tip), (-0.153, tip - 0.06 * np.sign(beat)), (-0.229, 0.5), layer=1),
    ]


_DRAWERS: Final[dict[str, Callable[[float], list[Shape]]]] = {
    "house": _draw_house,
    "tree": _draw_tree,
    "boat": _draw_boat,
    "car": _draw_car,
    "balloon": _draw_balloon,
    "flower": _draw_flower,
    "fish": _draw_fish,
    "windmill": _draw_windmill,
    "bird": _draw_bird,
}
