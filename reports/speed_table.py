"""The table of a GPU for people: a row for every contestant, measured or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = ("case", "contestant", "pictures/s", "over batch 1", "over best batch", "TFLOP/s", "of bf16", "GiB", "target")


def table_to_markdown(found: Mapping[str, Any]) -> str:
    """What `dgate bench gpu-table` found, as markdown."""
    machine = found["machine"].get("gpu", found["machine"]["system"])
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"{machine}, {found['date']}, {versions}", "", _join(HEAD), "|---|---|" + "--:|" * 6 + "---|"]
    return "\n".join([*lines, *(_join(list_cells(row)) for row in found["rows"])]) + "\n"


def list_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row, written."""
    start = (row["job"], row["contestant"])
    if "not_run" in row:
        return (*start, f"not run: {row['not_run']}", *[""] * 6)
    rate = f"{row['pictures_per_second']:.3f}"
    if "whole_path" in row:
        whole = row["whole_path"]
        return (*start, rate, *[""] * 5, f"{whole['median']:.3f} of the bare loop, wanted {whole['bar']}")
    ratios = (f"{row[name]:.2f}x" if row[name] else "" for name in ("over_batch_1", "over_best_batch"))
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
    share = f"{row['share_of_bf16_limit']:.2f}"
    return (*start, rate, *ratios, f"{row['tflops']:.0f}", share, peak, describe_target(row["target"]))


def describe_target(target: Mapping[str, Any] | None) -> str:
    """What was wanted, and whether it was reached."""
    if target is None:
        return ""
    return f"{target['wanted']:g}, {'reached' if target['reached'] else 'not reached'}"


def _join(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
