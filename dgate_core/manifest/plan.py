"""Plans a run: every row checked, every image numbered, equal ones linked, the rest cut into shards.

Two passes in bounded memory. The first reads, checks and expands the manifest into a draft on local disk, and hashes
what determines each image; then equal hashes are known. The second turns the draft into the parts of the plan.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dgate_core.errors import ManifestError
from dgate_core.manifest.draft import PlanDraft, make_draft
from dgate_core.manifest.item import ModelLookup
from dgate_core.manifest.plan_files import PlanWriter, remove_plan, write_shard_index
from dgate_core.manifest.read import Manifest
from dgate_core.manifest.shards import ShardNumbering, ShardOptions, estimate_makespan
from dgate_core.manifest.summary import GroupSummary, PlanSummary, list_problems
from dgate_core.runs.spec import RunSpec
from dgate_core.storage import Storage
from dgate_core.storage.files import os_errors


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How a plan is made; nothing here changes a pixel."""

    shards: ShardOptions = field(default_factory=ShardOptions)
    """How large shards shall be."""
    strict: bool = False
    """Bad rows stop the plan instead of becoming error rows."""
    problems_kept: int = 1000
    """Problems that the summary lists; all are counted."""
    work_folder: Path | None = None
    """Local folder for the draft, about the size of the manifest; None takes the system's."""


def plan_run(
    manifest: Manifest,
    spec: RunSpec,
    lookup: ModelLookup,
    destination: Storage | None,
    options: PlanOptions | None = None,
) -> PlanSummary:
    """Write a run's plan, its shard index last.

    Args:
        manifest: From open_manifest.
        spec: Defaults and base seed.
        lookup: Finds a model's limits by name.
        destination: Rooted at the run's folder; a plan in it, half-written or whole, is replaced. None writes nothing.
        options: See there.

    Raises:
        ManifestError: a file is damaged, or with `strict` any row is bad.
        ConfigError: the run's defaults are wrong for its default model.
        ModelError: the run's default model is not known.
        StorageError: the destination or the work folder refuses or is full.
    """
    options = options or PlanOptions()
    work_folder = options.work_folder or Path(tempfile.gettempdir())
    with os_errors(work_folder), tempfile.TemporaryDirectory(prefix="dgate-plan-", dir=work_folder) as folder:
        draft = make_draft(manifest, spec, lookup, Path(folder), options.problems_kept)
        if options.strict and draft.problems.total:
            raise _refuse(draft)
        numbering = ShardNumbering(draft.count_planned(), draft.groups.seconds_per_image, options.shards)
        if destination is not None:
            _write_plan(draft, numbering, destination, Path(folder))
    return _summarise(manifest, draft, numbering, options.shards.lanes)


def _write_plan(draft: PlanDraft, numbering: ShardNumbering, destination: Storage, folder: Path) -> None:
    remove_plan(destination)
    writer = PlanWriter(destination, draft.schema, folder)
    for batch in draft.read(numbering):
        writer.write(batch)
    writer.close()
    write_shard_index(destination, numbering.list_shards(draft.groups.keys))


def _summarise(manifest: Manifest, draft: PlanDraft, numbering: ShardNumbering, lanes: int) -> PlanSummary:
    planned = np.array(draft.count_planned(), np.int64)
    seconds = np.array(draft.groups.seconds_per_image)
    shard_seconds = (numbering.rows * seconds[numbering.groups]).tolist()
    columns = (planned.tolist(), numbering.counts.tolist(), (planned * seconds).tolist())
    return PlanSummary(
        rows=draft.rows,
        images=draft.images,
        planned=int(planned.sum()),
        errors=draft.errors,
        duplicates=draft.duplicates,
        shards=numbering.total,
        batch_keys=tuple(map(GroupSummary, draft.groups.keys, *columns)),
        estimated_seconds={count: estimate_makespan(shard_seconds, count) for count in sorted({1, lanes})},
        estimated_bytes=int(np.dot(planned, draft.groups.bytes_per_image)),
        problems=tuple(draft.problems.kept),
        problem_counts=dict(draft.problems.counts),
        warnings=manifest.warnings,
    )


def _refuse(draft: PlanDraft) -> ManifestError:
    total = draft.problems.total
    lines = [
        f"{total:,} problems in {draft.errors:,} of {draft.rows:,} rows:",
        *list_problems(draft.problems.kept, total),
    ]
    return ManifestError("\n  ".join(lines), "", "mend the rows, or leave out --strict to make the others")
