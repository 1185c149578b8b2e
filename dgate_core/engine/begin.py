"""Opens a run: plans it in an empty folder, or goes on with the same run in its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dgate_core.engine.describe import list_versions
from dgate_core.errors import ModelError, RunError
from dgate_core.manifest.item import ModelLimits
from dgate_core.manifest.plan import PlanOptions, plan_run
from dgate_core.manifest.plan_files import has_plan
from dgate_core.manifest.read import Manifest, open_manifest
from dgate_core.manifest.shards import ShardOptions
from dgate_core.manifest.summary import PlanSummary
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.devices import count_gpus
from dgate_core.models.limits import find_limits
from dgate_core.models.profiles import check_profile, check_steps, find_profile
from dgate_core.runs.identity import check_same_identity, describe_identity, fingerprint_identity
from dgate_core.runs.settings import RunSettings, settings_to_spec
from dgate_core.runs.spec import Precision, RunSpec
from dgate_core.runs.store import RUN_FORMAT, RunStore
from dgate_core.safety.checkers import check_checker
from dgate_core.storage import open_storage


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run that is planned, now or earlier."""

    store: RunStore
    is_new: bool
    summary: PlanSummary | None
    """Of the planning; None when the run was planned earlier."""


class ModelFinder:
    """A `ModelLookup` that remembers which models a manifest asked for."""

    def __init__(self) -> None:
        self.found: dict[str, ModelLimits] = {}

    def __call__(self, name: str) -> ModelLimits:
        """Raises ModelError when there is no such model."""
        self.found[name] = find_limits(name)
        return self.found[name]


def open_run(manifest_uris: Sequence[str], out: str, settings: RunSettings) -> OpenedRun:
    """Plans the run into `out`, or opens the same run there.

    Raises:
        ManifestError: the manifest cannot be read, or `strict` is set and rows are bad.
        UsageError: there is no such profile, or safety checker.
        RunMismatchError: `out` holds another run.
        RunError: `out` holds something else.
    """
    check_profile(settings.profile)
    if settings.safety is not None:
        check_checker(settings.safety)
    store = RunStore(open_storage(out))
    manifest = open_manifest(manifest_uris)
    if store.exists():
        check_same_run(store, manifest, settings)
        return OpenedRun(store, is_new=False, summary=None)
    check_folder_is_free(store)
    return plan_new_run(store, manifest, settings)


def plan_new_run(store: RunStore, manifest: Manifest, settings: RunSettings) -> OpenedRun:
    """Writes the plan, then run.json; raises ModelError where the profile is not for a model."""
    started = time.time()
    spec = settings_to_spec(settings, resolve_precision(settings))
    finder = ModelFinder()
    options = PlanOptions(ShardOptions(settings.rows_per_shard, lanes=count_lanes(settings)), strict=settings.strict)
    summary = plan_run(manifest, spec, finder, store.storage, options)
    # The device matters not here: no profile asks for fewer steps on another.
    profile = find_profile(settings.profile, "cpu")
    for model in finder.found:
        check_steps(find_checkpoint(model).spec, profile)
    models = describe_models(finder.found)
    name = store.uri.rstrip("/").rpartition("/")[2]
    about = describe_run(manifest, spec, models, summary, started)
    store.write_run({"name": name, **about, "trackers": list(settings.trackers)})
    return OpenedRun(store, is_new=True, summary=summary)


def describe_run(
    manifest: Manifest, spec: RunSpec, models: dict[str, Any], summary: PlanSummary, started: float
) -> dict[str, Any]:
    """The first run.json."""
    hashes = {name: facts["weights_hash"] for name, facts in models.items()}
    identity = describe_identity(spec.to_dict(), manifest.sha256, hashes)
    return {
        "format": RUN_FORMAT,
        "state": "planned",
        "fingerprint": fingerprint_identity(identity),
        "spec": spec.to_dict(),
        "manifest": {
            "sha256": manifest.sha256,
            "format": manifest.format,
            "is_batch_api": manifest.is_batch_api,
            "files": [source.name for source in manifest.sources],
            "rows": summary.rows,
        },
        "models": models,
        "versions": list_versions(),
        "counts": {
            "rows": summary.rows,
            "images": summary.images,
            "planned": summary.planned,
            "bad_rows": summary.errors,
            "duplicate": summary.duplicates,
            "shards": summary.shards,
        },
        "warnings": list(summary.warnings),
        "attempt": 1,
        "created_at": started,
        "plan_seconds": time.time() - started,
    }


def describe_models(found: dict[str, ModelLimits]) -> dict[str, Any]:
    """Facts that run.json keeps of each model."""
    return {
        limits.model: {
            "weights_hash": limits.weights_hash,
            "revision": find_checkpoint(limits.model).spec.revision,
            "licence": find_checkpoint(limits.model).spec.licence,
            "native_size": limits.width,
        }
        for limits in found.values()
    }


def check_same_run(store: RunStore, manifest: Manifest, settings: RunSettings) -> None:
    """A run may only be continued by the command that made it; `auto` precision means the one it has.

    Raises:
        RunMismatchError: names what differs.
    """
    run = store.read_run()
    precision = run["spec"]["precision"] if settings.precision == "auto" else settings.precision
    spec = settings_to_spec(settings, precision)
    stored = describe_identity(run["spec"], run["manifest"]["sha256"], hash_models(run["models"]))
    wanted = describe_identity(spec.to_dict(), manifest.sha256, {name: _hash_now(name) for name in run["models"]})
    check_same_identity(stored, wanted, store.uri)


def hash_models(models: dict[str, Any]) -> dict[str, str]:
    """Name → weights hash, as run.json has them."""
    return {name: facts["weights_hash"] for name, facts in models.items()}


def _hash_now(name: str) -> str:
    try:
        return find_checkpoint(name).weights_hash
    except ModelError as error:
        return f"not to be had ({error.got})"


def check_folder_is_free(store: RunStore) -> None:
    """Refuses a folder with other people's files in it; a plan that was cut off is fine.

    Raises:
        RunError: names the first strange file.
    """
    if has_plan(store.storage):
        return
    for item in store.storage.list_objects():
        if not item.key.startswith(("plan/", "_run_claim", "lanes/")):
            raise RunError(
                f"{store.uri} holds {item.key} and no run.json", "an empty or new folder", "give another --out"
            )


def resolve_precision(settings: RunSettings) -> Precision:
    """`auto` is decided once, when the run is made, and kept in run.json."""
    if settings.precision != "auto":
        return settings.precision
    from dgate_core.engine.lane import choose_device
    from dgate_core.engine.precision import choose_precision

    return choose_precision(choose_device(settings.device))


def count_lanes(settings: RunSettings) -> int:
    """One lane per GPU, or one on the CPU, unless the user says otherwise."""
    if settings.lanes is not None:
        return settings.lanes
    return max(1, count_gpus()) if settings.device in {"auto", "cuda"} else 1


def plan_only(manifest_uris: Sequence[str], settings: RunSettings) -> PlanSummary:
    """What a run would be, without writing anything."""
    check_profile(settings.profile)
    if settings.safety is not None:
        check_checker(settings.safety)
    precision: Precision = "float32" if settings.precision == "auto" else settings.precision
    options = PlanOptions(ShardOptions(settings.rows_per_shard, lanes=count_lanes(settings)), strict=False)
    return plan_run(open_manifest(manifest_uris), settings_to_spec(settings, precision), find_limits, None, options)
