"""Exact maps of a scene, from the same layout as its picture: segmentation, depth, edges, persons' skeletons."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dgate_core.postcards.backdrop import hill_corners
from dgate_core.postcards.edges import EdgeOptions, detect_edges
from dgate_core.postcards.layout import Moment, PlacedObject, layout_scene, scene_horizon
from dgate_core.postcards.persons import JOINTS, person_joints
from dgate_core.postcards.render import choose_oversampling, far_to_near, place_figure, render_moment
from dgate_core.postcards.scene import Scene
from dgate_core.postcards.shapes import INK

SKY_LABEL: Final = 0
GROUND_LABEL: Final = 1
FIRST_OBJECT_LABEL: Final = 2

# Limbs of the OpenPose drawing, from neck outward, as chains of joints.
_CHAINS: Final = (
    ("neck", "right_shoulder", "right_elbow", "right_wrist"),
    ("neck", "left_shoulder", "left_elbow", "left_wrist"),
    ("neck", "right_hip", "right_knee", "right_ankle"),
    ("neck", "left_hip", "left_knee", "left_ankle"),
    ("neck", "nose", "right_eye", "right_ear"),
    ("nose", "left_eye", "left_ear"),
)
_LIMB_WIDTH: Final = 0.016
_JOINT_RADIUS: Final = 0.012


@dataclass(frozen=True, slots=True)
class PoseSkeleton:
    """The persons of a scene as key points and as the picture that pose ControlNets take."""

    joints: npt.NDArray[np.float32]
    """x and y in pixels and 1 for visible, in the order of persons.JOINTS; (persons, 18, 3)."""
    picture: npt.NDArray[np.uint8]
    """Coloured limbs on black; (size, size, 3)."""


def segmentation_map(scene: Scene | Moment, size: int = 64) -> npt.NDArray[np.uint8]:
    """What the centre of each pixel shows, uint8, (size, size).

    SKY_LABEL, GROUND_LABEL (with hills and islets), or FIRST_OBJECT_LABEL + the object's index in the layout.
    """
    moment = _as_moment(scene)
    factor = choose_oversampling(size)
    side = size * factor
    image = Image.new("L", (side, side), SKY_LABEL)
    draw = ImageDraw.Draw(image)
    horizon = scene_horizon(moment.scene)
    draw.rectangle((0, round(horizon * side), side, side), fill=GROUND_LABEL)
    hills = hill_corners(moment, horizon)
    if hills:
        draw.polygon([(x * side, y * side) for x, y in hills], fill=GROUND_LABEL)
    for thing in far_to_near(moment):
        _fill_silhouette(draw, thing, side, FIRST_OBJECT_LABEL + moment.placed.index(thing))
    return np.asarray(image)[factor // 2 :: factor, factor // 2 :: factor].copy()


def depth_map(scene: Scene | Moment, size: int = 64) -> npt.NDArray[np.float32]:
    """Nearness of each pixel: 0 in the sky and at the horizon, growing to 1 at the lower edge; float32, (size, size).

    Objects are upright cut-outs: each has the one nearness of the ground that it stands on or flies over.
    """
    moment = _as_moment(scene)
    labels = segmentation_map(moment, size)
    horizon = scene_horizon(moment.scene)
    rows = np.clip(((np.arange(size) + 0.5) / size - horizon) / (1 - horizon), 0, 1)
    ground = np.broadcast_to(rows[:, None], labels.shape)
    nearness = np.array([0.0, 0.0, *(thing.depth for thing in moment.placed)])
    return np.where(labels == GROUND_LABEL, ground, nearness[labels]).astype(np.float32)


def canny_map(scene: Scene | Moment, size: int = 64, options: EdgeOptions | None = None) -> npt.NDArray[np.uint8]:
    """Canny edges of the scene's picture; uint8 (size, size), 0 or 255."""
    return detect_edges(render_moment(_as_moment(scene), size), options)


def pose_skeleton(scene: Scene | Moment, size: int = 64) -> PoseSkeleton:
    """Key points of all persons, in the layout's order, and their drawing (black where nobody is)."""
    persons = [thing for thing in _as_moment(scene).placed if thing.kind == "person"]
    places = np.array([_locate_joints(thing) for thing in persons]).reshape(-1, len(JOINTS), 2)
    visible = np.ones((len(persons), len(JOINTS), 1))
    joints = np.concatenate([places * size, visible], axis=2).astype(np.float32)
    return PoseSkeleton(joints, _draw_skeletons(places, size))


def _as_moment(scene: Scene | Moment) -> Moment:
    return scene if isinstance(scene, Moment) else Moment(scene, layout_scene(scene))


def _fill_silhouette(draw: ImageDraw.ImageDraw, thing: PlacedObject, side: int, label: int) -> None:
    figure, corners, widened = place_figure(thing, side)
    for start, stop, tone in figure.strokes:
        outline = widened if tone == INK else corners
        draw.polygon(outline[2 * start : 2 * stop], fill=label)


def _locate_joints(thing: PlacedObject) -> npt.NDArray[np.float64]:
    """Joints of one person as shares of the picture, (18, 2)."""
    joints = person_joints(thing.pose or "standing", thing.phase)
    if thing.mirrored:
        # The mirror image of a raised right arm is a raised left arm.
        joints = joints[[JOINTS.index(_other_side(name)) for name in JOINTS]] * (-1, 1)
    return np.asarray((thing.x, thing.y) + joints * (thing.height, -thing.height), dtype=np.float64)


def _other_side(name: str) -> str:
    return name.replace("right", "left") if name.startswith("right") else name.replace("left", "right")


def _draw_skeletons(places: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.uint8]:
    factor = choose_oversampling(size)
    side = size * factor
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    limbs = [limb for chain in _CHAINS for limb in pairwise(chain)]
    for person in places * side:
        joint = {name: (float(x), float(y)) for name, (x, y) in zip(JOINTS, person, strict=True)}
        for number, (start, end) in enumerate(limbs):
            draw.line(
                (joint[start], joint[end]),
                fill=_wheel_colour(number / len(limbs), 0.6),
                width=round(_LIMB_WIDTH * side),
            )
        for number, (x, y) in enumerate(joint.values()):
            radius = _JOINT_RADIUS * side
            draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius), fill=_wheel_colour(number / len(JOINTS), 1.0)
            )
    return np.array(image.reduce(factor))


def _wheel_colour(hue: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 1.0, value)
    return round(255 * red), round(255 * green), round(255 * blue)
