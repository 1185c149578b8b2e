"""What a power cut may have torn: the records and pictures of an unfinished shard on a local disk.

They are written without waiting for the disk, which only a shard's commit does. What S3 has acknowledged stays.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tarfile

import pyarrow as pa

from dgate_core.errors import ObjectNotFoundError
from dgate_core.runs.store import RunStore, bytes_to_table

logger = logging.getLogger(__name__)


def keep_whole_parts(store: RunStore, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The parts whose pictures are all there, byte for byte; the others are deleted, and their rows made again."""
    if not parts or store.storage.local_path(parts[0]) is None:
        return parts
    torn = [key for key in parts if not is_whole(store, key)]
    for key in torn:
        logger.warning("%s or a picture of it is damaged: its rows are made again", store.storage.uri_of(key))
    store.storage.delete_many(torn)
    return tuple(key for key in parts if key not in torn)


def is_whole(store: RunStore, part: str) -> bool:
    """Whether a part can be read and every file that it names has its hash."""
    try:
        rows = bytes_to_table(store.storage.read_bytes(part)).select(["path", "sha256"]).to_pylist()
        files = [(*row["path"].partition("#")[::2], row["sha256"]) for row in rows if row["path"]]
        packed = {
            key: _hash_members(store.storage.read_bytes(key)) for key in {key for key, member, _ in files if member}
        }
        return all(
            (packed[key].get(member) if member else hashlib.sha256(store.storage.read_bytes(key)).hexdigest()) == sha256
            for key, member, sha256 in files
        )
    except (pa.ArrowException, KeyError, tarfile.TarError, ObjectNotFoundError):
        return False


def _hash_members(data: bytes) -> dict[str, str]:
    """Name to sha256 of every file in a tar."""
    hashes = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            if stream is not None:
                hashes[member.name] = hashlib.sha256(stream.read()).hexdigest()
    return hashes
