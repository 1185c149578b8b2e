"""Planning streams: memory stays where it is when a manifest grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dgate_core.bench.planning import write_manifest


def measure(manifest: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "dgate_core.bench.planning", "--plan", str(manifest), str(out)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(("suffix", "count"), [("jsonl", 100_000), ("parquet", 50_000)])
def test_memory_does_not_grow_with_the_manifest(tmp_path: Path, suffix: str, count: int) -> None:
    figures = []
    for rows in (20_000, count):
        manifest = tmp_path / f"{rows}.{suffix}"
        write_manifest(manifest, rows)
        figures.append(measure(manifest, tmp_path / f"out-{rows}"))
    small, large = (figure["peak_memory_mib"] for figure in figures)
    print(f"{suffix}: {small} MiB at 20,000 rows, {large} MiB and {figures[1]['rows_per_second']} rows/s at {count:,}")
    assert large < 600
    assert large < small + 80
    assert figures[1]["rows"] == count
    assert figures[1]["errors"] == count // 500
