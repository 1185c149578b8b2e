"""What run.json says about a run, read for people: state, counts, speed, time by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

STATUSES = ("ok", "error", "duplicate", "skipped")


@dataclass(frozen=True, slots=True)
class Stage:
    """Time that one stage of the work took, summed over lanes."""

    name: str
    """Name of the stage, such as denoise."""
    seconds: float
    """Busy time."""
    share: float
    """Part of all stages' time, 0 to 1."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in a few figures; what run.json does not say is empty or None."""

    name: str
    """Name of the run."""
    state: str
    """planned | running | completed | completed_with_errors | failed | cancelled, or unknown."""
    models: tuple[str, ...] = ()
    """Models that the run used."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows by status."""
    started: datetime | None = None
    """When the run began."""
    wall_seconds: float | None = None
    """Time that the run took, or has taken until its last record."""
    pictures_per_second: float | None = None
    """Pictures made per second of wall time."""
    stages: tuple[Stage, ...] = ()
    """Time by stage, in the order of the record."""
    details: tuple[tuple[str, str], ...] = ()
    """Settings and library versions, name and value."""

    @property
    def total(self) -> int:
        """Rows of the run."""
        return sum(self.counts.values())


def read_summary(run_json: Mapping[str, Any]) -> RunSummary:
    """Turn the content of run.json into figures; a missing key leaves its figure out."""
    counts = {status: int(count) for status, count in (run_json.get("counts") or {}).items() if status in STATUSES}
    started, finished = read_time(run_json.get("started_at")), read_time(run_json.get("finished_at"))
    wall_seconds = run_json.get("wall_seconds")
    if wall_seconds is None and started and finished:
        wall_seconds = (finished - started).total_seconds()
    speed = run_json.get("pictures_per_second")
    if speed is None and wall_seconds and counts.get("ok"):
        speed = counts["ok"] / wall_seconds
    spec = run_json.get("spec") or {}
    model = (spec.get("defaults") or {}).get("model") or spec.get("model")
    return RunSummary(
        name=str(run_json.get("name") or "run"),
        state=str(run_json.get("state") or "unknown"),
        models=(str(model),) if model else (),
        counts=counts,
        started=started,
        wall_seconds=wall_seconds,
        pictures_per_second=speed,
        stages=read_stages(run_json.get("seconds")),
        details=tuple(_flatten({"spec": spec, "versions": run_json.get("versions") or {}})),
    )


def read_stages(seconds: object) -> tuple[Stage, ...]:
    """Stages with time in them; anything but a mapping of name to seconds gives none."""
    if not isinstance(seconds, Mapping):
        return ()
    spent = {str(name): float(value) for name, value in seconds.items() if isinstance(value, int | float) and value > 0}
    whole = sum(spent.values())
    return tuple(Stage(name.replace("_", " "), value, value / whole) for name, value in spent.items())


def read_time(value: object) -> datetime | None:
    """An ISO 8601 text or seconds since 1970 as a moment in UTC; None for anything else."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def format_duration(seconds: float) -> str:
    """A duration for reading: `850 ms`, `12.3 s`, `4 min 05 s`, `2 h 07 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:  # what rounds to 60.0 s is a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def format_rate(rate: float) -> str:
    """Pictures per second with three significant digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _flatten(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as dotted names; None and empty values are left out."""
    if isinstance(value, Mapping):
        return [
            pair for key, inner in value.items() for pair in _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if value is None or value in ("", []):
        return []
    return [(prefix, str(value))]
