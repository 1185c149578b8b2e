"""Plots as inline SVG: an effect against what is allowed, a history, a distribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from reports.evaluation.history import HistoryPoint
from reports.evaluation.numbers import Interval, format_number, format_share
from reports.evaluation.shapes import Scale, box, dot, draw, line, outline, text

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Bound = tuple[float | None, float | None]

BINS = 28
FEW_VALUES = 12
BAR_SHARE = 0.6
"""Of the room of a value's bin, where every value has a bin of its own."""
WIDTH, HEIGHT, BASE, TOP = 420, 172, 144.0, 10.0
"""Of a distribution, in the units of the drawing."""


def draw_effect(effect: float, interval: Interval | None, bound: Bound | None) -> Markup:
    """An effect with its interval, over the range that the rule allows; a line marks no change.

    Args:
        effect: What was measured.
        interval: Its confidence interval.
        bound: Least and greatest effect allowed; None is no limit.
    """
    width, height, middle = 220, 26, 13.0
    low_bound, high_bound = bound or (None, None)
    shown = [effect, *(interval or ()), *(end for end in (low_bound, high_bound) if end is not None)]
    if low_bound is None or high_bound is None or low_bound <= 0 <= high_bound:
        shown.append(0.0)
    margin = (max(shown) - min(shown)) * 0.12 or 1.0
    scale = Scale(min(shown) - margin, max(shown) + margin, 2, width - 2)
    left = scale.start if low_bound is None else scale.place(low_bound)
    right = scale.end if high_bound is None else scale.place(high_bound)
    shapes = [box("track", 0, 3, width, height - 6), box("allowed", left, 3, right - left, height - 6)]
    shapes += [
        line("limit", scale.place(end), 1, scale.place(end), height - 1) for end in bound or () if end is not None
    ]
    if scale.low <= 0 <= scale.high:
        shapes.append(line("zero", scale.place(0), 3, scale.place(0), height - 3))
    if interval:
        ends = [scale.place(end) for end in interval]
        shapes.append(line("whisker", ends[0], middle, ends[1], middle))
        shapes += [line("whisker", end, middle - 4, end, middle + 4) for end in ends]
    shapes.append(dot("dot", scale.place(effect), middle, 4))
    return draw((width, height), _describe_effect(effect, bound), "effect", shapes)


def _describe_effect(effect: float, bound: Bound | None) -> str:
    low, high = bound or (None, None)
    limits = [f"at least {format_number(low, signed=True)}"] if low is not None else []
    limits += [f"at most {format_number(high, signed=True)}"] if high is not None else []
    return f"effect {format_number(effect, signed=True)}; allowed: {' and '.join(limits) or 'anything'}"


def draw_history(points: Sequence[HistoryPoint]) -> Markup:
    """A metric over earlier runs, the present one last, with intervals."""
    width, height = 168, 40
    ends = [end for point in points for end in (point.value, *(point.interval or ()))]
    up = Scale(min(ends), max(ends), height - 6, 6)
    across = Scale(0, max(1, len(points) - 1), 7, width - 7)
    places = [(across.place(number), up.place(point.value)) for number, point in enumerate(points)]
    shapes = [outline("trend", places)]
    for (x, y), point in zip(places, points, strict=True):
        kind = "now" if point.is_current else "past"
        if point.interval:
            shapes.append(line(f"range {kind}", x, up.place(point.interval[0]), x, up.place(point.interval[1])))
        told = f"{point.run}, {point.moment:%d %b %Y %H:%M}: {format_number(point.value)}"
        shapes.append(dot(f"point {kind}", x, y, 3.5 if point.is_current else 2.5, told))
    told = ", ".join(format_number(point.value) for point in points)
    return draw((width, height), f"over {len(points)} evaluations, the oldest first: {told}", "history", shapes)


