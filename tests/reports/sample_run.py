"""Finished runs for the tests: real PNG files of postcards, a results.parquet, a run.json."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dgate_core.postcards.render import render_scene
from dgate_core.postcards.scene import COLOURS, GROUNDS, OBJECTS, SKIES, Scene, SceneObject
from dgate_core.runs.record import RESULT_SCHEMA
from dgate_core.storage import Storage

NASTY_PROMPT = (
    '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=2">&lt; \'"` \u2028 <!-- 😀 שלום عالم '
)
NASTY_PROMPT += "z" * 5000
BIG_SEED = 2**63 - 25
SCENES = 48
OUT_OF_MEMORY = (
    "out of memory at batch 1: 7.9 GiB asked for, 6.1 GiB free; expected: a smaller size; next: lower width and height"
)
NOT_FINITE = "latents are not finite after step 17 of 20; expected: finite numbers; next: try precision float32"


@dataclass(frozen=True)
class Sample:
    """One row to write and the picture in it."""

    row: dict[str, Any]
    picture: bytes | None


@cache
def draw_postcard(number: int, size: int) -> tuple[str, bytes]:
    """Caption and PNG of one of `SCENES` scenes."""
    choice = random.Random(number)
    kind, colour = choice.choice(OBJECTS), choice.choice(COLOURS)
    scene = Scene((SceneObject(kind, colour),), choice.choice(GROUNDS), choice.choice(SKIES), number)
    out = io.BytesIO()
    Image.fromarray(render_scene(scene, size)).save(out, "PNG", compress_level=1)
    return f"one {colour} {kind} on {scene.ground}, {scene.sky}", out.getvalue()


def make_samples(count: int, size: int = 64) -> Iterable[Sample]:
    """Rows in manifest order: mostly ok; row 3 has the nasty prompt, some are errors, one in 40 a duplicate."""
    for number in range(count):
        caption, picture = draw_postcard(number % SCENES, size)
        row: dict[str, Any] = {
            "id": f"row-{number:06d}",
            "image_index": 0,
            "row_id": hashlib.sha256(str(number).encode()).hexdigest()[:32],
            "status": "ok",
            "prompt": NASTY_PROMPT if number == 3 else caption,
            "negative_prompt": "blurry",
            "seed": BIG_SEED if number == 3 else 1000 + number,
            "width": size,
            "height": size,
            "num_inference_steps": 20,
            "guidance_scale": 4.5,
            "scheduler": "dpmsolver++",
            "model": "starter-unet" if number % 5 else "night-vision",
            "path": f"shards/{number // 64:05d}/images/{number:08d}-{number % 97:08x}.png",
            "sha256": hashlib.sha256(picture).hexdigest(),
            "batch_size": 16,
            "attempts": 1,
            "seconds": 0.04 + number % 7 / 100,
            "lane": f"lane-{number % 3}",
            "backend": "eager",
            "warnings": ["prompt cut at 77 tokens"] if number == 3 else [],
            "lora": "[]",
            "tags": ["postcard", caption.split()[2]],
            "campaign": "spring" if number % 2 else "autumn",
            "weight": None if number % 3 else number / 8,
        }
        yield Sample(row, picture) if number % 25 else make_failure(row, number)


def make_failure(row: dict[str, Any], number: int) -> Sample:
    """The same row as an error or, each third time, as a duplicate of row 1."""
    if number % 3 == 0 and number:
        first = {"path": f"shards/00000/images/{1:08d}-{1:08x}.png", "sha256": "0" * 64}
        return Sample({**row, "status": "duplicate", **first}, None)
    code, message = ("out_of_memory", OUT_OF_MEMORY) if number % 2 else ("not_finite", NOT_FINITE)
    nothing = dict.fromkeys(("path", "sha256", "seconds", "batch_size"))
    return Sample({**row, "status": "error", "error_code": code, "error_message": message, **nothing}, None)


BARE_RUN: dict[str, Any] = {
    "format": 1,
    "state": "planned",
    "fingerprint": "v1-00",
    "spec": {},
    "manifest": {"files": ["prompts.jsonl"], "rows": 0},
    "models": {},
    "counts": {},
}
"""What every run.json holds."""


def write_run(run: Storage, samples: Iterable[Sample], **run_json: Any) -> list[dict[str, Any]]:
    """Write pictures, results.parquet and run.json; returns the rows."""
    rows = []
    for sample in samples:
        rows.append(sample.row)
        if sample.picture is not None:
            run.write_bytes(sample.row["path"], sample.picture, durable=False)
    write_results(run, rows)
    write_run_json(run, rows, **run_json)
    return rows


def write_results(run: Storage, rows: list[dict[str, Any]]) -> None:
    """Write results.parquet with the manifest's own columns behind the others."""
    schema = pa.schema([*RESULT_SCHEMA, pa.field("campaign", pa.string()), pa.field("weight", pa.float32())])
    table = pa.Table.from_pylist(rows, schema=schema)
    with io.BytesIO() as out:
        pq.write_table(table, out, row_group_size=1000)
        run.write_bytes("results.parquet", out.getvalue(), durable=False)


def write_run_json(run: Storage, rows: list[dict[str, Any]], **changes: Any) -> None:
    """Write a run.json of a run of a minute and a half."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    record = {
        **BARE_RUN,
        "name": "first",
        "state": "completed_with_errors" if counts.get("error") else "completed",
        "spec": {"defaults": {"model": "starter-unet"}, "determinism": "fast", "precision": "float32"},
        "counts": counts,
        "versions": {"torch": "2.15.0", "diffusers": "0.42.1"},
        "seconds": {"load": 3.1, "encode": 2.2, "denoise": 61.5, "decode": 11.8, "write": 6.4, "upload": 0.0},
        "started_at": "2031-05-04T12:30:00+00:00",
        "finished_at": "2031-05-04T12:31:30+00:00",
        **changes,
    }
    run.write_bytes("run.json", json.dumps(record).encode(), durable=False)


def draw_noise(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of a given Pillow mode and size."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pack_tar(members: dict[str, bytes]) -> bytes:
    """An uncompressed tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def pack_parquet(pictures: list[bytes] | list[str], column: str = "image") -> bytes:
    """A Parquet file of pictures in small row groups."""
    out = io.BytesIO()
    pq.write_table(pa.table({"key": [str(i) for i in range(len(pictures))], column: pictures}), out, row_group_size=3)
    return out.getvalue()


def encode_picture(picture: Image.Image, form: str = "PNG") -> bytes:
    """The bytes of a picture file."""
    out = io.BytesIO()
    picture.save(out, form)
    return out.getvalue()
