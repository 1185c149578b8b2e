"""results.parquet and the Batch API's files: every row in its place, with its own columns, in bounded memory."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgate_core.engine.begin import open_run
from dgate_core.engine.finish import write_results
from dgate_core.manifest.plan_files import ShardInfo, read_shard_index, read_shard_rows
from dgate_core.runs.record import RESULT_SCHEMA, ROWS_SCHEMA
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from tests.faults import FailingSeeds
from tests.run_lab import Driver, Order

ROWS, HALF = 102_000, 51_000
"""More than one part of a plan."""


@pytest.fixture(scope="module")
def large(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A run of three sizes, interleaved; all shards but the last are committed, without any picture."""
    folder = tmp_path_factory.mktemp("large")
    same_as = [number - HALF if repeats(number) else number for number in range(ROWS)]
    table = pa.table(
        {
            "prompt": ["" if number % 1000 == 0 else f"a red boat {same}" for number, same in enumerate(same_as)],
            "seed": pa.array(same_as, pa.int64()),
            "width": pa.array([(32, 40, 48)[number % 3] for number in range(ROWS)], pa.int32()),
            "price": pa.array([number / 4 for number in range(ROWS)], pa.float32()),
            "path": [f"old/{number}.png" for number in range(ROWS)],
            "sizes": pa.array([[number % 7, None] for number in range(ROWS)], pa.list_(pa.int16())),
        }
    )
    pq.write_table(table, folder / "m.parquet")
    settings = RunSettings(model=checkpoint, precision="float32", rows_per_shard=4096)
    store = open_run([str(folder / "m.parquet")], str(folder / "run"), settings).store
    for shard in read_shard_index(store.storage)[:-1]:
        commit(store, shard)
    return store


def repeats(number: int) -> bool:
    return number >= HALF and number % 1000 in (1, 2)


def commit(store: RunStore, shard: ShardInfo) -> None:
    """As a lane does, with every hundredth row failed."""
    plan = read_shard_rows(store.storage, shard)
    outcomes = [describe_outcome(ordinal) for ordinal in plan.column("ordinal").to_pylist()]
    made = pa.Table.from_pylist(outcomes, pa.schema([ROWS_SCHEMA.field(name) for name in outcomes[0]]))
    columns = {name: plan.column(name) for name in plan.column_names} | {n: made.column(n) for n in made.column_names}
    arrays = [columns.get(field.name, pa.nulls(plan.num_rows, field.type)) for field in ROWS_SCHEMA]
    store.commit_shard(shard.shard, pa.table(arrays, ROWS_SCHEMA), {"lane": "lane-0", "device": "cpu", "stages": {}})


def describe_outcome(ordinal: int) -> dict[str, Any]:
    if ordinal % 100 == 1:
        return {"status": "error", "error_code": "generation_failed", "path": None}
    return {"status": "ok", "error_code": None, "path": f"shards/of/{ordinal}.png"}


def test_a_hundred_thousand_rows(large: RunStore) -> None:
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    results = write_results(large)
    assert pool.max_memory() - before < 150 << 20
    table = pq.read_table(io.BytesIO(large.storage.read_bytes("results.parquet")))
    last = set(read_shard_rows(large.storage, read_shard_index(large.storage)[-1]).column("ordinal").to_pylist())
    expected = [expect_row(number, last) for number in range(ROWS)]
    assert table.select(list(expected[0])).to_pylist() == expected
    assert results.counts == Counter(row["status"] for row in expected)
    assert results.made == sum(row["status"] == "ok" for row in expected)
    assert table.schema.field("price").type == pa.float32()
    assert table.schema.field("sizes").type == pa.list_(pa.int16())
    assert table.schema.names == [*RESULT_SCHEMA.names, "price", "manifest.path", "sizes"]


def expect_row(number: int, unfinished: set[int]) -> dict[str, Any]:
    """Thousands have no prompt; thousands and one repeat a row that failed, thousands and two one that is ok."""
    same = number - HALF if repeats(number) else number
    outcome = describe_outcome(same)
    if number % 1000 == 0:
        outcome = {"status": "error", "error_code": "missing_prompt", "path": None}
    elif same in unfinished:
        outcome = {"status": "skipped", "error_code": None, "path": None}
    elif repeats(number) and outcome["status"] == "ok":
        outcome["status"] = "duplicate"
    own = {"price": number / 4, "manifest.path": f"old/{number}.png", "sizes": [number % 7, None]}
    return {"id": f"{number:08d}", **outcome, **own}


@pytest.mark.parametrize("container", ["files", "webdataset", "parquet"])
def test_batch_api(checkpoint: str, tmp_path: Path, container: str) -> None:
    """Images per request, b64_json, failures of a part, bad lines; joined on custom_id."""

    def line(name: str, **body: Any) -> dict[str, Any]:
        whole = {"prompt": f"a boat {name}", "num_inference_steps": 1, **body}
        return {"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": whole}

    lines = [
        line("two", n=2, seed=7),
        line("coded", response_format="b64_json"),
        line("failed", seed=99),
        line("bad", prompt=""),
        line("again", prompt="a boat two", n=2, seed=7),
    ]
    manifest = tmp_path / "batch.jsonl"
    manifest.write_text("".join(json.dumps(each) + "\n" for each in lines))
    settings = {"model": checkpoint, "precision": "float32", "lanes": 1, "container": container}
    order = Order(str(tmp_path / "run"), str(manifest), settings, fault=FailingSeeds(frozenset({99})))
    answer = Driver(order).wait()
    assert not answer.error, answer.message
    storage = open_storage(tmp_path / "run")
    good = [json.loads(text) for text in storage.read_bytes("results.jsonl").splitlines()]
    bad = [json.loads(text) for text in storage.read_bytes("errors.jsonl").splitlines()]
    assert [each["custom_id"] for each in good] == ["two", "coded", "again"]
    assert [(each["custom_id"], each["error"]["code"]) for each in bad] == [
        ("failed", "generation_failed"),
        ("bad", "missing_prompt"),
    ]
    two, coded, again = (each["response"]["body"]["data"] for each in good)
    assert len({image["url"] for image in two}) == 2
    assert [image["url"] for image in again] == [image["url"] for image in two]
    picture = base64.b64decode(coded[0]["b64_json"])
    assert Image.open(io.BytesIO(picture)).size == (32, 32)
    assert "url" not in coded[0]
    hashes = {row["sha256"] for row in pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()}
    assert hashlib.sha256(picture).hexdigest() in hashes
