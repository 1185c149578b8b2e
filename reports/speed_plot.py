"""Rates as bars: a picture file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup, escape

WIDTH: Final = 860
ROW: Final = 30
HEAD: Final = 54
LABEL: Final = 400
"""Room for the names."""
LENGTH: Final = 320
"""Of the longest bar."""
STYLE: Final = """<style>
svg { font: 13px system-ui, sans-serif; background: #fff; }
.title { font-size: 15px; font-weight: 600; fill: #1b1f24; }
.label, .value { fill: #1b1f24; }
.note { fill: #667; font-size: 11.5px; }
.ours { fill: #2f6f5e; } .plain { fill: #b9bec6; } .wanted { stroke: #b4552d; stroke-width: 2; }
</style>"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One contestant."""

    name: str
    """Beside the bar."""
    value: float | None
    """Length; None where there is no figure."""
    note: str = ""
    """Behind the number: a ratio, or why there is none."""
    is_plain: bool = False
    """Whether it is what the others are compared with."""
    wanted: float | None = None
    """A mark on the bar's line."""


def draw_rates(title: str, bars: Sequence[Bar], unit: str = "pictures/s", key: str = "") -> Markup:
    """Horizontal bars on one scale, the numbers behind them.

    Args:
        title: Above them.
        bars: From top to bottom.
        unit: Of the numbers.
        key: What else a reader must know, below the title.
    """
    longest = max((end for bar in bars for end in (bar.value, bar.wanted) if end is not None), default=1.0)
    told = f"{title}, {unit}: " + ", ".join(f"{bar.name} {bar.value:.3g}" for bar in bars if bar.value is not None)
    size = f'viewBox="0 0 {WIDTH} {HEAD + ROW * len(bars) + 12}" role="img" aria-label="{escape(told)}"'
    shapes = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, _write("title", 10, 20, title)]
    shapes.append(_write("note", 10, 36, f"{unit}{key}"))
    for number, bar in enumerate(bars):
        shapes += _draw_bar(bar, HEAD + number * ROW, LENGTH / (longest or 1.0))
    return Markup("".join([*shapes, "</svg>"]))


def _draw_bar(bar: Bar, top: int, scale: float) -> Iterator[str]:
    yield _write("label", 10, top + 15, bar.name)
    if bar.value is None:
        yield _write("note", LABEL, top + 15, bar.note)
        return
    width = bar.value * scale
    kind = "plain" if bar.is_plain else "ours"
    yield f'<rect class="{kind}" x="{LABEL}" y="{top}" width="{width:.1f}" height="20"/>'
    yield _write("value", LABEL + _find_end(bar) * scale + 6, top + 15, f"{bar.value:.3g} {bar.note}".strip())
    if bar.wanted is not None:
        mark = f"{LABEL + bar.wanted * scale:.1f}"
        yield f'<line class="wanted" x1="{mark}" x2="{mark}" y1="{top - 4}" y2="{top + 24}"/>'


def _find_end(bar: Bar) -> float:
    """Where the drawing of a bar and its mark ends, and its number begins."""
    return max(bar.value or 0.0, bar.wanted or 0.0)


def _write(kind: str, x: float, y: float, words: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:g}">{escape(words)}</text>'


def list_bars(found: Mapping[str, Any]) -> list[Bar]:
    """Bars of one case of `dgate bench generate`, what was not run included."""
    best = found["contestants"].get("diffusers, best batch", {}).get("pictures_per_second")
    bars = [
        Bar(
            f"{name}, batch {each['batch']}" if "batch 1" not in name else name,
            each["pictures_per_second"],
            f"({each['pictures_per_second'] / best:.2f}x)" if best else "",
            name.startswith("diffusers"),
            found["targets"].get(name, {}).get("wanted"),
        )
        for name, each in found["contestants"].items()
    ]
    return bars + [Bar(name, None, f"not run: {why[:60]}") for name, why in found["not_run"].items()]


def draw_case(found: Mapping[str, Any]) -> str:
    """The plot of one case as an SVG file."""
    machine = found["machine"].get("gpu", found["device"])
    title = f"{found['case']['name']}, {found['steps']} steps, {found['weights']} weights, {machine}"
    bars = list_bars(found)
    key = "; in brackets the ratio to diffusers' best batch" if any(bar.note.startswith("(") for bar in bars) else ""
    key += "; the line is the target" if any(bar.wanted is not None for bar in bars) else ""
    return f"{draw_rates(title, bars, key=key)}\n"
