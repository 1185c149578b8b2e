"""From checked rows to images: `num_images` unfolded, ids, seeds and row_ids given, in the columns of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dgate_core.manifest.groups import BatchGroups, RowGroups
from dgate_core.manifest.identity import ROW_ID_BYTES, derive_seed, hash_row, hash_settings, name_position
from dgate_core.manifest.resolve import NUMBER_COLUMNS, ResolvedRows
from dgate_core.manifest.rows import RowBatch
from dgate_core.runs.record import PLAN_SCHEMA

MAX_IMAGES_AT_ONCE = 32_768
MAX_BYTES_AT_ONCE = 64 << 20
_INT32 = np.iinfo(np.int32)

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Images:
    """Consecutive images of a plan."""

    table: pa.RecordBatch
    """In the plan's schema, but `shard` holds the number of the batch key, and duplicates are not yet known."""
    ordinals: Ints
    """Of the images that can be made."""
    digests: npt.NDArray[Any]
    """Their row_ids, dtype S16."""
    groups: Ints
    """Numbers of their batch keys."""


class ImageExpander:
    """Turns batches of checked rows into images, numbered through.

    Args:
        base_seed: From which rows without a seed get theirs.
        groups: Numbers the batch keys.
        schema: PLAN_SCHEMA and the manifest's own columns.
    """

    def __init__(self, base_seed: int, groups: BatchGroups, schema: pa.Schema) -> None:
        self.base_seed, self.groups, self.schema = base_seed, groups, schema
        self.images = 0

    def expand(self, batch: RowBatch, rows: ResolvedRows) -> Iterator[Images]:
        """Yield the images of a batch, as many at once as fit in little memory; a bad row is one image."""
        bad = np.zeros(batch.rows, np.bool_)
        bad[list(batch.problems)] = True
        good = np.flatnonzero(~bad)
        hashing = _Hashing(self.groups.group(rows, good), np.cumsum(~bad) - 1)
        columns = self._fill_columns(batch, rows, bad)
        counts = np.where(bad, 1, rows.numbers["num_images"])
        for start, stop in _cut_rows(counts, _measure_row(columns, batch.rows)):
            indices = np.repeat(np.arange(start, stop), counts[start:stop])
            yield self._make_images(columns, indices, bad, hashing)

    def _fill_columns(self, batch: RowBatch, rows: ResolvedRows, bad: Mask) -> dict[str, pa.Array]:
        """Columns that all images of a row share; a bad row shows what the manifest says."""
        positions = np.arange(batch.first_position, batch.first_position + batch.rows)
        columns = {name: pa.array(rows.numbers[name]) for name in NUMBER_COLUMNS} | rows.texts
        columns["model"] = pa.array(rows.select_model("model"), pa.string())
        columns["seed"] = _fill_seeds(batch.columns["seed"], batch.columns["id"], self.base_seed)
        if bad.any():
            said = {name: _limit_to(self.schema, name, batch.columns[name]) for name in columns}
            columns = {name: pc.if_else(bad, said[name], array) for name, array in columns.items()}
        columns["position"] = pa.array(positions)
        columns["id"] = batch.columns["id"]
        columns |= {name: batch.columns[name] for name in ("prompt", "tags")} | _describe_problems(batch)
        own = self.schema.names[len(PLAN_SCHEMA) :]
        return columns | dict(zip(own, batch.extras, strict=True))

    def _make_images(self, columns: dict[str, pa.Array], indices: Ints, bad: Mask, hashing: _Hashing) -> Images:
        count, good = len(indices), ~bad[indices]
        taken = {name: array.take(pa.array(indices)) for name, array in columns.items()}
        image_index = np.arange(count) - np.searchsorted(indices, indices)
        seeds = taken["seed"].fill_null(0).to_numpy() + np.where(good, image_index, 0)
        digests = hashing.hash_images(indices[good], seeds[good], taken["prompt"].filter(pa.array(good)))
        ordinals = np.arange(self.images, self.images + count)
        groups = np.zeros(count, np.int64)
        groups[good] = hashing.find_groups(indices[good])
        taken |= {
            "ordinal": pa.array(ordinals),
            "image_index": pa.array(image_index),
            "row_id": _digests_to_hex(digests, good),
            "status": pa.array(np.where(good, "planned", "error")),
            "duplicate_of": pa.nulls(count, pa.int64()),
            "seed": pc.if_else(good, seeds, taken["seed"]),
            "warnings": pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.string())),
            "shard": pa.array(groups, mask=~good),
        }
        self.images += count
        arrays = [taken[field.name].cast(field.type) for field in self.schema]
        table = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        return Images(table, ordinals[good], np.frombuffer(digests, f"S{ROW_ID_BYTES}"), groups[good])


