"""A postcard as data: what stands on it, on which ground, under which sky; and the truth that a judge should read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from dgate_core.errors import DgateError

OBJECTS: Final = ("house", "tree", "boat", "car", "balloon", "flower", "fish", "windmill", "bird", "person")
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
GROUNDS: Final = ("grass", "sand", "snow", "sea", "road")
SKIES: Final = ("day", "sunset", "night", "rain")
PLACES: Final = ("left", "middle", "right")
SIZES: Final = ("small", "large")
POSES: Final = ("standing", "waving", "walking", "jumping")
MAX_OBJECTS: Final = 3


class SceneError(DgateError):
    """A scene that the postcard world does not have."""

    code: ClassVar[str] = "scene"


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One thing on the postcard, or two or three alike."""

    kind: str
    """What it is, one of OBJECTS."""
    colour: str
    """Its main colour, one of COLOURS."""
    count: int = 1
    """How many of them, 1 to 3."""
    size: str | None = None
    """One of SIZES; None is ordinary, and captions do not mention it."""
    place: str | None = None
    """One of PLACES, only for count 1; None leaves it to the seed."""
    pose: str | None = None
    """One of POSES, only for persons; None is unsaid and drawn standing."""

    def __post_init__(self) -> None:
        _check("object kind", self.kind, OBJECTS)
        _check("colour", self.colour, COLOURS)
        _check("size", self.size, (None, *SIZES))
        _check("place", self.place, (None, *PLACES))
        _check("pose", self.pose, (None, *POSES))
        if not 1 <= self.count <= MAX_OBJECTS:
            raise SceneError(f"count {self.count} of {self.colour} {self.kind}", f"1 to {MAX_OBJECTS}")
        if self.place is not None and self.count > 1:
            raise SceneError(f"{self.count} of {self.kind} with the place {self.place!r}", "a place only with count 1")
        if self.pose is not None and self.kind != "person":
            raise SceneError(f"a {self.kind} with the pose {self.pose!r}", "a pose only for a person")


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole postcard; equal scenes are drawn as equal pixels."""

    objects: tuple[SceneObject, ...]
    """What stands on it, in the order in which a caption names it; one to three drawn things in all."""
    ground: str
    """One of GROUNDS."""
    sky: str
    """One of SKIES."""
    seed: int = 0
    """Decides what the words leave open: unsaid places, small shifts, clouds, tints."""

    def __post_init__(self) -> None:
        _check("ground", self.ground, GROUNDS)
        _check("sky", self.sky, SKIES)
        if self.seed < 0:
            raise SceneError(f"seed {self.seed}", "a whole number from 0")
        if not 1 <= self.total <= MAX_OBJECTS:
            raise SceneError(f"{self.total} objects in the scene", f"1 to {MAX_OBJECTS} in all")
        places = [thing.place for thing in self.objects if thing.place]
        if len(set(places)) < len(places):
            raise SceneError(f"places {', '.join(places)}", "at most one object in each place")
        if len(set(self.objects)) < len(self.objects):
            raise SceneError("the same object twice", "one object with a count", "write count=2 instead")

    @property
    def total(self) -> int:
        """How many things are drawn."""
        return sum(thing.count for thing in self.objects)


@dataclass(frozen=True, slots=True)
class SlotTruth:
    """What is to be seen in one third of the picture."""

    kind: str
    """One of OBJECTS."""
    colour: str
    """One of COLOURS."""
    size: str | None
    """One of SIZES, None for ordinary."""
    pose: str | None
    """One of POSES for a person (standing when unsaid), None for everything else."""


@dataclass(frozen=True, slots=True)
class SceneTruth:
    """What a judge should read from the picture."""

    ground: str
    """One of GROUNDS."""
    sky: str
    """One of SKIES."""
    slots: tuple[SlotTruth | None, SlotTruth | None, SlotTruth | None]
    """Left, middle and right third; None where nothing stands."""
    total: int
    """How many objects there are in all, 1 to 3."""


def _check(what: str, got: str | None, allowed: tuple[str | None, ...]) -> None:
    if got not in allowed:
        raise SceneError(f"{what} {got!r}", "one of " + ", ".join(str(name) for name in allowed))
