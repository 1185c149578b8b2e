"""Arrow schemas of the tables in a run's folder; people script against `results.parquet`, so its columns only grow."""

from __future__ import annotations

import pyarrow as pa

_REQUEST = [
    pa.field("prompt", pa.string()),
    pa.field("negative_prompt", pa.string()),
    pa.field("seed", pa.int64()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("num_inference_steps", pa.int32()),
    pa.field("guidance_scale", pa.float64()),
    pa.field("scheduler", pa.string()),
    pa.field("model", pa.string()),
]
_REQUEST_DETAILS = [
    pa.field("lora", pa.string()),  # canonical JSON: [["name", scale], ...]
    pa.field("style_preset", pa.string()),
    pa.field("tags", pa.list_(pa.string())),
]
_WARNINGS = pa.field("warnings", pa.list_(pa.string()))

PLAN_SCHEMA = pa.schema(
    [
        pa.field("ordinal", pa.int64()),  # number of the image in the run, in manifest order
        pa.field("position", pa.int64()),  # number of the row in the manifest
        pa.field("id", pa.string()),
        pa.field("image_index", pa.int32()),
        pa.field("row_id", pa.string()),  # hash of what determines the pixels; empty for a bad row
        pa.field("status", pa.string()),  # planned | error | duplicate
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("duplicate_of", pa.int64()),  # ordinal of the first image with this row_id
        *_REQUEST,
        *_REQUEST_DETAILS,
        _WARNINGS,
        pa.field("shard", pa.int32()),  # null when nothing is to be made
    ]
)

SHARD_INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("attempt", pa.int32()),  # 1 for the first plan, then one more for each retry
        pa.field("batch_key", pa.string()),  # readable canonical JSON of the BatchKey
        pa.field("rows", pa.int32()),
        pa.field("first_ordinal", pa.int64()),
        pa.field("last_ordinal", pa.int64()),
        pa.field("estimated_seconds", pa.float64()),
    ]
)

_OUTCOME = [
    pa.field("path", pa.string()),  # relative to the run's folder
    pa.field("sha256", pa.string()),  # of the file's bytes
    pa.field("batch_size", pa.int32()),
    pa.field("attempts", pa.int32()),
    pa.field("seconds", pa.float64()),  # of the batch, divided by its rows
    pa.field("lane", pa.string()),
]
RESULT_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("image_index", pa.int32()),
    pa.field("row_id", pa.string()),
    pa.field("status", pa.string()),  # ok | error | skipped | duplicate
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    *_REQUEST,
    *_OUTCOME,
    pa.field("backend", pa.string()),
    _WARNINGS,
    *_REQUEST_DETAILS,
    pa.field("safety_score", pa.float64()),  # 0 to 1; null when nobody looked
    pa.field("safety_label", pa.string()),  # the checker's word, such as sfw or nsfw
    pa.field("safety_action", pa.string()),  # what was done: keep | blur | drop | quarantine
]
RESULT_SCHEMA = pa.schema(RESULT_FIELDS)
ROWS_SCHEMA = pa.schema([pa.field("ordinal", pa.int64()), *RESULT_FIELDS])

RESERVED_COLUMNS = frozenset(PLAN_SCHEMA.names) | frozenset(ROWS_SCHEMA.names)


def conform_rows(rows: pa.Table) -> pa.Table:
    """Rows of any version of D-Gate as ROWS_SCHEMA; what came later is null."""
    columns = [
        rows.column(field.name) if field.name in rows.schema.names else pa.nulls(rows.num_rows, field.type)
        for field in ROWS_SCHEMA
    ]
    return pa.table(columns, schema=ROWS_SCHEMA)


def name_manifest_column(column: str) -> str:
    """The name under which a manifest's own column stands in the plan and the results (`path` → `manifest.path`)."""
    return f"manifest.{column}" if column in RESERVED_COLUMNS else column
