"""The colours of the postcard world: ten for objects, five grounds, four skies, and what light does to them."""

from __future__ import annotations

from typing import Final

RGB = tuple[int, int, int]
Light = tuple[float, float, float]

COLOUR_RGB: Final[dict[str, RGB]] = {
    "red": (222, 24, 36),
    "orange": (255, 132, 0),
    "yellow": (255, 224, 24),
    "green": (0, 138, 62),
    "blue": (24, 78, 232),
    "purple": (128, 32, 184),
    "pink": (255, 128, 196),
    "brown": (122, 70, 30),
    "white": (250, 250, 250),
    "black": (30, 30, 36),
}

# Top, middle and horizon of each sky.
SKY_RGB: Final[dict[str, tuple[RGB, RGB, RGB]]] = {
    "day": ((126, 196, 248), (178, 220, 250), (228, 243, 253)),
    "sunset": ((122, 92, 148), (232, 138, 120), (255, 216, 152)),
    "night": ((12, 16, 46), (24, 32, 74), (52, 62, 116)),
    "rain": ((104, 114, 130), (140, 149, 162), (178, 186, 195)),
}

# Far (at the horizon) and near (at the lower edge) colour of each ground, in plain daylight.
GROUND_RGB: Final[dict[str, tuple[RGB, RGB]]] = {
    "grass": ((158, 212, 112), (106, 182, 80)),
    "sand": ((250, 230, 176), (240, 204, 122)),
    "snow": ((250, 252, 255), (230, 238, 250)),
    "sea": ((100, 186, 208), (24, 112, 158)),
    "road": ((142, 144, 152), (112, 114, 122)),
}

# What the sky's light multiplies the ground's colours with.
GROUND_LIGHT: Final[dict[str, Light]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.84, 0.76),
    "night": (0.46, 0.47, 0.61),
    "rain": (0.78, 0.82, 0.86),
}

# The same for objects, much weaker: a red boat must stay red at night.
OBJECT_LIGHT: Final[dict[str, Light]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.96, 0.93),
    "night": (0.91, 0.91, 0.94),
    "rain": (0.94, 0.95, 0.97),
}

_DARK_COLOURS: Final = frozenset({"black", "brown", "blue", "purple"})
_DETAIL_RGB: Final[dict[str, RGB]] = {
    "bark": (104, 66, 40),
    "wood": (158, 108, 62),
    "leaf": (58, 142, 66),
    "wheel": (44, 44, 50),
    "metal": (196, 200, 208),
    "paper": (252, 252, 250),
    "pupil": (20, 20, 26),
    "shoe": (62, 50, 50),
    "lamp": (255, 240, 150),
    "beak": (250, 168, 30),
}
_SKIN_RGB: Final[tuple[RGB, ...]] = ((250, 214, 182), (222, 172, 130), (156, 106, 74))
_HAIR_RGB: Final[tuple[RGB, ...]] = ((82, 54, 34), (36, 30, 32), (28, 24, 26))
SKINS: Final = len(_SKIN_RGB)


def mix_colours(first: RGB, second: RGB, share: float) -> RGB:
    """Go from the first colour (share 0) to the second (share 1)."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def light_colour(colour: RGB, light: Light) -> RGB:
    """Multiply a colour with a light, clipped to 0..255."""
    red, green, blue = (min(255, max(0, round(c * f))) for c, f in zip(colour, light, strict=True))
    return red, green, blue


def choose_tones(colour: str, sky: str, tint: tuple[int, int, int], skin: int) -> dict[str, RGB]:
    """Every tone that a figure of this colour is painted with under this sky, by name.

    Args:
        colour: One of COLOURS.
        sky: One of SKIES.
        tint: Small offsets to red, green and blue that make each object a little its own.
        skin: Index below SKINS, for persons.
    """
    base = light_colour(_add(COLOUR_RGB[colour], tint), OBJECT_LIGHT[sky])
    details = {name: light_colour(rgb, OBJECT_LIGHT[sky]) for name, rgb in _DETAIL_RGB.items()}
    lifted = mix_colours(base, (255, 255, 255), 0.16 if colour in ("black", "brown") else 0.28)
    return details | {
        "base": base,
        "light": lifted,
        "dark": light_colour(base, (0.80, 0.82, 0.86) if colour == "white" else (0.74, 0.72, 0.76)),
        "ink": _choose_ink(colour, base, sky),
        "skin": light_colour(_SKIN_RGB[skin], OBJECT_LIGHT[sky]),
        "hair": _HAIR_RGB[skin],
        "heart": (122, 70, 30) if colour in ("yellow", "orange", "white") else (255, 214, 60),
        "window": (255, 226, 120) if sky == "night" else (206, 232, 246),
    }


def _choose_ink(colour: str, base: RGB, sky: str) -> RGB:
    # A dark line keeps white readable on snow; a pale one keeps black readable at night.
    if sky == "night" and colour in _DARK_COLOURS:
        return mix_colours(base, (214, 222, 250), 0.62 if colour == "black" else 0.36)
    return light_colour(base, (0.36, 0.36, 0.42)) if colour != "white" else (92, 98, 116)


def _add(colour: RGB, tint: tuple[int, int, int]) -> RGB:
    red, green, blue = (min(255, max(0, c + t)) for c, t in zip(colour, tint, strict=True))
    return red, green, blue
