"""What a report reads of a run: every row counted, so many kept, and none of a value's meaning lost."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgate_core.errors import RunError
from dgate_core.runs.record import ROWS_SCHEMA
from dgate_core.storage import Storage, open_storage
from reports.collect import collect_run
from reports.columns import encode_column
from reports.html import to_script_json
from tests.reports.sample_run import NASTY_PROMPT, make_samples, write_run, write_run_json


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "run")


def test_all_rows_are_counted_and_all_errors_kept(run: Storage) -> None:
    rows = write_run(run, make_samples(300))
    collected = collect_run(run, max_pictures=100, max_errors=1000)
    errors = [row["id"] for row in rows if row["status"] == "error"]
    pictures = [row["id"] for row in rows if row["status"] != "error"][:100]
    assert collected.summary.counts == {"ok": 288, "error": 9, "duplicate": 3}
    assert collected.rows["id"].to_pylist() == sorted(errors + pictures)
    assert sum(collected.left_out.values()) == 300 - 100 - 9
    assert [(failure.code, failure.count) for failure in collected.failures] == [
        ("not_finite", 5),
        ("out_of_memory", 4),
    ]
    assert "step 17" in collected.failures[0].example
    assert collected.summary.models == ("night-vision", "starter-unet")


def test_errors_have_a_limit_of_their_own(run: Storage) -> None:
    write_run(run, make_samples(300))
    collected = collect_run(run, max_pictures=1000, max_errors=4)
    assert collected.left_out == {"error": 5}
    assert sum(failure.count for failure in collected.failures) == 9


def test_an_unfinished_run_shows_the_rows_of_its_shards_the_later_shard_first(run: Storage) -> None:
    write_run_json(run, [], state="running")
    _write_rows(run, "shards/00000/rows.parquet", [{"ordinal": 0, "status": "ok"}, {"ordinal": 2, "status": "error"}])
    _write_rows(run, "shards/00001/_parts/a-00000.parquet", [{"ordinal": 1, "status": "ok"}])
    _write_rows(run, "shards/00002/rows.parquet", [{"ordinal": 2, "status": "ok"}])
    collected = collect_run(run, max_pictures=10, max_errors=10)
    assert collected.rows["id"].to_pylist() == ["row 0", "row 1", "row 2"]
    assert collected.summary.counts == {"ok": 3}
    assert collected.failures == ()


def test_a_run_without_rows_keeps_the_counts_of_run_json(run: Storage) -> None:
    write_run_json(run, [], state="planned", counts={"ok": 0, "planned": 9}, name=None)
    collected = collect_run(run, max_pictures=10, max_errors=10)
    assert (collected.rows.num_rows, collected.summary.counts, collected.summary.name) == (0, {"ok": 0}, "run")


def test_a_folder_without_a_run_is_an_error_that_names_it(run: Storage) -> None:
    with pytest.raises(RunError, match=r"run.json"):
        collect_run(run, max_pictures=10, max_errors=10)


@pytest.mark.parametrize(
    ("values", "encoded"),
    [
        (pa.array(["a"] * 5), {"c": "a"}),
        (pa.array(["a", None, "b", "a", "a"]), {"d": ["a", "b"], "i": [0, -1, 1, 0, 0]}),
        (pa.array([1, 2, 2**53 + 1]), {"v": [1, 2, "9007199254740993"]}),
        (pa.array([0.1, 7.5, float("nan")], pa.float32()), {"v": [0.1, 7.5, "nan"]}),
        (pa.array([None, None], pa.string()), None),
        (pa.array([["x"], None, []]), {"v": [["x"], None, []]}),
        (pa.array([{"a": [1, 2**60]}]), {"v": [{"a": [1, str(2**60)]}]}),
        (pa.array([datetime(2031, 5, 4, tzinfo=UTC)]), {"c": "2031-05-04T00:00:00+00:00"}),
        (pa.array([b"abc", None, b"d"]), {"v": ["3 bytes", None, "1 bytes"]}),
        (pa.array([True, True, False, False]), {"d": [True, False], "i": [0, 0, 1, 1]}),
    ],
)
def test_a_column_is_written_compactly_and_without_loss(values: pa.Array, encoded: dict[str, Any] | None) -> None:
    assert encode_column(pa.chunked_array([values])) == encoded


def test_a_column_in_several_chunks_is_one_dictionary() -> None:
    column = pa.chunked_array([["a", "b", "a"], ["b", "c", "a", "a"]])
    assert encode_column(column) == {"d": ["a", "b", "c"], "i": [0, 1, 0, 1, 2, 0, 0]}


def test_json_in_a_page_cannot_end_its_script() -> None:
    text = to_script_json({"prompt": NASTY_PROMPT})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"prompt": NASTY_PROMPT}


def _write_rows(run: Storage, key: str, rows: list[dict[str, Any]]) -> None:
    out = io.BytesIO()
    full = [{"id": f"row {row['ordinal']}", **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=ROWS_SCHEMA), out)
    run.write_bytes(key, out.getvalue())
