"""Models side by side as one page of HTML that needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from dgate_core.runs.pictures import read_picture
from dgate_core.storage import open_storage
from reports.evaluation.numbers import format_interval, format_number
from reports.html import open_templates, read_template
from reports.speed_plot import Bar, draw_rates
from reports.thumbnails import make_thumbnail

PICTURE_SIZE: Final = 512
SPEEDS: Final = (
    ("latency_seconds", "latency, batch 1", "s", "lower"),
    ("pictures_per_second", "throughput, best batch", "pictures/s", "higher"),
    ("peak_gib", "peak memory", "GiB", "lower"),
    ("parameters_millions", "denoiser", "M parameters", ""),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of one model."""

    value: str
    """Written; empty when there is none."""
    note: str
    """Interval, batch size, or why there is no number."""
    is_best: bool
    """Of its row; never where all are alike."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of all models."""

    name: str
    """Of the figure."""
    unit: str
    """Behind the name."""
    cells: tuple[Cell, ...]
    """In the order of the models."""


def render_comparison(found: Mapping[str, Any]) -> str:
    """The page of what `dgate bench compare` found."""
    names = [each["name"] for each in found["contenders"]]
    return (
        open_templates()
        .get_template("comparison.html.j2")
        .render(
            names=names,
            rows=list_rows(found["contenders"]),
            plots=draw_plots(found["contenders"]),
            samples=read_samples(found),
            warnings=list_warnings(found["contenders"]),
            found=found,
            machine=found["machine"].get("gpu", f"{found['machine']['cores']} cores of a CPU"),
            style=read_template("gallery.css") + read_template("comparison.css"),
        )
    )


def list_rows(contenders: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Speeds, then every metric."""
    rows = [
        Row(title, unit, mark_best([each["speed"][key] for each in contenders], better, _speed_notes(key, contenders)))
        for key, title, unit, better in SPEEDS
    ]
    for name in dict.fromkeys(name for each in contenders for name in each["metrics"]):
        metrics = [each["metrics"].get(name) for each in contenders]
        better = next(metric["better"] for metric in metrics if metric)
        values = [metric["value"] if metric else None for metric in metrics]
        rows.append(Row(name, "", mark_best(values, better, [_metric_note(metric) for metric in metrics])))
    return rows


def mark_best(values: Sequence[float | None], better: str, notes: Sequence[str]) -> tuple[Cell, ...]:
    """Cells of a row; the best of different values is marked."""
    known = [value for value in values if value is not None]
    best = {"higher": max, "lower": min}[better](known) if better and len(set(known)) > 1 else None
    return tuple(
        Cell("" if value is None else format_number(value), note, value is not None and value == best)
        for value, note in zip(values, notes, strict=True)
    )


def _speed_notes(key: str, contenders: Sequence[Mapping[str, Any]]) -> list[str]:
    if key != "pictures_per_second":
        return ["" for _ in contenders]
    return [f"batch {each['speed']['best_batch']}" for each in contenders]


def _metric_note(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "not measured"
    if metric["error"]:
        return str(metric["error"])
    return format_interval(tuple(metric["interval"])) if metric["interval"] else ""


def draw_plots(contenders: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Throughput and latency as bars."""
    return [
        draw_rates(title, [Bar(each["name"], each["speed"][key]) for each in contenders], unit, f"; {better} is better")
        for key, title, unit, better in SPEEDS[:2]
    ]


def list_warnings(contenders: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the metrics, each once."""
    return list(
        dict.fromkeys(
            f"{name}: {warning}"
            for each in contenders
            for name, metric in each["metrics"].items()
            for warning in metric["warnings"]
        )
    )


def read_samples(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Prompts with their pictures as data addresses, in the order of the models."""
    storages = [open_storage(each["run"]) for each in found["contenders"]]
    return [
        {
            "prompt": sample["prompt"],
            "pictures": [
                _to_address(read_picture(storage, path))
                for storage, path in zip(storages, sample["paths"], strict=True)
            ],
        }
        for sample in found["samples"]
    ]


def _to_address(data: bytes) -> str:
    small = make_thumbnail(data, PICTURE_SIZE)
    return "data:image/webp;base64," + base64.b64encode(small).decode("ascii")
