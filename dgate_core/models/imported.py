"""Names that a user gave to checkpoints of his own: one file, beside that of the aliases."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from dgate_core.errors import ModelError
from dgate_core.models.aliases import hold_registry, locate_registry
from dgate_core.models.model_manifest import ModelManifest, manifest_to_record, record_to_manifest
from dgate_core.models.spec import PIPELINES, CheckpointSpec
from dgate_core.storage import Storage, open_object

IMPORTED_VERSION: Final = 1
IMPORTED_FILE: Final = "imported.json"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A checkpoint under a user's name."""

    name: str
    """As `--model` takes it."""
    source: str
    """Absolute path of its folder or single file."""
    pipeline_class: str
    """Key of PIPELINES."""
    manifest: ModelManifest
    """Its files as they were when it was imported."""
    imported_at: float = field(default_factory=time.time)
    """POSIX seconds."""

    def to_spec(self) -> CheckpointSpec:
        """As the catalogue would have it."""
        pipeline, manifest = PIPELINES[self.pipeline_class], self.manifest
        steps, guidance = manifest.num_inference_steps, manifest.guidance_scale
        return CheckpointSpec(
            self.name,
            self.source,
            num_inference_steps=pipeline.num_inference_steps if steps is None else steps,
            guidance_scale=pipeline.guidance_scale if guidance is None else guidance,
            size_multiple=pipeline.size_multiple,
            licence=manifest.licence,
        )


def check_name(name: str) -> str:
    """The name unchanged; raises ModelError when it could be taken for a path."""
    if not _NAME.fullmatch(name) or name.endswith(".safetensors"):
        raise ModelError(f"the name {name!r}", "small letters, digits, dots, - and _, up to 63", "such as: my-model")
    return name


def read_imported() -> dict[str, ImportedModel]:
    """Every imported model by its name; none where nothing was imported.

    Raises:
        ModelError: the file is damaged or of another version.
    """
    storage, key = _locate()
    if not storage.exists(key):
        return {}
    where = storage.uri_of(key)
    try:
        found = json.loads(storage.read_bytes(key))
        if found["version"] != IMPORTED_VERSION:
            raise ValueError(f"version {found['version']}")
        return {name: _read_entry(name, entry, where) for name, entry in found["models"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"the list of imported models {where} is damaged: {error}",
            f"what `dgate models import` writes, version {IMPORTED_VERSION}",
            "bring it back from a backup, or move it away and import again",
        ) from error


def find_imported(name: str) -> ImportedModel | None:
    """The imported model of this name, None when there is none."""
    return read_imported().get(name) if _NAME.fullmatch(name) else None


def register_model(model: ImportedModel) -> None:
    """Keeps a model under its name, in place of one that had it before."""
    with _change() as models:
        models[check_name(model.name)] = model


@contextmanager
def _change() -> Iterator[dict[str, ImportedModel]]:
    with hold_registry():
        models = read_imported()
        yield models
        storage, key = _locate()
        record = {name: _to_entry(model) for name, model in sorted(models.items())}
        storage.write_bytes(key, (json.dumps({"version": IMPORTED_VERSION, "models": record}) + "\n").encode())


def _locate() -> tuple[Storage, str]:
    storage, key = open_object(locate_registry())
    return storage, IMPORTED_FILE if key != IMPORTED_FILE else f"{key}.models"


def _read_entry(name: str, entry: Mapping[str, Any], where: str) -> ImportedModel:
    manifest = record_to_manifest(entry["manifest"], where)
    if entry["pipeline_class"] not in PIPELINES:
        raise ValueError(f"{name} is a {entry['pipeline_class']}")
    return ImportedModel(name, entry["source"], entry["pipeline_class"], manifest, entry["imported_at"])


def _to_entry(model: ImportedModel) -> dict[str, Any]:
    plain = {name: getattr(model, name) for name in ("source", "pipeline_class", "imported_at")}
    return plain | {"manifest": manifest_to_record(model.manifest)}
