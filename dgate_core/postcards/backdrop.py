"""Sky and ground: gradients, sun, moon, stars, clouds, hills, waves, dunes, road lines, rain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dgate_core.postcards.layout import FLYING, SLOT_CENTRES, Moment, scene_horizon
from dgate_core.postcards.palette import GROUND_LIGHT, GROUND_RGB, RGB, SKY_RGB, light_colour, mix_colours

_HILL_HEIGHT: Final[dict[str, float]] = {"grass": 0.05, "sand": 0.035, "snow": 0.075, "sea": 0.0, "road": 0.03}
_HILL_RGB: Final[dict[str, RGB]] = {
    "grass": (116, 178, 104),
    "sand": (232, 202, 146),
    "snow": (204, 218, 238),
    "road": (150, 176, 130),
}
_CLOUD_DRIFT: Final = 0.012
_RAIN_SPEED: Final = 1.6
_RAINDROPS: Final = 26


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture under work, larger than the finished one."""

    image: Image.Image
    """Mode RGB, square."""
    draw: ImageDraw.ImageDraw
    """Paints opaque colours; four-part colours are blended."""
    scale: float
    """Pixels of this canvas to the picture's whole side."""

    def fill_ellipse(self, centre: tuple[float, float], radii: tuple[float, float], colour: tuple[int, ...]) -> None:
        """Fill an ellipse given in shares of the picture."""
        (x, y), (rx, ry), s = centre, radii, self.scale
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=colour)

    def fill_polygon(self, corners: list[tuple[float, float]], colour: tuple[int, ...]) -> None:
        """Fill a polygon given in shares of the picture."""
        self.draw.polygon([(x * self.scale, y * self.scale) for x, y in corners], fill=colour)

    def fill_box(self, low: tuple[float, float], high: tuple[float, float], colour: tuple[int, ...]) -> None:
        """Fill a rectangle given in shares of the picture."""
        s = self.scale
        self.draw.rectangle((low[0] * s, low[1] * s, high[0] * s - 1, high[1] * s - 1), fill=colour)


def paint_backdrop(moment: Moment, side: int) -> Canvas:
    """Sky and ground of a moment on a new canvas of side x side pixels."""
    scene = moment.scene
    horizon = scene_horizon(scene)
    image = Image.fromarray(_gradient_column(scene.ground, scene.sky, horizon, side)).resize(
        (side, side), Image.Resampling.NEAREST
    )
    canvas = Canvas(image, ImageDraw.Draw(image, "RGBA"), side)
    rng = np.random.default_rng((scene.seed, 3))
    _paint_sky(canvas, moment, horizon, rng)
    hills = hill_corners(moment, horizon)
    if hills:
        canvas.fill_polygon(hills, _hill_colour(scene.ground, scene.sky))
    _paint_ground(canvas, moment, horizon, rng)
    return canvas


def hill_corners(moment: Moment, horizon: float) -> list[tuple[float, float]]:
    """The polygon of the hills at the horizon; empty at sea."""
    height = _HILL_HEIGHT[moment.scene.ground]
    if not height:
        return []
    first, second = np.random.default_rng((moment.scene.seed, 4)).uniform(0, 2 * np.pi, 2)
    x = np.linspace(0, 1, 25)
    y = horizon - height * (0.55 + 0.3 * np.sin(5 * x + first) + 0.15 * np.sin(11 * x + second))
    return [(0.0, horizon + 0.004), *zip(x.tolist(), y.tolist(), strict=True), (1.0, horizon + 0.004)]


def paint_rain(canvas: Canvas, moment: Moment) -> None:
    """Streaks of rain over everything."""
    rng = np.random.default_rng((moment.scene.seed, 5))
    for x, start, length in rng.random((_RAINDROPS, 3)).tolist():
        y = (start + _RAIN_SPEED * moment.seconds) % 1.1 - 0.1
        size = 0.05 + 0.04 * length
        line = [
            (x * 1.1 * canvas.scale, y * canvas.scale),
            ((x * 1.1 - size * 0.3) * canvas.scale, (y + size) * canvas.scale),
        ]
        canvas.draw.line(line, fill=(232, 240, 250, 150), width=max(1, round(canvas.scale * 0.009)))


def _gradient_column(ground: str, sky: str, horizon: float, side: int) -> npt.NDArray[np.uint8]:
    """One column of colours from the top of the sky to the near ground, (side, 1, 3) uint8."""
    y = (np.arange(side) + 0.5) / side
    far, near = (light_colour(colour, GROUND_LIGHT[sky]) for colour in GROUND_RGB[ground])
    stops = np.array([*SKY_RGB[sky], far, near], dtype=np.float64)
    places = np.array([0.0, horizon * 0.55, horizon - 0.0005, horizon, 1.0])
    column = np.stack([np.interp(y, places, stops[:, channel]) for channel in range(3)], axis=1)
    return np.round(column).astype(np.uint8)[:, None, :]


def _hill_colour(ground: str, sky: str) -> RGB:
    return mix_colours(light_colour(_HILL_RGB[ground], GROUND_LIGHT[sky]), SKY_RGB[sky][2], 0.3)


