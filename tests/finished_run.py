"""A finished run's folder with nothing but what an evaluation reads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dgate_core.runs.record import RESULT_SCHEMA
from dgate_core.storage import open_storage
from tests.reports.sample_run import BARE_RUN


def make_run(folder: Path, prompts: list[str | None], statuses: list[str] | None = None) -> str:
    """A finished run's folder with a grey picture for each prompt; None is a row that failed."""
    storage, rows = open_storage(folder), []
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "grey").save(picture, "PNG")
    storage.write_bytes("p.png", picture.getvalue())
    for number, prompt in enumerate(prompts):
        status = statuses[number] if statuses else "ok" if prompt else "error"
        path = "p.png" if prompt else None
        rows.append(
            {"id": f"row-{number}", "image_index": 0, "row_id": f"{number:032x}", "status": status, "path": path}
            | {"prompt": prompt or "a fish", "seed": number}
        )
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=RESULT_SCHEMA), out)
    storage.write_bytes("results.parquet", out.getvalue())
    storage.write_bytes("run.json", json.dumps(BARE_RUN).encode())
    return str(folder)
