"""What must hold of any finished run, however often it was interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def check_every_row_once(run: Path, rows: int) -> list[dict[str, Any]]:
    """Every row is there once, ok, and its file has its hash; no file is left over. Returns the rows."""
    results = pq.read_table(run / "results.parquet").to_pylist()
    assert len(results) == rows
    assert len({row["row_id"] for row in results}) == rows
    assert {row["status"] for row in results} == {"ok"}
    for row in results:
        assert hashlib.sha256((run / row["path"]).read_bytes()).hexdigest() == row["sha256"]
    pictures = {path.relative_to(run).as_posix() for path in run.glob("shards/*/images/*")}
    assert pictures == {row["path"] for row in results}
    assert not list(run.glob("shards/*/_parts/*"))
    return results
