"""What a plan says of itself, and how it reads in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dgate_core.manifest.item import BatchKey
from dgate_core.manifest.problems import Problem

SHOWN_PROBLEMS = 50
_SHOWN_KEYS = 20


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """The images of one batch key."""

    key: BatchKey
    """What they share."""
    images: int
    """To be made."""
    shards: int
    """Into which they are cut."""
    seconds: float
    """Rough time of all of them on one lane."""


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What was planned."""

    rows: int
    """Rows of the manifest, good or bad."""
    images: int
    """Rows of the plan: planned, duplicates and errors together."""
    planned: int
    """Images to make."""
    errors: int
    """Rows that cannot be made."""
    duplicates: int
    """Images whose pixels another row's image gives."""
    shards: int
    """Pieces of work."""
    batch_keys: tuple[GroupSummary, ...]
    """In the order of appearance."""
    estimated_seconds: dict[int, float]
    """Rough time, by number of lanes."""
    estimated_bytes: int
    """Rough size of the pictures."""
    problems: tuple[Problem, ...]
    """The first ones, a bounded number."""
    problem_counts: dict[str, int]
    """All problems, kept or not, by code; a row may have several."""
    warnings: tuple[str, ...]
    """What is odd but does not stop anything."""

    @property
    def total_problems(self) -> int:
        """Number of all problems."""
        return sum(self.problem_counts.values())


def format_plan(summary: PlanSummary) -> str:
    """Several lines of plain text."""
    lines = [
        f"rows        {summary.rows:,}",
        f"images      {summary.planned:,} to make, {summary.duplicates:,} duplicates, {summary.errors:,} bad rows",
        f"shards      {summary.shards:,}",
        f"batch keys  {len(summary.batch_keys):,}",
        *(f"  {_format_group(group)}" for group in summary.batch_keys[:_SHOWN_KEYS]),
        *([f"  … and {len(summary.batch_keys) - _SHOWN_KEYS:,} more"] if len(summary.batch_keys) > _SHOWN_KEYS else []),
        *(
            f"time        about {format_seconds(seconds)} on {count_noun(lanes, 'lane')}"
            for lanes, seconds in summary.estimated_seconds.items()
        ),
        f"disk        about {format_bytes(summary.estimated_bytes)}",
        *(f"warning     {warning}" for warning in summary.warnings),
    ]
    if summary.total_problems:
        lines += [
            f"problems    {summary.total_problems:,}: {count_problems(summary.problem_counts)}",
            *list_problems(summary.problems, summary.total_problems),
        ]
    return "\n".join(lines)


def count_problems(counts: Mapping[str, int]) -> str:
    """`bad_size 2, bad_type 6`."""
    return ", ".join(f"{code} {count:,}" for code, count in sorted(counts.items()))


def count_noun(count: int, noun: str) -> str:
    """`1 shard`, `1,200 shards`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def list_problems(problems: tuple[Problem, ...] | list[Problem], total: int) -> list[str]:
    """A line for each of the first SHOWN_PROBLEMS, and how many more there are."""
    shown = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    return [*shown, f"  … and {total - len(shown):,} more"] if total > len(shown) else shown


def format_seconds(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if unit == 3600 else 0}f} {name}"
    return f"{seconds / 86_400:.1f} days"


def format_bytes(size: float) -> str:
    """`900 B`, `3.4 MiB`, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _format_group(group: GroupSummary) -> str:
    key = group.key
    lora = "" if key.lora == "[]" else f", lora {key.lora}"
    return (
        f"{key.model} {key.width}x{key.height}, {key.num_inference_steps} steps {key.scheduler}, "
        f"guidance {key.guidance_scale:g}{lora}: {count_noun(group.images, 'image')} in "
        f"{count_noun(group.shards, 'shard')}, "
        f"about {format_seconds(group.seconds)}"
    )
