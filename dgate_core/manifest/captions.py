"""Caption tables of published sets (COCO's, as MLPerf cuts it) as manifests."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dgate_core.errors import ManifestError


def captions_to_manifest(table: Path, out: Path, settings: Mapping[str, Any]) -> int:
    """Writes a tab-separated table with a column `caption` (and `id`) as JSON Lines, in its order.

    Args:
        table: Such as MLPerf's captions_source.tsv.
        out: The manifest, .jsonl.
        settings: Columns that every row gets, such as num_inference_steps.

    Returns:
        Number of rows.

    Raises:
        ManifestError: the table cannot be read or has no captions.
    """
    rows = [{"id": row["id"], "prompt": row["caption"], **settings} for row in _read_captions(table)]
    out.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return len(rows)


def _read_captions(table: Path) -> Iterator[dict[str, str]]:
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{table} cannot be read: {error}", "a tab-separated table", "check the path") from error
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
    if "caption" not in (reader.fieldnames or ()):
        columns = ", ".join(reader.fieldnames or ["none"])
        raise ManifestError(f"{table} has the columns {columns}", "a column `caption`", "give captions_source.tsv")
    for number, row in enumerate(reader, start=1):
        yield {**row, "id": row.get("id") or f"caption-{number:05d}"}
