"""A scene that moves: where everything is after some seconds, frames of it, and how far each object went."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from dgate_core.postcards.layout import FRAME_MARGIN, JUMP_LIFT, Moment, PlacedObject, layout_scene, scene_horizon
from dgate_core.postcards.render import render_moment
from dgate_core.postcards.scene import Scene, SceneError

# Shares of the picture per second.
DRIFT_SPEED: Final[dict[str, float]] = {"boat": 0.06, "car": 0.16, "fish": 0.08, "bird": 0.14}
WALK_SPEED: Final = 0.07
RISE_SPEED: Final = 0.05
_BOB_HEIGHT: Final = 0.006
_BOB_SECONDS: Final = 2.0
_JUMP_SECONDS: Final = 0.9
_SHORTEST_WAY: Final = 0.01


def scene_at(scene: Scene, seconds: float) -> Moment:
    """The scene after some seconds.

    Boats, cars, fish, birds and walkers travel, balloons rise, windmills turn, persons wave and jump, rain falls.
    Travellers turn round at the frame and at the next object's third, so that all stay in sight and none meet.
    At 0 seconds everything stands where layout_scene says. Raises SceneError for a negative time.
    """
    if seconds < 0:
        raise SceneError(f"a scene at {seconds} seconds", "0 seconds or later")
    placed = layout_scene(scene)
    if seconds == 0:
        return Moment(scene, placed)
    taken = frozenset(thing.slot for thing in placed)
    return Moment(scene, tuple(_move_object(thing, scene, taken, seconds) for thing in placed), seconds)


def render_frames(scene: Scene, frames: int, fps: float = 8.0, size: int = 64) -> npt.NDArray[np.uint8]:
    """A clip, RGB, uint8, (frames, size, size, 3): frame n is the scene at n / fps seconds, frame 0 as render_scene."""
    return np.stack([render_moment(moment, size) for moment in _list_moments(scene, frames, fps)])


def trace_objects(scene: Scene, frames: int, fps: float = 8.0) -> npt.NDArray[np.float64]:
    """How far each drawn thing is from where it began, (frames, objects, 2): x right, y down, shares of the side."""
    moments = _list_moments(scene, frames, fps)
    places = np.array([[(thing.x, thing.y) for thing in moment.placed] for moment in moments])
    return np.asarray(places - places[:1], dtype=np.float64)


def _list_moments(scene: Scene, frames: int, fps: float) -> list[Moment]:
    if frames < 1 or fps <= 0:
        raise SceneError(f"{frames} frames at {fps} a second", "at least 1 frame and more than 0 a second")
    return [scene_at(scene, n / fps) for n in range(frames)]


def _move_object(thing: PlacedObject, scene: Scene, taken: frozenset[int], seconds: float) -> PlacedObject:
    moved = replace(thing, phase=thing.phase + seconds)
    speed = WALK_SPEED if thing.pose == "walking" else DRIFT_SPEED.get(thing.kind)
    if speed is not None:
        moved = _travel(moved, taken, speed * seconds)
    if thing.kind == "boat" and scene.ground == "sea":
        bob = _BOB_HEIGHT * float(np.sin(2 * np.pi * seconds / _BOB_SECONDS))
        return replace(moved, y=moved.y + bob, ground_y=moved.ground_y + bob)
    if thing.kind == "balloon":
        lowest = max(thing.y, scene_horizon(scene))
        y, _ = _bounce(thing.y, -RISE_SPEED * seconds, thing.height + FRAME_MARGIN, lowest)
        return replace(moved, y=y)
    if thing.pose == "jumping":
        lift = JUMP_LIFT * thing.height * abs(float(np.cos(np.pi * seconds / _JUMP_SECONDS)))
        return replace(moved, y=thing.ground_y - lift)
    return moved


def _travel(thing: PlacedObject, taken: frozenset[int], way: float) -> PlacedObject:
    """Go forward by a way, between the nearest taken thirds."""
    first = last = thing.slot
    while first > 0 and first - 1 not in taken:
        first -= 1
    while last < 2 and last + 1 not in taken:
        last += 1
    half = thing.width / 2 + FRAME_MARGIN
    direction = -1 if thing.mirrored else 1
    x, kept = _bounce(thing.x, direction * way, first / 3 + half, (last + 1) / 3 - half)
    return replace(thing, x=x, mirrored=thing.mirrored if kept else not thing.mirrored)


def _bounce(start: float, way: float, low: float, high: float) -> tuple[float, bool]:
    """Go from start by a signed way between two walls: the place, and whether the direction is the first one."""
    low, high = min(low, start), max(high, start)
    length = high - low
    if length < _SHORTEST_WAY:
        return start, True
    unfolded = (start - low + way) % (2 * length)
    if unfolded <= length:
        return low + unfolded, True
    return low + 2 * length - unfolded, False
