"""Shards cover every planned image once, hold one batch key each, are found with few reads; retries come after."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgate_core.errors import RunError
from dgate_core.manifest.duplicates import FOUND, DuplicateFinder
from dgate_core.manifest.groups import number_combinations
from dgate_core.manifest.item import BatchKey
from dgate_core.manifest.plan import PlanOptions
from dgate_core.manifest.plan_files import (
    PART_ROWS,
    has_plan,
    name_plan_part,
    read_plan_rows,
    read_shard_index,
    read_shard_rows,
)
from dgate_core.manifest.retry import plan_retry
from dgate_core.manifest.shards import ShardNumbering, ShardOptions, choose_rows_per_shard, estimate_makespan
from dgate_core.storage import Storage, open_storage
from tests.manifest_samples import plan_files, plan_rows, read_plan, write_jsonl

KEY = [field.name for field in fields(BatchKey)]


def plan_mixed(tmp_path: Path, count: int = 600, **given: Any) -> Storage:
    rows = [
        {"prompt": f"{n}", "width": (64, 128, 256)[n % 3], "lora": "ink" if n % 5 == 0 else None} for n in range(count)
    ]
    rows += [{"prompt": ""}, {"prompt": "twin", "seed": 1}, {"prompt": "twin", "seed": 1}]
    return plan_files(tmp_path, write_jsonl(tmp_path / "m.jsonl", rows), **given)[1]


def check_cover(storage: Storage) -> None:
    """Every planned image in one shard, each shard of one batch key and in order."""
    seen: Counter[int] = Counter()
    shards = read_shard_index(storage)
    assert [shard.shard for shard in shards] == list(range(len(shards)))
    for shard in shards:
        rows = read_shard_rows(storage, shard).to_pylist()
        assert {BatchKey(**{name: row[name] for name in KEY}) for row in rows} == {shard.batch_key}
        ordinals = [row["ordinal"] for row in rows]
        assert ordinals == sorted(ordinals)
        assert (len(rows), ordinals[0], ordinals[-1]) == (shard.rows, shard.first_ordinal, shard.last_ordinal)
        seen.update(ordinals)
    planned = [row["ordinal"] for row in read_plan(storage) if row["status"] == "planned"]
    assert seen == Counter(planned)


@pytest.mark.parametrize(
    "options", [ShardOptions(), ShardOptions(rows_per_shard=7), ShardOptions(lanes=3), ShardOptions(shard_seconds=5)]
)
def test_shards_cover_every_planned_image_once(tmp_path: Path, options: ShardOptions) -> None:
    storage = plan_mixed(tmp_path, options=PlanOptions(options))
    check_cover(storage)


def test_a_shard_is_found_in_a_plan_of_several_parts(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "num_images": 1000, "width": 64 if n % 2 else 128} for n in range(210)]
    _, storage = plan_files(tmp_path, write_jsonl(tmp_path / "m.jsonl", rows), options=PlanOptions(ShardOptions(1500)))
    assert [item.key for item in storage.list_objects("plan/part")] == [name_plan_part(n) for n in range(3)]
    assert [pq.read_metadata(tmp_path / "run" / name_plan_part(n)).num_rows for n in range(3)] == [
        PART_ROWS,
        PART_ROWS,
        10_000,
    ]
    for shard in read_shard_index(storage)[::17]:
        ordinals = read_shard_rows(storage, shard)["ordinal"].to_numpy()
        assert (ordinals[0], ordinals[-1], len(ordinals)) == (shard.first_ordinal, shard.last_ordinal, shard.rows)
    wanted = [209_999, 3, 100_000, 99_999, 3]
    assert read_plan_rows(storage, wanted)["ordinal"].to_pylist() == [3, 99_999, 100_000, 209_999]


def test_a_plan_that_lost_rows_is_an_error(tmp_path: Path) -> None:
    storage = plan_mixed(tmp_path)
    part = tmp_path / "run" / name_plan_part(0)
    pq.write_table(pq.read_table(part).slice(1), part)
    with pytest.raises(RunError, match="plan is damaged"):
        read_shard_rows(storage, read_shard_index(storage)[0])
    with pytest.raises(RunError, match="no plan"):
        read_shard_index(open_storage(tmp_path / "elsewhere"))


def test_a_plan_without_good_rows_has_no_shards(tmp_path: Path) -> None:
    plan_rows(tmp_path, [{"prompt": ""}])
    storage = open_storage(tmp_path / "run")
    assert has_plan(storage)
    assert read_shard_index(storage) == []
    assert plan_retry(storage, read_plan_rows(storage, [0])) == []


def test_retries_come_after_the_shards_that_are_there(tmp_path: Path) -> None:
    storage = plan_mixed(tmp_path, options=PlanOptions(ShardOptions(rows_per_shard=50)))
    before, plan = read_shard_index(storage), read_plan(storage)
    wanted = [0, 1, 2, 3, 5, 599, 600, 601, 602]  # 600 is bad, 602 a duplicate of 601
    storage.write_bytes(name_plan_part(3, attempt=2), b"left by a crash")
    first = plan_retry(storage, read_plan_rows(storage, wanted))
    second = plan_retry(storage, read_plan_rows(storage, range(40)), ShardOptions(rows_per_shard=4))
    assert read_shard_index(storage) == [*before, *first, *second]
    assert [shard.shard for shard in first + second] == list(range(len(before), len(before) + len(first) + len(second)))
    assert {shard.attempt for shard in first} == {2}
    assert {shard.attempt for shard in second} == {3}
    assert max(shard.rows for shard in second) <= 4
    rows = [row for shard in first for row in read_shard_rows(storage, shard).to_pylist()]
    assert sorted(row["ordinal"] for row in rows) == [0, 1, 2, 3, 5, 599, 601]
    for row in rows:
        assert {**row, "shard": 0} == {**plan[row["ordinal"]], "shard": 0}
    for shard in first:
        assert shard.estimated_seconds == pytest.approx(
            shard.rows * next(old.estimated_seconds / old.rows for old in before if old.batch_key == shard.batch_key)
        )
    assert read_plan(storage) == plan


@pytest.mark.parametrize(
    ("seconds", "images", "options", "rows"),
    [
        (1.0, 10_000, ShardOptions(), 900),
        (0.001, 10_000, ShardOptions(), 4096),
        (1000.0, 10_000, ShardOptions(), 16),
        (0.0, 10_000, ShardOptions(), 4096),
        (1.0, 1600, ShardOptions(lanes=4), 100),
        (1.0, 40, ShardOptions(lanes=4), 16),
        (1.0, 40, ShardOptions(rows_per_shard=3), 3),
    ],
)
def test_rows_per_shard(seconds: float, images: int, options: ShardOptions, rows: int) -> None:
    assert choose_rows_per_shard(seconds, images, options) == rows


@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.integers(1, 20), st.integers(1, 50))
def test_numbering_fills_shards_evenly_and_in_order(groups: list[int], rows: int, cut: int) -> None:
    _, numbers = np.unique(groups, return_inverse=True)
    counts = np.bincount(numbers)
    numbering = ShardNumbering(counts.tolist(), [1.0] * len(counts), ShardOptions(rows_per_shard=rows), first_shard=5)
    pieces = [(numbers[a : a + cut], np.arange(a, min(a + cut, len(numbers)))) for a in range(0, len(numbers), cut)]
    shards = np.concatenate([numbering.assign(*piece) for piece in pieces])
    sizes = np.bincount(shards - 5)
    assert sizes.tolist() == numbering.rows.tolist()
    assert sizes.min() > 0
    assert sizes.max() <= rows
    for number in range(len(counts)):
        of_group = shards[numbers == number]
        assert (np.diff(of_group) >= 0).all()
        assert (numbering.groups[np.unique(of_group) - 5] == number).all()


def test_makespan() -> None:
    assert estimate_makespan([3, 1, 1, 1], 1) == 6
    assert estimate_makespan([3, 1, 1, 1], 2) == 3
    assert estimate_makespan([], 2) == 0


@given(st.lists(st.integers(0, 40), max_size=400), st.integers(1, 100))
def test_duplicates_are_found_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[int], cut: int) -> None:
    finder = DuplicateFinder(tmp_path_factory.mktemp("hashes"))
    for start in range(0, len(values), cut):
        piece = values[start : start + cut]
        digests = np.frombuffer(b"".join(bytes([value % 3]) * 15 + bytes([value]) for value in piece), "S16")
        finder.add(digests, np.arange(start, start + len(piece)), np.array(piece) + 1000)
    yielded = sum(len(found) for found in finder.find())
    found = finder.read(0, max(1, len(values)))
    expected = [(n, values.index(v), v + 1000) for n, v in enumerate(values) if values.index(v) != n]
    assert found.tolist() == expected
    assert yielded == len(expected)
    assert found.dtype == FOUND


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.5, -0.0]), st.integers(0, 2)), min_size=1))
def test_combinations_are_numbered_as_they_appear(rows: list[tuple[int, float, int]]) -> None:
    codes, firsts = number_combinations([np.array(column) for column in zip(*rows, strict=True)])
    distinct = list(dict.fromkeys(rows))
    assert codes.tolist() == [distinct.index(row) for row in rows]
    assert firsts.tolist() == [rows.index(row) for row in distinct]
