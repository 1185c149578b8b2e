"""Small manifests in every format, and the limits of two small models, for tests of reading and planning."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.errors import ModelError
from dgate_core.manifest.item import ModelLimits
from dgate_core.manifest.plan import PlanOptions, plan_run
from dgate_core.manifest.plan_files import read_plan_batches
from dgate_core.manifest.problems import Problem
from dgate_core.manifest.read import open_manifest
from dgate_core.manifest.summary import PlanSummary
from dgate_core.runs.spec import RunSpec
from dgate_core.storage import Storage, open_storage

SMALL = ModelLimits(
    model="small",
    weights_hash="5" * 64,
    schedulers=frozenset({"euler", "ddim"}),
    width=64,
    height=64,
    size_multiple=8,
    size_min=32,
    size_max=256,
    num_inference_steps=20,
    guidance_scale=4.0,
    scheduler="euler",
    seconds_per_step=0.01,
    adapters=frozenset({"ink", "snow"}),
    styles=frozenset({"watercolour"}),
)
LARGE = ModelLimits(
    model="large",
    weights_hash="1" * 64,
    schedulers=frozenset({"ddim"}),
    width=512,
    height=512,
    size_multiple=64,
    size_min=256,
    size_max=1024,
    num_inference_steps=30,
    guidance_scale=7.5,
    scheduler="ddim",
    seconds_per_step=0.1,
)
NAMES = {"starter-unet": SMALL, "small": SMALL, "large": LARGE}


def find_limits(name: str) -> ModelLimits:
    """A lookup that knows two models, one of them under two names."""
    if name not in NAMES:
        raise ModelError(f"unknown model {name!r}", f"one of {', '.join(sorted(NAMES))}")
    return NAMES[name]


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """A line for each object; bytes stand as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path)
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def plan_files(
    tmp_path: Path, *manifests: Path, spec: RunSpec | None = None, options: PlanOptions | None = None
) -> tuple[PlanSummary, Storage]:
    """Plan into tmp_path/run."""
    storage = open_storage(tmp_path / "run")
    manifest = open_manifest([str(path) for path in manifests])
    return plan_run(manifest, spec or RunSpec(), find_limits, storage, options), storage


def plan_rows(tmp_path: Path, rows: Sequence[Any], **given: Any) -> tuple[PlanSummary, list[dict[str, Any]]]:
    """Plan JSON rows; the summary and the plan's rows."""
    summary, storage = plan_files(tmp_path, write_jsonl(tmp_path / "rows.jsonl", rows), **given)
    return summary, read_plan(storage)


def read_plan(storage: Storage) -> list[dict[str, Any]]:
    return [row for batch in read_plan_batches(storage) for row in batch.to_pylist()]


def list_codes(problems: Sequence[Problem]) -> list[tuple[int, str, str]]:
    """(line, column, code) of each problem."""
    return [(problem.line, problem.column, problem.code) for problem in problems]
