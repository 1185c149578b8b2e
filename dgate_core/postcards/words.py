"""The words of captions: every phrase, the canonical one first, and the one meaning that it has."""

from __future__ import annotations

from typing import Final

from dgate_core.postcards.scene import COLOURS, OBJECTS

Phrases = dict[str, tuple[str, ...]]

PLURALS: Final[dict[str, str]] = {kind: {"fish": "fish", "person": "people"}.get(kind, f"{kind}s") for kind in OBJECTS}
EXTRA_PLURALS: Final[dict[str, str]] = {"fishes": "fish", "persons": "person"}  # read, never written
SPELLINGS: Final[dict[str, str]] = {"center": "centre", "gray": "grey", "1": "one", "2": "two", "3": "three", "an": "a"}

GROUND_PHRASES: Final[Phrases] = {
    "grass": ("on grass", "on the grass", "in a meadow"),
    "sand": ("on sand", "on the sand", "on a beach"),
    "snow": ("on snow", "in the snow", "on the snow"),
    "sea": ("on the sea", "at sea", "on the water"),
    "road": ("on a road", "on the road", "on a street"),
}
SKY_PHRASES: Final[Phrases] = {
    "day": ("by day", "in daylight", "on a sunny day"),
    "sunset": ("at sunset", "under a sunset sky", "at dusk"),
    "night": ("at night", "under a night sky", "under the stars"),
    "rain": ("in the rain", "under a rainy sky", "on a rainy day"),
}
PLACE_PHRASES: Final[Phrases] = {
    "left": ("on the left", "to the left", "at the left"),
    "middle": ("in the middle", "in the centre", "at the centre"),
    "right": ("on the right", "to the right", "at the right"),
}
SIZE_WORDS: Final[Phrases] = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
COUNT_WORDS: Final[dict[int, tuple[str, ...]]] = {
    1: ("a", "one"),
    2: ("two", "a pair of"),
    3: ("three", "a trio of"),
}
POSE_WORDS: Final[Phrases] = {
    "standing": ("standing",),
    "waving": ("waving",),
    "walking": ("walking",),
    "jumping": ("jumping",),
}
DRESS_PHRASES: Final[Phrases] = {colour: (f"in {colour}", f"wearing {colour}") for colour in COLOURS}
OPENERS: Final = ("a postcard of", "a picture of", "there is", "there are")
JOINERS: Final = ("and", "with")
