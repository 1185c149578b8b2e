"""Evaluated runs as tables alone: what the gate reads of a run, written in milliseconds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dgate_core.evaluation.gate.comparison import RunPair
from dgate_core.evaluation.gate.gate import judge_run
from dgate_core.evaluation.gate.rules import GateRules, read_rules
from dgate_core.evaluation.gate.verdict import Verdict
from dgate_core.evaluation.results import (
    SCORE_KEYS,
    SCORES_FILE,
    Evaluation,
    MetricValue,
    Scope,
    write_evaluation,
)
from dgate_core.runs.layout import RESULTS_FILE
from dgate_core.runs.record import RESULT_SCHEMA
from dgate_core.runs.store import RUN_FORMAT, RunStore
from dgate_core.storage import Storage, open_storage

PICTURES = "shards/00000/pictures.parquet"
"""Bytes that are no pictures, but have the hashes that the results say."""
POSTCARD = "a red boat and two small green trees on grass at night"
ROWS = 300
CLIP = "clip_score:starter-clip"
_RNG = np.random.default_rng(0)
SCORES = {
    CLIP: _RNG.normal(30, 4, ROWS),
    "caption_choice:starter-clip": (_RNG.random(ROWS) < 0.8).astype(float),
    "attribute_accuracy": (_RNG.random(ROWS) < 0.6).astype(float),
    "sharpness": _RNG.normal(12, 3, ROWS),
}
RULES = replace(read_rules("regression"), resamples=1000)


@dataclass(frozen=True)
class Table:
    """One run: its rows and its scores."""

    scores: Mapping[str, np.ndarray]
    """Column → float (rows,), NaN for null."""
    seeds: Sequence[int] = ()
    """One per row; empty counts from 0."""
    prompts: Sequence[str] = ()
    """One per row; empty takes a postcard's caption for all."""
    statuses: Mapping[int, str] = field(default_factory=dict)
    """Row → status, where it is not ok."""
    defects: Mapping[int, str] = field(default_factory=dict)
    """Row → defect."""
    left_out: frozenset[int] = frozenset()
    """Rows that the run does not have at all."""
    metrics: tuple[MetricValue, ...] = ()
    """In place of, or besides, those that the scores give."""
    fingerprint: str = "f"
    """Of the run."""


def judge(folder: Path, candidate: Table, baseline: Table | None = None, rules: GateRules = RULES) -> Verdict:
    """Of a candidate as a table, against a baseline that is well unless another is given."""
    other = make_run(folder / "baseline", baseline or Table(SCORES))
    return judge_run(make_run(folder / "candidate", replace(candidate, fingerprint="c")), other, rules, draw_noise)


def draw_noise(pair: RunPair, metric: MetricValue) -> np.ndarray:
    """A corpus metric whose standard error is 0.1."""
    return np.random.default_rng(0).normal(0, 0.1, 100)


def make_run(folder: Path, table: Table) -> Storage:
    """Writes run.json, results.parquet, evaluation.json and scores.parquet."""
    storage = open_storage(folder)
    rows = list_rows(table)
    keep = [index for index in range(len(rows)) if index not in table.left_out]
    keys = pa.Table.from_pylist([rows[index] for index in keep], schema=SCORE_KEYS)
    scores = keys
    for name, values in table.scores.items():
        scores = scores.append_column(name, pa.array(np.asarray(values, float)[keep], pa.float64(), from_pandas=True))
    write_table(storage, RESULTS_FILE, keys.drop_columns(["defect"]))
    contents = [f"{table.fingerprint} {index}".encode() for index in range(len(rows))]
    write_table(storage, PICTURES, pa.table({"bytes": pa.array(contents, pa.binary())}))
    scores_sha256 = hash_bytes(write_table(storage, SCORES_FILE, scores))
    own = {metric.name for metric in table.metrics}
    found = [measure(name, np.asarray(values, float)[keep]) for name, values in table.scores.items() if name not in own]
    metrics = (*found, *table.metrics)
    evaluation = Evaluation(storage.uri, table.fingerprint, metrics, len(keep), scores_sha256=scores_sha256)
    write_evaluation(storage, evaluation)
    RunStore(storage).write_run(describe_run(table.fingerprint, len(keep)))
    return storage


def list_rows(table: Table) -> list[dict[str, object]]:
    number = len(next(iter(table.scores.values())))
    rows = []
    for index in range(number):
        status = table.statuses.get(index, "ok")
        lost = status not in {"ok", "duplicate"}
        sha256 = hash_bytes(f"{table.fingerprint} {index}".encode())
        rows.append(
            {
                "row_id": f"{table.fingerprint}-{index}",
                "id": f"row-{index:05d}",
                "image_index": 0,
                "status": status,
                "path": None if lost else f"{PICTURES}#{index}",
                "sha256": None if lost else sha256,
                "prompt": table.prompts[index] if table.prompts else POSTCARD,
                "seed": table.seeds[index] if table.seeds else index,
                "defect": table.defects.get(index, "missing" if lost else None),
            }
        )
    return rows


def measure(name: str, values: np.ndarray, scope: Scope = "picture") -> MetricValue:
    known = values[np.isfinite(values)]
    better = "lower" if name.startswith(("lpips", "fid", "kid")) else "higher"
    return MetricValue(
        name, scope, better, float(known.mean()), n_used=len(known), n_expected=len(values), extractor="e"
    )


def corpus(name: str, value: float, rows: int = 300) -> MetricValue:
    return MetricValue(name, "corpus", "lower", value, n_used=rows, n_expected=rows, extractor="e", reference="r@1")


def broken(name: str, error: str) -> MetricValue:
    return replace(corpus(name, 0.0), value=None, error=error)


def write_table(storage: Storage, key: str, table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(key, sink.getvalue(), durable=False)
    return sink.getvalue()


def make_picture_run(folder: Path, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Storage:
    """A finished run with these pictures, for real evaluations; as the engine writes it, without a plan."""
    storage = open_storage(folder)
    rows = []
    for index, (pixels, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        key = f"shards/00000/images/{index:08d}.png"
        storage.write_bytes(key, sink.getvalue())
        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        row = {"id": f"row-{index:05d}", "image_index": 0, "row_id": f"{index:032x}", "status": "ok", **size}
        rows.append({**row, "prompt": prompt, "seed": index, "path": key, "sha256": hash_bytes(sink.getvalue())})
    write_table(storage, RESULTS_FILE, pa.Table.from_pylist(rows, schema=RESULT_SCHEMA))
    RunStore(storage).write_run(describe_run(folder.name, len(rows)))
    return storage


def describe_run(fingerprint: str, images: int) -> dict[str, object]:
    parts: dict[str, object] = {"spec": {}, "manifest": {}, "models": {}}
    return {
        "format": RUN_FORMAT,
        "state": "completed",
        "fingerprint": fingerprint,
        **parts,
        "counts": {"images": images},
    }


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
