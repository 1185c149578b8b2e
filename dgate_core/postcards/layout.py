"""Where everything stands: a scene and its seed resolved to exact positions, which picture, maps and motion share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from dgate_core.postcards.palette import SKINS
from dgate_core.postcards.scene import PLACES, Scene, SceneObject, SceneTruth, SlotTruth

FLYING: Final = frozenset({"balloon", "bird"})
SIZE_FACTOR: Final[dict[str | None, float]] = {"small": 0.75, None: 1.0, "large": 1.28}
SLOT_CENTRES: Final = (1 / 6, 1 / 2, 5 / 6)

# Ordinary height as a share of the picture, and width as a share of that height.
FIGURE_HEIGHT: Final[dict[str, float]] = {
    "house": 0.27,
    "tree": 0.385,
    "boat": 0.27,
    "car": 0.213,
    "balloon": 0.35,
    "flower": 0.37,
    "fish": 0.205,
    "windmill": 0.37,
    "bird": 0.213,
    "person": 0.38,
}
FIGURE_ASPECT: Final[dict[str, float]] = {
    "house": 0.95,
    "tree": 0.68,
    "boat": 0.95,
    "car": 1.2,
    "balloon": 0.74,
    "flower": 0.62,
    "fish": 1.25,
    "windmill": 0.7,
    "bird": 1.2,
    "person": 0.68,
}
FRAME_MARGIN: Final = 0.006
JUMP_LIFT: Final = 0.2
_PHASES: Final = 64


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """One drawn thing, resolved. Lengths are shares of the picture's side, x to the right and y down."""

    kind: str
    """One of OBJECTS."""
    colour: str
    """One of COLOURS."""
    size: str | None
    """One of SIZES, None for ordinary."""
    pose: str | None
    """One of POSES for a person, None for everything else."""
    slot: int
    """Third of the picture in which it begins: 0 left, 1 middle, 2 right."""
    x: float
    """Centre."""
    y: float
    """Lower edge of the figure."""
    height: float
    """Height of the figure's box."""
    ground_y: float
    """Where its shadow lies: y itself when it stands."""
    depth: float
    """Nearness: 0 at the horizon, 1 at the lower edge of the picture."""
    tint: tuple[int, int, int]
    """Small offsets to the palette's red, green and blue."""
    skin: int
    """Index of a person's skin and hair."""
    mirrored: bool
    """Whether it looks to the left."""
    phase: float
    """Seconds of its own movement: wings, sails, legs."""

    @property
    def width(self) -> float:
        """Width of the figure's box."""
        return self.height * FIGURE_ASPECT[self.kind]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the figure's box."""
        half = self.width / 2
        return self.x - half, self.y - self.height, self.x + half, self.y


@dataclass(frozen=True, slots=True)
class Moment:
    """A scene at one time: all that a painter needs."""

    scene: Scene
    """What is shown."""
    placed: tuple[PlacedObject, ...]
    """Where everything stands at that time, in the order of the scene's objects."""
    seconds: float = 0.0
    """The time, for what moves without being an object (rain, clouds, waves)."""


def scene_horizon(scene: Scene) -> float:
    """Height of the horizon, as a share of the picture from its top."""
    return 0.57 + 0.05 * float(np.random.default_rng((scene.seed, 1)).random())


@lru_cache(maxsize=1024)
def layout_scene(scene: Scene) -> tuple[PlacedObject, ...]:
    """Resolve each thing's slot, position, tint and direction; one entry per drawn thing, in the scene's order."""
    rng = np.random.default_rng((scene.seed, 2))
    taken = {PLACES.index(thing.place) for thing in scene.objects if thing.place}
    free = [int(slot) for slot in rng.permutation(3) if slot not in taken]
    horizon = scene_horizon(scene)
    placed = []
    for thing in scene.objects:
        for _ in range(thing.count):
            slot = PLACES.index(thing.place) if thing.place else free.pop()
            placed.append(_place_object(thing, slot, horizon, rng))
    return tuple(placed)


def _place_object(thing: SceneObject, slot: int, horizon: float, rng: np.random.Generator) -> PlacedObject:
    shift_x, shift_y, stretch = rng.uniform(-1, 1, 3)
    height = FIGURE_HEIGHT[thing.kind] * SIZE_FACTOR[thing.size] * (1 + 0.02 * float(stretch))
    half = height * FIGURE_ASPECT[thing.kind] / 2
    room = max(0.0, 1 / 6 - half)
    x = SLOT_CENTRES[slot] + float(shift_x) * min(0.025, room)
    ground_y = 0.865 + 0.035 * float(shift_y)
    y = _lower_edge(thing, height, ground_y, float(shift_y))
    red, green, blue = (int(v) for v in rng.integers(-7, 8, 3))
    return PlacedObject(
        kind=thing.kind,
        colour=thing.colour,
        size=thing.size,
        pose=(thing.pose or "standing") if thing.kind == "person" else None,
        slot=slot,
        x=min(1 - half - FRAME_MARGIN, max(half + FRAME_MARGIN, x)),
        y=y,
        height=height,
        ground_y=ground_y,
        depth=(ground_y - horizon) / (1 - horizon),
        tint=(red, green, blue),
        skin=int(rng.integers(SKINS)),
        mirrored=bool(rng.random() < 0.5),
        phase=int(rng.integers(_PHASES)) / _PHASES if thing.kind in ("windmill", "bird") else 0.0,
    )


def _lower_edge(thing: SceneObject, height: float, ground_y: float, shift: float) -> float:
    if thing.kind in FLYING:
        return max(FRAME_MARGIN + height, 0.28 + 0.03 * shift + height / 2)
    if thing.pose == "jumping":
        return ground_y - JUMP_LIFT * height
    return ground_y


def scene_to_truth(scene: Scene) -> SceneTruth:
    """What a judge should read from the picture of this scene."""
    slots: list[SlotTruth | None] = [None, None, None]
    for thing in layout_scene(scene):
        slots[thing.slot] = SlotTruth(thing.kind, thing.colour, thing.size, thing.pose)
    return SceneTruth(scene.ground, scene.sky, (slots[0], slots[1], slots[2]), scene.total)
