"""The hash of a checkpoint: sha256 over its files, remembered per file so that gigabytes are read once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from dgate_core.errors import ModelError

HASHED_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})


def hash_weights(path: Path) -> str:
    """sha256 (hex) over the names and contents of a checkpoint's files; model cards do not count.

    Args:
        path: A diffusers folder or one file.
    """
    if path.is_file():
        return _hash_file(path)
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file() and item.suffix in HASHED_SUFFIXES):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_hash_file(file)}\n".encode())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    """Small files are read each time; large ones once per (size, modification time)."""
    stat = path.stat()
    if stat.st_size < 1 << 20:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
    note = find_cache_folder() / "hashes" / f"{key}.json"
    if note.exists():
        return str(json.loads(note.read_text())["sha256"])
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    _write_note(note, {"sha256": found, "file": str(path)})
    return found


def _write_note(note: Path, fields: dict[str, str]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as stream:
            json.dump(fields, stream)
        Path(stream.name).replace(note)
    except OSError as error:
        raise ModelError(
            f"the cache folder {note.parent} cannot be written: {error.strerror}",
            "a writable folder",
            "set DGATE_CACHE to one",
        ) from error


def find_cache_folder() -> Path:
    """`DGATE_CACHE`, or `dgate` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DGATE_CACHE") or Path(base) / "dgate")
