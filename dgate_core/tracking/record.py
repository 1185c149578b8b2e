"""A record: what a run has to say at one moment, as one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

RECORD_VERSION = 1

RecordKind = Literal["run", "evaluation", "training"]


@dataclass(frozen=True, slots=True)
class PictureTable:
    """A small table whose cells may be pictures."""

    name: str
    """Such as `worst_regressions`."""
    columns: tuple[str, ...]
    """Names, in order."""
    pictures: tuple[str, ...]
    """Columns whose cells are keys of PNG files in the run's folder, or empty."""
    rows: tuple[tuple[Any, ...], ...]
    """Plain values, a cell for each column."""


@dataclass(frozen=True, slots=True)
class TrackingRecord:
    """What is told to every tracker."""

    kind: RecordKind
    """What it is about."""
    created: float
    """POSIX seconds."""
    step: int | None = None
    """Of a training; None for what has no steps."""
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Settings that stand for the whole run."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers by name; NaN and infinity are numbers too."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Words that may change, such as `verdict: pass`."""
    tables: tuple[PictureTable, ...] = ()
    """Rows with pictures."""
    documents: Mapping[str, Any] = field(default_factory=dict)
    """Plain data by name, kept whole: the evaluation, the verdict."""
    version: int = RECORD_VERSION
    """Of this record."""


def record_to_line(record: TrackingRecord) -> str:
    """One line of JSON, without its end."""
    metrics = {name: _number_to_json(value) for name, value in record.metrics.items()}
    return json.dumps({**asdict(record), "metrics": metrics}, ensure_ascii=False, allow_nan=False)


def line_to_record(line: str) -> TrackingRecord:
    """The inverse of `record_to_line`."""
    found: dict[str, Any] = json.loads(line)
    metrics = {name: float(value) for name, value in found.pop("metrics").items()}
    tables = tuple(_read_table(table) for table in found.pop("tables"))
    return TrackingRecord(metrics=metrics, tables=tables, **found)


def _number_to_json(value: float) -> float | str:
    """JSON has no NaN and no infinity: they are written as words that `float` reads."""
    return value if math.isfinite(value) else str(float(value))


def _read_table(found: Mapping[str, Any]) -> PictureTable:
    rows = tuple(tuple(row) for row in found["rows"])
    return PictureTable(found["name"], tuple(found["columns"]), tuple(found["pictures"]), rows)
