"""The hash of a checkpoint: sha256 over its files, remembered per file so that gigabytes are read once."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

HASHED_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})
SHA256_DIGITS = 64


def hash_weights(path: Path) -> str:
    """sha256 (hex) over the names and contents of a checkpoint's files; model cards do not count.

    Args:
        path: A diffusers folder or one file.
    """
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file() and item.suffix in HASHED_SUFFIXES):
        digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 (hex) of a file; small ones are read each time, large ones once per (size, modification time)."""
    stat = path.stat()
    if stat.st_size < 1 << 20:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
    note = find_cache_folder() / "hashes" / key
    if note.exists() and len(known := note.read_text()) == SHA256_DIGITS:
        return known
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    _write_note(note, found)
    return found


def _write_note(note: Path, text: str) -> None:
    """A cache that cannot be written costs time and nothing else, so that is no error."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as stream:
            stream.write(text)
        Path(stream.name).replace(note)
    except OSError as error:
        logger.warning("%s cannot be written (%s): weights are hashed anew each time", note.parent, error.strerror)


def find_cache_folder() -> Path:
    """`DGATE_CACHE`, or `dgate` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DGATE_CACHE") or Path(base) / "dgate")
