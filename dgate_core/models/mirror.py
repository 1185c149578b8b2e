"""A mirror of models, in a bucket or a folder: `<mirror>/NAME/<files>`, and a manifest that is written last."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from dgate_core.errors import ModelError, ObjectNotFoundError, UsageError
from dgate_core.models.hashing import find_cache_folder
from dgate_core.models.model_manifest import MANIFEST_NAME, FileSum, ModelManifest, bytes_to_manifest, manifest_to_bytes
from dgate_core.storage import Storage, open_storage

S3_SCHEME: Final = "s3://"
MIRROR_VARIABLE: Final = "DGATE_MODEL_MIRROR"
FILES_FOLDER: Final = "files"
"""Beside the manifest, so that a pulled model has the hash of the one that was imported."""
_UPLOADS: Final = 8


def locate_mirror(uri: str | None) -> str | None:
    """The mirror that was given, else that of DGATE_MODEL_MIRROR, else None."""
    return uri or os.environ.get(MIRROR_VARIABLE) or None


def open_model(mirror: str, name: str) -> Storage:
    """The storage of one model in a mirror."""
    return open_storage(f"{mirror.rstrip('/')}/{name}")


def split_model_uri(uri: str) -> tuple[str, str]:
    """s3://bucket/models/NAME → s3://bucket/models, NAME."""
    mirror, _, name = uri.rstrip("/").rpartition("/")
    if not name or mirror.endswith(":/"):
        raise UsageError(f"{uri!r} names no model", "s3://bucket/models/NAME")
    return mirror, name


def read_manifest(storage: Storage) -> ModelManifest:
    """What a mirror holds of a model.

    Raises:
        ModelError: no manifest there, or a damaged one.
    """
    try:
        data = storage.read_bytes(MANIFEST_NAME)
    except ObjectNotFoundError as error:
        is_empty = next(iter(storage.list_objects()), None) is None
        what = "there is nothing" if is_empty else f"there are files without {MANIFEST_NAME}"
        raise ModelError(
            f"{what} at {storage.uri}",
            f"a model of the mirror, whose {MANIFEST_NAME} is written last",
            "check the name, or put the model there: dgate models import FOLDER --name NAME --to MIRROR",
        ) from error
    return bytes_to_manifest(data, storage.uri_of(MANIFEST_NAME))


def publish_model(source: Path, manifest: ModelManifest, storage: Storage, tell: Callable[[str], object]) -> None:
    """Puts a model into a mirror: its files at once, then the manifest; the same model again is no work.

    Raises:
        ModelError: another model has this name there.
        StorageError: the mirror refuses or does not answer.
    """
    if storage.exists(MANIFEST_NAME):
        if read_manifest(storage).files != manifest.files:
            raise ModelError(f"{storage.uri} holds another model", "a name that is free", "give another --name")
        tell(f"{storage.uri}: there already")
        return
    root = source.parent if manifest.entry else source
    tell(f"{storage.uri}: {len(manifest.files)} files, {manifest.size / 1e6:.1f} MB")

    def upload(file: FileSum) -> None:
        storage.upload_file(root / file.path, file.path)

    with ThreadPoolExecutor(_UPLOADS) as pool:
        list(pool.map(upload, manifest.files))
    storage.write_bytes(MANIFEST_NAME, manifest_to_bytes(manifest))


def locate_pulled(name: str) -> Path:
    """Where a model of a mirror lies on this machine once it is whole."""
    return find_cache_folder() / "models" / name


def read_pulled(name: str) -> tuple[Path, ModelManifest] | None:
    """What was pulled under this name: the folder or single file, and its manifest; None when nothing was."""
    file = locate_pulled(name) / MANIFEST_NAME
    if not file.is_file():
        return None
    manifest = bytes_to_manifest(file.read_bytes(), str(file))
    return locate_pulled(name) / FILES_FOLDER / manifest.entry, manifest