class _Hashing:
    """What the row_ids of a batch's good rows need."""

    def __init__(self, grouped: RowGroups, place_among_good: Ints) -> None:
        self.grouped, self.place_among_good = grouped, place_among_good
        self.states = [hash_settings(settings) for settings in grouped.distinct_settings]

    def find_groups(self, indices: Ints) -> Ints:
        return self.grouped.keys[self.place_among_good[indices]]

    def hash_images(self, indices: Ints, seeds: Ints, prompts: pa.Array) -> bytes:
        """The digests of images, one after another."""
        settings = self.grouped.settings[self.place_among_good[indices]].tolist()
        texts = prompts.cast(pa.binary()).to_pylist()
        rows = zip(settings, seeds.tolist(), texts, strict=True)
        return b"".join([hash_row(self.states[number], seed, text) for number, seed, text in rows])


def _measure_row(columns: dict[str, pa.Array], rows: int) -> float:
    """Bytes of a row on average, at least one."""
    return max(1.0, sum(array.nbytes for array in columns.values()) / rows)


def _cut_rows(counts: Ints, row_bytes: float) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of rows whose images are not too many to hold; a single row is held in any case."""
    limit = min(MAX_IMAGES_AT_ONCE, MAX_BYTES_AT_ONCE / row_bytes)
    totals, start = np.cumsum(counts), 0
    while start < len(counts):
        before = totals[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, before + limit, "right")))
        yield start, stop
        start = stop


def _limit_to(schema: pa.Schema, name: str, array: pa.Array) -> pa.Array:
    """Null instead of a whole number that the plan's column cannot hold; the error message tells it."""
    if name not in schema.names or not pa.types.is_int32(schema.field(name).type):
        return array
    fits = pc.and_(pc.greater_equal(array, int(_INT32.min)), pc.less_equal(array, int(_INT32.max)))
    return pc.if_else(fits, array, None)


def fill_ids(ids: pa.Array, positions: Ints) -> pa.Array:
    """Ids with the row's position where none is given."""
    unsaid = pc.or_(ids.is_null(), pc.equal(ids, "").fill_null(True))
    if not unsaid.true_count:
        return ids
    names = [name_position(position) for position in positions[unsaid.to_numpy(zero_copy_only=False)].tolist()]
    return pc.replace_with_mask(ids, unsaid, pa.array(names, pa.string()))


def _fill_seeds(seeds: pa.Array, ids: pa.Array, base_seed: int) -> pa.Array:
    unsaid = seeds.is_null()
    if not unsaid.true_count:
        return seeds
    derived = [derive_seed(base_seed, row_id) for row_id in ids.filter(unsaid).to_pylist()]
    return pc.replace_with_mask(seeds, unsaid, pa.array(derived, pa.int64()))


def _describe_problems(batch: RowBatch) -> dict[str, pa.Array]:
    """The code of a row's first problem, and all of them in words."""
    if not batch.problems:
        return dict.fromkeys(("error_code", "error_message"), pa.nulls(batch.rows, pa.string()))
    found = [batch.problems.get(index, []) for index in range(batch.rows)]
    codes = [problems[0].code if problems else None for problems in found]
    messages = ["; ".join(problem.explain() for problem in problems) or None for problems in found]
    return {"error_code": pa.array(codes, pa.string()), "error_message": pa.array(messages, pa.string())}


def _digests_to_hex(digests: bytes, good: Mask) -> pa.Array:
    """A string of 32 hex digits for each good image, an empty one for the others."""
    ends = np.cumsum(np.where(good, 2 * ROW_ID_BYTES, 0))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.StringArray.from_buffers(len(good), pa.py_buffer(offsets), pa.py_buffer(digests.hex().encode()))
