"""The first pass of a plan: the manifest checked and expanded into a local file, equal ids and equal images found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dgate_core.manifest.check import RowChecker
from dgate_core.manifest.duplicates import DuplicateFinder
from dgate_core.manifest.expand import ImageExpander, fill_ids
from dgate_core.manifest.groups import BatchGroups
from dgate_core.manifest.item import ModelLookup
from dgate_core.manifest.problems import ProblemLog, show_value
from dgate_core.manifest.read import Manifest
from dgate_core.manifest.resolve import RowResolver
from dgate_core.manifest.rows import RowBatch
from dgate_core.manifest.shards import ShardNumbering
from dgate_core.manifest.values import Issue
from dgate_core.runs.record import PLAN_SCHEMA
from dgate_core.runs.spec import RunSpec

_LINE_BITS = 40


class RepeatedIds:
    """Finds rows whose id an earlier row has.

    Args:
        names: Of the manifest's files.
        folder: For hashes; made here.
    """

    def __init__(self, names: list[str], folder: Path) -> None:
        folder.mkdir()
        self.names = names
        self.finder = DuplicateFinder(folder)
        self.total = 0

    def add(self, batch: RowBatch) -> None:
        """Take the ids of a batch."""
        ids = batch.columns["id"].cast(pa.binary()).to_pylist()
        digests = b"".join([hashlib.blake2b(row_id, digest_size=16).digest() for row_id in ids])
        positions = np.arange(batch.first_position, batch.first_position + batch.rows)
        places = (self.names.index(batch.file) << _LINE_BITS) + batch.lines
        self.finder.add(np.frombuffer(digests, "S16"), positions, places)

    def find(self) -> bool:
        """Compare all ids; whether any is repeated."""
        self.total = sum(len(found) for found in self.finder.find())
        return self.total > 0

    def report(self, batch: RowBatch) -> None:
        """Note the rows of a batch that repeat an id."""
        for found in self.finder.read(batch.first_position, batch.first_position + batch.rows):
            index = int(found["number"]) - batch.first_position
            file, line = divmod(int(found["payload"]), 1 << _LINE_BITS)
            expected = f"an id of its own; {self.names[file]}:{line} has this one"
            got = show_value(batch.columns["id"][index].as_py())
            batch.report([Issue(index, "id", "duplicate_id", got, expected)])


class PlanDraft:
    """Images in the order of the manifest, on local disk, not yet cut into shards.

    Args:
        manifest: Gives the plan's own columns.
        spec: Gives base seed and file format.
        folder: For the draft and for hashes; made here.
        problems_kept: Problems that are listed; all are counted.
    """

    def __init__(self, manifest: Manifest, spec: RunSpec, folder: Path, problems_kept: int) -> None:
        (folder / "hashes").mkdir(parents=True)
        self.schema: pa.Schema = pa.schema([*PLAN_SCHEMA, *manifest.own_fields])
        self.groups = BatchGroups(spec.image)
        self.problems = ProblemLog(problems_kept)
        self.rows = self.errors = self.duplicates = 0
        self._path = folder / "draft.arrow"
        self._finder = DuplicateFinder(folder / "hashes")
        self._expander = ImageExpander(spec.seed, self.groups, self.schema)
        self._counts = np.zeros(0, np.int64)

    @property
    def images(self) -> int:
        """Images so far, also those that cannot be made."""
        return self._expander.images

    def fill(self, batches: Iterator[RowBatch], checker: RowChecker) -> None:
        """Check and expand all rows, then find equal images."""
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(self._path), "wb") as file, pa.ipc.new_stream(file, self.schema, options=options) as draft:
            for batch in batches:
                rows = checker.check(batch)
                for images in self._expander.expand(batch, rows):
                    draft.write_batch(images.table)
                    self._finder.add(images.digests, images.ordinals, images.groups)
                    self._count(images.groups)
                self.rows += batch.rows
                self.errors += len(batch.problems)
                self.problems.add(problem for _, found in sorted(batch.problems.items()) for problem in found)
        for found in self._finder.find():
            self._count(found["payload"], -1)
            self.duplicates += len(found)

    def count_planned(self) -> list[int]:
        """Images to make, for each batch key."""
        return [int(count) for count in self._counts]

    def read(self, numbering: ShardNumbering) -> Iterator[pa.RecordBatch]:
        """Yield the plan's rows, duplicates linked, the others in their shards."""
        with pa.OSFile(str(self._path)) as file, pa.ipc.open_stream(file) as draft:
            for batch in draft:
                ordinals = batch.column("ordinal").to_numpy()
                found = self._finder.read(int(ordinals[0]), int(ordinals[-1]) + 1)
                yield _finish_batch(batch, found, numbering)

    def _count(self, groups: npt.NDArray[Any], sign: int = 1) -> None:
        counts = np.bincount(groups, minlength=len(self.groups.keys))
        self._counts = np.pad(self._counts, (0, len(counts) - len(self._counts))) + sign * counts


def make_draft(
    manifest: Manifest, spec: RunSpec, lookup: ModelLookup, folder: Path, problems_kept: int = 1000
) -> PlanDraft:
    """Draft a plan; where ids turn out to be repeated, which is rare, once more with those rows as errors."""
    repeated = RepeatedIds([source.name for source in manifest.sources], folder / "ids")
    draft = PlanDraft(manifest, spec, folder / "draft", problems_kept)
    checker = RowChecker(RowResolver(spec, lookup))
    draft.fill(_read_named(manifest, repeated.add if "id" in manifest.columns else None), checker)
    if repeated.find():
        draft = PlanDraft(manifest, spec, folder / "redraft", problems_kept)
        draft.fill(_read_named(manifest, repeated.report), checker)
    return draft


def _read_named(manifest: Manifest, visit: Callable[[RowBatch], None] | None) -> Iterator[RowBatch]:
    """Yield the manifest's batches with every row's id filled in, each shown to `visit`."""
    for batch in manifest.read_batches():
        positions = np.arange(batch.first_position, batch.first_position + batch.rows)
        batch.columns["id"] = fill_ids(batch.columns["id"], positions)
        if visit is not None:
            visit(batch)
        yield batch


def _finish_batch(batch: pa.RecordBatch, found: npt.NDArray[Any], numbering: ShardNumbering) -> pa.RecordBatch:
    ordinals = batch.column("ordinal").to_numpy()
    later = np.zeros(batch.num_rows, np.bool_)
    first = np.zeros(batch.num_rows, np.int64)
    places = found["number"] - ordinals[0]
    later[places], first[places] = True, found["first"]
    groups = batch.column("shard").fill_null(-1).to_numpy().astype(np.int64)
    wanted = (groups >= 0) & ~later
    shards = np.zeros(batch.num_rows, np.int32)
    shards[wanted] = numbering.assign(groups[wanted], ordinals[wanted])
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns["status"] = pc.if_else(later, "duplicate", columns["status"])
    columns["duplicate_of"] = pa.array(first, mask=~later)
    columns["shard"] = pa.array(shards, mask=~wanted)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)
