"""Is a model on this machine what it should be? Every file is read, against whatever is recorded of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dgate_core.errors import ModelError
from dgate_core.models.catalog import find_checkpoint, find_spec, locate_files
from dgate_core.models.checkpoint_folder import read_json
from dgate_core.models.hub import list_recorded_sums
from dgate_core.models.imported import find_imported
from dgate_core.models.mirror import read_pulled
from dgate_core.models.model_manifest import list_files
from dgate_core.models.single_file import read_header

State = Literal["ok", "unrecorded", "damaged", "missing"]


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """What was found of one file."""

    path: str
    """Relative to the model's folder."""
    state: State
    """`ok` agrees with its recorded sha256; `unrecorded` has none and could be read."""
    detail: str = ""
    """What is wrong."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of a model."""

    name: str
    """As it was asked for."""
    path: Path
    """Its folder or single file."""
    files: tuple[FileVerdict, ...]
    """By path."""
    problems: tuple[str, ...]
    """Of the model as a whole: parts that are missing, weights that do not fit their configs."""

    @property
    def is_whole(self) -> bool:
        """Nothing is damaged or missing, and all fits together."""
        return not self.problems and all(file.state in {"ok", "unrecorded"} for file in self.files)


def verify_model(name: str, tell: Callable[[str], object]) -> Verification:
    """Reads every file of a model; asks no network.

    Args:
        name: As `--model` takes it.
        tell: Takes one line for each file, as it is done.

    Raises:
        ModelError: unknown, or not on this machine.
    """
    path = locate_files(find_spec(name))
    if path is None:
        raise ModelError(f"{name} is not on this machine", "a model that is here", f"run: dgate models pull {name}")
    root = path.parent if path.is_file() else path
    recorded = read_recorded_sums(name, root)
    files = {file.relative_to(root).as_posix(): file for file in list_files(path)}
    verdicts = []
    for key in sorted(files.keys() | recorded.keys()):
        verdict = check_file(key, files.get(key), recorded.get(key))
        tell(f"{verdict.state:10} {key}" + (f": {verdict.detail}" if verdict.detail else ""))
        verdicts.append(verdict)
    whole = all(verdict.state in {"ok", "unrecorded"} for verdict in verdicts)
    return Verification(name, path, tuple(verdicts), tuple(_find_problems(name, path) if whole else ()))


def read_recorded_sums(name: str, root: Path) -> Mapping[str, str]:
    """sha256 by path: of the import, of the mirror's manifest, or of the hub's cache; empty when nobody wrote any."""
    imported, pulled = find_imported(name), read_pulled(name)
    manifest = imported.manifest if imported is not None else pulled[1] if pulled is not None else None
    if manifest is not None:
        return {file.path: file.sha256 for file in manifest.files}
    return list_recorded_sums(root)


def check_file(key: str, file: Path | None, sha256: str | None) -> FileVerdict:
    """One file against its recorded sum; headers and JSON are looked at first, for they say more."""
    if file is None:
        return FileVerdict(key, "missing", "it was there when the model was recorded")
    try:
        if file.suffix == ".safetensors":
            read_header(file)
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        found = _hash_now(file)
    except ModelError as error:
        return FileVerdict(key, "damaged", error.got)
    except (ValueError, OSError) as error:
        return FileVerdict(key, "damaged", " ".join(str(error).split()))
    if sha256 is None:
        return FileVerdict(key, "unrecorded")
    return FileVerdict(key, "ok") if found == sha256 else FileVerdict(key, "damaged", f"sha256 {found}, not {sha256}")


def _hash_now(file: Path) -> str:
    """Read anew: what is remembered would not see a disk that forgets."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _find_problems(name: str, path: Path) -> list[str]:
    """Structure, then weights against configs."""
    try:
        find_checkpoint(name)
    except ModelError as error:
        return [error.got]
    if path.is_file() or "_class_name" not in read_json(path / "model_index.json"):
        return []
    from dgate_core.models.families.structure import find_misfits

    return find_misfits(path)