def draw_distribution(candidate: Numbers, baseline: Numbers) -> Markup:
    """How the pictures' scores are spread: the run as bars, the baseline as an outline, means as lines.

    Args:
        candidate: Scores (N,), finite, at least one.
        baseline: Scores (M,), finite, perhaps none.
    """
    groups = {"run": candidate, "before": baseline} if len(baseline) else {"run": candidate}
    values = np.concatenate(list(groups.values()))
    edges, ticks = choose_edges(values), choose_ticks(values)
    shares = {name: np.histogram(group, edges)[0] / len(group) for name, group in groups.items()}
    means = {name: float(np.mean(group)) for name, group in groups.items()}
    across = Scale(float(edges[0]), float(edges[-1]), 8, WIDTH - 8)
    up = Scale(0, float(max(share.max() for share in shares.values())), BASE, TOP)
    shapes = list(_draw_bars(across, up, edges, shares, 1.0 if len(ticks) == 3 else BAR_SHARE))
    if "before" in shares:
        shapes.append(_draw_outline(across, up, edges, shares["before"]))
    shapes.append(line("axis", 8, BASE, WIDTH - 8, BASE))
    shapes += [line(f"mean of-{name}", *_stand(across.place(value))) for name, value in means.items()]
    shapes += _draw_ticks(across, ticks)
    told = ", baseline ".join(format_number(value) for value in means.values())
    return draw((WIDTH, HEIGHT), f"distribution over {len(candidate)} pictures; mean {told}", "distribution", shapes)


def choose_edges(values: Numbers) -> Numbers:
    """Edges of the bins: a bin for each value where there are few, else equal bins over the whole range."""
    distinct = np.unique(values)
    if len(distinct) == 1:
        half = abs(float(distinct[0])) / 10 or 0.5
        return np.array([distinct[0] - half, distinct[0] + half])
    if len(distinct) <= FEW_VALUES:
        between = (distinct[1:] + distinct[:-1]) / 2
        return np.concatenate([[2 * distinct[0] - between[0]], between, [2 * distinct[-1] - between[-1]]])
    return np.linspace(distinct[0], distinct[-1], BINS + 1)


def choose_ticks(values: Numbers) -> list[float]:
    """Both ends and the middle; each value where there are few."""
    distinct = np.unique(values)
    if len(distinct) <= FEW_VALUES:
        return [float(value) for value in distinct]
    return [float(distinct[0]), float(distinct[0] + distinct[-1]) / 2, float(distinct[-1])]


def _stand(x: float) -> tuple[float, float, float, float]:
    return x, TOP - 6, x, BASE


def _draw_ticks(across: Scale, ticks: Sequence[float]) -> Iterator[str]:
    step = (ticks[-1] - ticks[0]) / 8 if len(ticks) == 3 else None
    for value in ticks:
        x = across.place(value)
        anchor = "first" if x < WIDTH / 8 else "last" if x > WIDTH * 7 / 8 else "mid"
        yield text(f"tick {anchor}", x, BASE + 18, format_number(value, step))


def _draw_bars(across: Scale, up: Scale, edges: Numbers, shares: dict[str, Numbers], width: float) -> Iterator[str]:
    spread = float(edges[1] - edges[0])
    for number in range(len(edges) - 1):
        low, high = float(edges[number]), float(edges[number + 1])
        left, right = across.place(low), across.place(high)
        margin = (right - left) * (1 - width) / 2 + 0.5
        told = f"{format_number(low, spread)} to {format_number(high, spread)}: {format_share(shares['run'][number])}"
        if "before" in shares:
            told += f", baseline {format_share(shares['before'][number])}"
        y = up.place(float(shares["run"][number]))
        yield box("mass", left + margin, y, right - left - 2 * margin, BASE - y, told)


def _draw_outline(across: Scale, up: Scale, edges: Numbers, shares: Numbers) -> str:
    places = [(across.place(float(edges[0])), BASE)]
    for number, share in enumerate(shares):
        y = up.place(float(share))
        places += [(across.place(float(edges[number])), y), (across.place(float(edges[number + 1])), y)]
    places.append((across.place(float(edges[-1])), BASE))
    return outline("outline", places)
