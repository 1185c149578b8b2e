"""Persons: a skeleton for each pose, in OpenPose's order of joints, and the figure drawn around it."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from dgate_core.postcards.shapes import Point, Shape, box, capsule, ellipse, polygon

# The 18 key points of OpenPose's COCO model, in its order (right and left are the person's own).
JOINTS: Final = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
_HEAD: Final = (0.0, 0.85)
_HEAD_RADIUS: Final = 0.13
_ARM: Final = (0.16, 0.16)
_LEG: Final = (0.18, 0.19)


def _limb_angles(pose: str, phase: float) -> tuple[tuple[float, float], ...]:
    """Right arm, left arm, right leg, left leg: degrees from straight down, outward, of the upper and lower part."""
    swing = float(np.cos(2 * np.pi * phase / 0.9))
    wave = 14 * float(np.sin(2 * np.pi * phase / 0.7))
    match pose:
        case "waving":
            return (135, 165 + wave), (30, 16), (8, 3), (8, 3)
        case "walking":
            arms = (30 * swing, 48 * swing), (28 * swing, 36 * swing)
            return *arms, (28 * swing, 20 * swing), (28 * swing, 36 * swing)
        case "jumping":
            return (138, 152), (138, 152), (42, 4), (42, 4)
        case _:
            return (30, 16), (30, 16), (8, 3), (8, 3)


def person_joints(pose: str, phase: float = 0.0) -> npt.NDArray[np.float64]:
    """The 18 joints of JOINTS in the figure's coordinates (x right, y up, height 1), (18, 2), facing the viewer."""
    right_arm, left_arm, right_leg, left_leg = _limb_angles(pose, phase)
    sides = ((-1.0, right_arm, right_leg), (1.0, left_arm, left_leg))
    joints: dict[str, Point] = {"nose": (0.0, 0.83), "neck": (0.0, 0.71)}
    for name, (sign, arm, leg) in zip(("right", "left"), sides, strict=True):
        shoulder, hip = (0.1 * sign, 0.66), (0.055 * sign, 0.4)
        elbow, wrist = _extend(shoulder, sign, arm, _ARM)
        knee, ankle = _extend(hip, sign, leg, _LEG)
        joints |= {f"{name}_shoulder": shoulder, f"{name}_elbow": elbow, f"{name}_wrist": wrist}
        joints |= {f"{name}_hip": hip, f"{name}_knee": knee, f"{name}_ankle": ankle}
        joints |= {f"{name}_eye": (0.045 * sign, 0.86), f"{name}_ear": (0.12 * sign, 0.84)}
    return np.array([joints[name] for name in JOINTS])


def _extend(start: Point, sign: float, degrees: tuple[float, float], lengths: Point) -> tuple[Point, Point]:
    points = [start]
    for angle, length in zip(np.radians(degrees), lengths, strict=True):
        x, y = points[-1]
        points.append((x + sign * length * float(np.sin(angle)), y - length * float(np.cos(angle))))
    return points[1], points[2]


def draw_person(pose: str, phase: float) -> list[Shape]:
    """Clothes in the object's colour, trousers a darker tone of it; skin and hair of their own."""
    joint = dict(zip(JOINTS, (tuple(xy) for xy in person_joints(pose, phase).tolist()), strict=True))
    shapes: list[Shape] = []
    for side in ("right", "left"):
        hip, knee, ankle = (joint[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        shapes += [capsule("dark", hip, knee, 0.058), capsule("dark", knee, ankle, 0.05)]
        toe = (ankle[0] + (0.025 if side == "left" else -0.025), ankle[1])
        shapes.append(capsule("shoe", (ankle[0], ankle[1]), toe, 0.042))
    body = (
        (-0.13, 0.69),
        (-0.14, 0.4),
        (-0.11, 0.36),
        (0.11, 0.36),
        (0.14, 0.4),
        (0.13, 0.69),
        (0.06, 0.74),
        (-0.06, 0.74),
    )
    shapes.append(polygon("base", *body))
    for side in ("right", "left"):
        shoulder, elbow, wrist = (joint[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        shapes += [ellipse("skin", wrist, (0.048, 0.048))]
        shapes += [capsule("base", shoulder, elbow, 0.05), capsule("base", elbow, wrist, 0.044)]
    shapes += _draw_head()
    shapes.append(box("light", (-0.1, 0.5), (0.1, 0.56), inked=False))
    return shapes


def _draw_head() -> list[Shape]:
    x, y = _HEAD
    brow = np.linspace(-0.12, np.pi + 0.12, 14)
    hair = [(x + 0.145 * float(np.cos(a)), y + 0.03 + 0.12 * float(np.sin(a))) for a in brow]
    eyes = [ellipse("pupil", (0.048 * side, y - 0.01), (0.017, 0.022), layer=1, inked=False) for side in (-1, 1)]
    return [
        ellipse("skin", (x, y), (_HEAD_RADIUS, _HEAD_RADIUS), layer=1),
        polygon("hair", *hair, (x - 0.05, y + 0.055), (x + 0.06, y + 0.045), layer=1, inked=False),
        *eyes,
    ]
