"""How fast a manifest is planned, and in how much memory: `python -m dgate_core.bench.planning --rows 1000000`."""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.manifest.item import ModelLimits
from dgate_core.manifest.plan import plan_run
from dgate_core.manifest.read import open_manifest
from dgate_core.manifest.summary import PlanSummary
from dgate_core.runs.spec import RunSpec
from dgate_core.storage import open_storage

_WORDS = ("boat", "windmill", "balloon", "red", "violet", "calm", "stormy", "on", "under", "behind", "two", "small")
_WRITE_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class PlanningFigures:
    """What one planning took."""

    rows: int
    """Rows of the manifest."""
    manifest_mib: float
    """Size of the manifest."""
    seconds: float
    """Opening and planning."""
    rows_per_second: float
    peak_memory_mib: float
    """Largest resident memory of the process."""
    planned: int
    duplicates: int
    errors: int
    shards: int


def make_rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows as people have them: prompts of 15 words, two sizes, an adapter; one in 50 repeats, one in 500 is bad."""
    draw = random.Random(seed)
    for number in range(count):
        again = number % 50 == 49
        yield {
            "id": f"row-{number:09d}",
            "prompt": "the same card" if again else f"{' '.join(draw.choices(_WORDS, k=15))} number {number}",
            "seed": 7 if again else None if number % 3 else number,
            "width": 65 if number % 500 == 499 else draw.choice((64, 128)),
            "num_inference_steps": 20,
            "guidance_scale": draw.choice((4.0, 7.5)),
            "lora": draw.choice((None, None, "ink:0.8")),
            "customer": f"customer-{draw.randrange(1000)}",
            "price": draw.random(),
        }


def write_manifest(path: Path, rows: int) -> None:
    """Write a manifest of this many rows; the suffix says whether it is JSON Lines or Parquet."""
    source = make_rows(rows)
    if path.suffix == ".jsonl":
        with path.open("wb") as file:
            file.writelines(orjson.dumps(row) + b"\n" for row in source)
        return
    schema = pa.Table.from_pylist(list(make_rows(10))).schema
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _WRITE_ROWS):
            piece = [next(source) for _ in range(min(_WRITE_ROWS, rows - start))]
            writer.write_table(pa.Table.from_pylist(piece, schema))


def find_limits(name: str) -> ModelLimits:
    """Limits of a small model, so that planning needs no checkpoint."""
    return ModelLimits(
        model=name,
        weights_hash="0" * 64,
        schedulers=frozenset({"euler"}),
        width=64,
        height=64,
        size_multiple=8,
        size_min=32,
        size_max=256,
        num_inference_steps=20,
        guidance_scale=4.0,
        scheduler="euler",
        seconds_per_step=0.005,
        adapters=frozenset({"ink"}),
    )


def measure_planning(manifest: Path, out: Path) -> PlanningFigures:
    """Plan a manifest in this process."""
    started = time.perf_counter()
    summary = plan_run(open_manifest([str(manifest)]), RunSpec(), find_limits, open_storage(out))
    return _collect_figures(summary, manifest, time.perf_counter() - started)


def read_peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux; its getrusage also counts what the process was before exec
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _collect_figures(summary: PlanSummary, manifest: Path, seconds: float) -> PlanningFigures:
    return PlanningFigures(
        rows=summary.rows,
        manifest_mib=round(manifest.stat().st_size / 2**20, 1),
        seconds=round(seconds, 2),
        rows_per_second=round(summary.rows / seconds),
        peak_memory_mib=round(read_peak_memory() / 2**20, 1),
        planned=summary.planned,
        duplicates=summary.duplicates,
        errors=summary.errors,
        shards=summary.shards,
    )


def main(words: list[str] | None = None) -> None:
    """Make a manifest, plan it in a process of its own, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument("--plan", nargs=2, metavar=("MANIFEST", "OUT"), help="plan this manifest in this process")
    arguments = parser.parse_args(words)
    if arguments.plan:
        figures = measure_planning(*map(Path, arguments.plan))
        print(json.dumps({name: getattr(figures, name) for name in figures.__slots__}))
        return
    with tempfile.TemporaryDirectory(prefix="dgate-bench-") as folder:
        manifest = Path(folder) / f"manifest.{arguments.format}"
        write_manifest(manifest, arguments.rows)
        command = [sys.executable, "-m", "dgate_core.bench.planning", "--plan", str(manifest), f"{folder}/run"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
