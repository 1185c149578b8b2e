"""Finished runs of rendered postcards: real files in every container, without a model."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dgate_core.engine.sinks import LooseFiles, PackedFiles, PictureFile
from dgate_core.postcards import Scene, render_scene, sample_scene, scene_to_caption
from dgate_core.runs.record import RESULT_SCHEMA, ROWS_SCHEMA
from dgate_core.runs.spec import Container
from dgate_core.storage import Storage
from tests.reports.sample_run import BARE_RUN


@dataclass(frozen=True)
class Postcard:
    """One row of a run."""

    prompt: str
    pixels: np.ndarray | None
    """None is a row that failed."""
    error_code: str | None = None
    status: str | None = None
    """None is ok, or error without pixels."""


def draw_postcards(count: int, seed: int = 0, size: int = 64) -> list[Postcard]:
    """Captions with the pictures that they tell; equal arguments give equal pictures."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = [sample_scene(rng) for _ in range(count)]
    return [Postcard(scene_to_caption(scene), render_scene(scene, size)) for scene in scenes]


def encode(pixels: np.ndarray | None) -> bytes:
    assert pixels is not None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_run(run: Storage, postcards: Sequence[Postcard], container: Container = "files") -> list[dict[str, Any]]:
    """A run's folder as the engine leaves it, with one shard; returns the rows of results.parquet."""
    files = [
        PictureFile(number, hashlib.sha256(data).hexdigest(), "png", data, card.prompt)
        for number, card in enumerate(postcards)
        if card.pixels is not None
        for data in [encode(card.pixels)]
    ]
    with ThreadPoolExecutor(1) as pool:
        sink = LooseFiles(run, 0, pool) if container == "files" else PackedFiles(run, 0, "token", container)
        paths = dict(zip([file.ordinal for file in files], sink.put(0, files), strict=True))
        hashes = {file.ordinal: file.sha256 for file in files}
        rows = [_make_row(number, card, paths.get(number), hashes.get(number)) for number, card in enumerate(postcards)]
        rows = sink.finish(pa.Table.from_pylist(rows, ROWS_SCHEMA)).to_pylist()
    write_results(run, rows)
    record = {**BARE_RUN, "counts": {"images": len(rows)}}
    run.write_bytes("run.json", json.dumps(record).encode())
    return rows


def write_results(run: Storage, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces results.parquet."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), RESULT_SCHEMA), file)
    run.write_bytes("results.parquet", file.getvalue())


def _make_row(number: int, card: Postcard, path: str | None, sha256: str | None) -> dict[str, Any]:
    return {
        "ordinal": number,
        "id": f"row-{number:04d}",
        "image_index": 0,
        "row_id": hashlib.sha256(str(number).encode()).hexdigest()[:32],
        "status": card.status or ("ok" if path else "error"),
        "error_code": card.error_code,
        "prompt": card.prompt,
        "seed": 1000 + number,
        "width": 64,
        "height": 64,
        "path": path,
        "sha256": sha256,
    }