def _paint_sky(canvas: Canvas, moment: Moment, horizon: float, rng: np.random.Generator) -> None:
    x = _light_place(moment, rng)
    match moment.scene.sky:
        case "day":
            canvas.fill_ellipse((x, 0.13), (0.1, 0.1), (255, 250, 200, 110))
            canvas.fill_ellipse((x, 0.13), (0.065, 0.065), (255, 236, 120))
            _paint_clouds(canvas, moment, rng, (255, 255, 255, 215), 0.16)
        case "sunset":
            canvas.fill_ellipse((x, horizon - 0.02), (0.19, 0.19), (255, 226, 150, 90))
            canvas.fill_ellipse((x, horizon - 0.02), (0.12, 0.12), (255, 240, 170))
            _paint_clouds(canvas, moment, rng, (255, 196, 168, 150), 0.2)
        case "night":
            for sx, sy, bright in rng.random((22, 3)).tolist():
                radius = 0.005 + 0.005 * bright
                canvas.fill_ellipse((sx, sy * (horizon - 0.1)), (radius, radius), (240, 240, 215))
            canvas.fill_polygon(_crescent(x, 0.14, 0.068), (250, 244, 200))
        case "rain":
            _paint_clouds(canvas, moment, rng, (84, 92, 108, 220), 0.07)


def _light_place(moment: Moment, rng: np.random.Generator) -> float:
    """A third of the sky that nothing stands in front of, if there is one."""
    low = moment.scene.sky == "sunset"
    taken = {thing.slot for thing in moment.placed if low or thing.kind in FLYING or thing.size == "large"}
    free = [slot for slot in range(3) if slot not in taken] or [2]
    return SLOT_CENTRES[free[int(rng.integers(len(free)))]] + float(rng.uniform(-0.05, 0.05))


def _crescent(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    outer = np.linspace(-0.6 * np.pi, 0.6 * np.pi, 14)
    inner = outer[::-1]
    points = [(x + radius * float(np.cos(a)), y + radius * float(np.sin(a))) for a in outer]
    return points + [
        (x - 0.42 * radius + radius * float(np.cos(a)) * 0.85, y + radius * float(np.sin(a))) for a in inner
    ]


def _paint_clouds(canvas: Canvas, moment: Moment, rng: np.random.Generator, colour: tuple[int, ...], y: float) -> None:
    number = 4 if moment.scene.sky == "rain" else 2
    for index in range(number):
        shift, lift, size = rng.random(3).tolist()
        x = ((index + 0.2 + 0.6 * shift) / number + _CLOUD_DRIFT * moment.seconds + 0.2) % 1.4 - 0.2
        top, width = y + 0.16 * lift * (number == 2), (0.07 + 0.03 * size) * (1.5 if number == 4 else 1)
        for dx, dy, share in ((-0.8, 0.12, 0.6), (0.0, -0.1, 0.85), (0.8, 0.1, 0.65)):
            canvas.fill_ellipse((x + dx * width, top + dy * width), (width * share, width * share * 0.5), colour)


def _paint_ground(canvas: Canvas, moment: Moment, horizon: float, rng: np.random.Generator) -> None:
    light = GROUND_LIGHT[moment.scene.sky]
    far, near = (light_colour(colour, light) for colour in GROUND_RGB[moment.scene.ground])
    match moment.scene.ground:
        case "grass":
            _paint_marks(
                canvas, rng, horizon, (light_colour((70, 146, 60), light), mix_colours(far, near, 0.1)), "tuft"
            )
        case "sand":
            _paint_marks(
                canvas, rng, horizon, (light_colour((216, 182, 116), light), mix_colours(far, near, 0.1)), "ripple"
            )
        case "snow":
            _paint_marks(
                canvas,
                rng,
                horizon,
                (light_colour((206, 220, 240), light), light_colour((255, 255, 255), light)),
                "drift",
            )
        case "sea":
            _paint_waves(canvas, moment, horizon, mix_colours(far, light_colour((255, 255, 255), light), 0.45))
        case "road":
            _paint_road(canvas, horizon, light)


def _paint_marks(canvas: Canvas, rng: np.random.Generator, horizon: float, colours: tuple[RGB, RGB], mark: str) -> None:
    for index, (x, depth) in enumerate(rng.random((16, 2)).tolist()):
        y = horizon + 0.03 + (0.96 - horizon - 0.03) * depth
        size = (0.5 + 0.8 * depth) * 0.03
        colour = colours[index % 2]
        if mark == "tuft":
            for lean in (-0.6, 0.0, 0.6):
                canvas.fill_polygon([(x - size * 0.3, y), (x + lean * size, y - size), (x + size * 0.3, y)], colour)
        elif mark == "ripple":
            canvas.fill_ellipse((x, y), (size * 1.6, size * 0.22), colour)
        else:
            canvas.fill_ellipse((x, y), (size * 3.0, size * 0.5), colour)


def _paint_waves(canvas: Canvas, moment: Moment, horizon: float, colour: RGB) -> None:
    rng = np.random.default_rng((moment.scene.seed, 6))
    rows = 7
    for row in range(rows):
        depth = (row + 0.6) / rows
        y, length = horizon + (1 - horizon) * depth**1.3, 0.05 + 0.09 * depth
        for shift in rng.random(3 if row % 2 else 2).tolist():
            x = (shift + 0.03 * moment.seconds * (1 if row % 2 else -1)) % 1.2 - 0.1
            canvas.fill_ellipse((x, y), (length * 0.5, 0.004 + 0.004 * depth), (*colour, 190))


def _paint_road(canvas: Canvas, horizon: float, light: tuple[float, float, float]) -> None:
    verge, white = light_colour((150, 190, 110), light), light_colour((250, 248, 240), light)
    top = horizon + 0.055
    canvas.fill_box((0, horizon), (1, top), verge)
    canvas.fill_box((0, top), (1, top + 0.014), white)
    middle = horizon + 0.52 * (1 - horizon)
    for index in range(5):
        x = index * 0.24 - 0.06
        canvas.fill_polygon(
            [(x + 0.01, middle), (x + 0.13, middle), (x + 0.12, middle + 0.024), (x, middle + 0.024)], white
        )
    canvas.fill_box((0, 0.955), (1, 0.975), white)
