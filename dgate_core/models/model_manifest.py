"""What a model's files are: names, sizes and sha256, as a mirror and the user's registry keep them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dgate_core.errors import ModelError, StorageError
from dgate_core.models.checkpoint_folder import PICKLE_SUFFIXES
from dgate_core.models.hashing import SHA256_DIGITS, hash_file
from dgate_core.storage.keys import check_key

MANIFEST_NAME: Final = "SHA256SUMS.json"
MANIFEST_VERSION: Final = 1
CODE_SUFFIXES: Final = frozenset({".py", ".pyc", ".so", ".sh"})
"""Never copied: a checkpoint is data."""


@dataclass(frozen=True, slots=True)
class FileSum:
    """One file of a model."""

    path: str
    """Relative, with `/`."""
    size: int
    """Bytes."""
    sha256: str
    """Hex digits."""


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """All files of a model, and what its files do not say."""

    files: tuple[FileSum, ...]
    """Sorted by path."""
    entry: str = ""
    """The single file that is opened; empty for a diffusers folder."""
    licence: str = "unknown"
    """As its card states it."""
    num_inference_steps: int | None = None
    """Default steps; None is the pipeline's own number."""
    guidance_scale: float | None = None
    """Default guidance; None is the pipeline's own."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def sum_files(path: Path) -> tuple[str, tuple[FileSum, ...]]:
    """The entry, and the sums of all files of a diffusers folder, or of a single file with the configs beside it.

    Raises:
        ModelError: no safetensors there.
    """
    root, entry = (path.parent, path.name) if path.is_file() else (path, "")
    files = list(list_files(path if not entry else path.with_suffix("")))
    if entry:
        files.append(path)
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{path} holds no .safetensors file", "a diffusers folder with safetensors", "check the path")
    sums = (FileSum(file.relative_to(root).as_posix(), file.stat().st_size, hash_file(file)) for file in files)
    return entry, tuple(sorted(sums, key=lambda each: each.path))


def list_files(folder: Path) -> Iterator[Path]:
    """What belongs to a model: no hidden files, no pickles, no code, no manifest."""
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        left_out = file.suffix in PICKLE_SUFFIXES | CODE_SUFFIXES or file.name == MANIFEST_NAME
        if file.is_file() and not is_hidden and not left_out:
            yield file


def manifest_to_record(manifest: ModelManifest) -> dict[str, Any]:
    """As JSON has it."""
    return asdict(manifest) | {"version": MANIFEST_VERSION}


def manifest_to_bytes(manifest: ModelManifest) -> bytes:
    """The manifest as a file; the same manifest gives the same bytes."""
    return (json.dumps(manifest_to_record(manifest), indent=1, sort_keys=True) + "\n").encode()


def bytes_to_manifest(data: bytes, where: str) -> ModelManifest:
    """The inverse; `where` is for messages.

    Raises:
        ModelError: damaged, of another version, or with files that are no data.
    """
    try:
        return record_to_manifest(json.loads(data), where)
    except (ValueError, TypeError) as error:
        raise damaged_manifest(where, error) from error


def record_to_manifest(record: Mapping[str, Any], where: str) -> ModelManifest:
    """The inverse of `manifest_to_record`; see `bytes_to_manifest`."""
    try:
        fields = dict(record)
        if (version := fields.pop("version")) != MANIFEST_VERSION:
            raise ValueError(f"version {version}")
        files = tuple(FileSum(**each) for each in fields.pop("files"))
        for file in files:
            _check_file(file, where)
        return ModelManifest(files, **fields)
    except (ValueError, TypeError, KeyError, AttributeError, StorageError) as error:
        raise damaged_manifest(where, error) from error


def damaged_manifest(where: str, error: Exception) -> ModelError:
    """A manifest that cannot be understood."""
    return ModelError(
        f"{where} is damaged: {str(error).splitlines()[0]}",
        f"what `dgate models import --to` writes, version {MANIFEST_VERSION}",
        "import the model once more",
    )


def _check_file(file: FileSum, where: str) -> None:
    check_key(file.path)
    if len(file.sha256) != SHA256_DIGITS or file.size < 0:
        raise ValueError(f"{file.path} without size and sha256")
    if Path(file.path).suffix in PICKLE_SUFFIXES | CODE_SUFFIXES:
        raise ModelError(
            f"{where} lists {file.path}, and opening such a file can run any code",
            "safetensors, configs and texts",
            "have the model imported again from safetensors",
        )
