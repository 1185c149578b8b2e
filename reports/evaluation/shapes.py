"""The few shapes of SVG that plots are made of; their classes get colours from the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers to places, on a line."""

    low: float
    """Number at `start`."""
    high: float
    """Number at `end`."""
    start: float
    """In the units of the drawing."""
    end: float
    """In the units of the drawing; smaller than `start` on an axis that points up."""

    def place(self, value: float) -> float:
        """Where a number stands; those beyond an end stand there."""
        part = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + (self.end - self.start) * min(1.0, max(0.0, part)), 2)


def draw(size: tuple[int, int], label: str, kind: str, shapes: Sequence[str]) -> Markup:
    """An SVG with a text for those who do not see it."""
    box = f'viewBox="0 0 {size[0]} {size[1]}"'
    return Markup(f'<svg class="{kind}" {box} role="img" aria-label="{escape(label)}">{"".join(shapes)}</svg>')


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def box(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> str:
    """A rectangle, with a text that shows under the pointer."""
    told = f"<title>{escape(title)}</title>" if title else ""
    place = f'x="{x:g}" y="{y:g}" width="{max(width, 0):g}" height="{max(height, 0):g}"'
    return f'<rect class="{kind}" {place}>{told}</rect>'


def outline(kind: str, places: Sequence[tuple[float, float]]) -> str:
    """A line from place to place."""
    return f'<polyline class="{kind}" points="{" ".join(f"{x:g},{y:g}" for x, y in places)}"/>'


def dot(kind: str, x: float, y: float, radius: float, title: str = "") -> str:
    """A filled circle, with a text that shows under the pointer."""
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}">{told}</circle>'


def text(kind: str, x: float, y: float, words: str) -> str:
    """Words at a place."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'
