"""Files that clients upload and that batches write: content and record under a name of chance, in any storage."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dgate_core.api.errors import ApiError
from dgate_core.storage import Storage

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The record of a file."""

    id: str
    bytes: int
    created_at: float
    """POSIX seconds."""
    filename: str
    """As the client called it; for showing only."""
    purpose: str
    owner: str
    """Client that may see it."""

    def to_object(self) -> dict[str, Any]:
        """As OpenAI's API shows it."""
        shown = asdict(self)
        del shown["owner"]
        return {**shown, "object": "file", "created_at": int(self.created_at), "status": "processed"}


class FileStore:
    """Files of all clients.

    Args:
        storage: Where they lie: FILE_ID.jsonl is the content, FILE_ID.json the record, written last.
        limit_bytes: Largest upload.
    """

    def __init__(self, storage: Storage, limit_bytes: int) -> None:
        self.storage, self.limit_bytes = storage, limit_bytes

    def add(self, path: Path, filename: str, purpose: str, owner: str) -> StoredFile:
        """Keeps a local file; it is there for good when this returns."""
        found = StoredFile(
            f"file-{secrets.token_hex(16)}",
            path.stat().st_size,
            time.time(),
            clean_name(filename),
            purpose,
            owner,
        )
        self.storage.upload_file(path, f"{found.id}.jsonl")
        self.storage.write_bytes(f"{found.id}.json", json.dumps(asdict(found)).encode())
        return found

    def find(self, file_id: str, owner: str) -> StoredFile:
        """Raises ApiError 404 for a file that is not there or belongs to somebody else."""
        if FILE_ID.fullmatch(file_id) and self.storage.exists(f"{file_id}.json"):
            found = StoredFile(**json.loads(self.storage.read_bytes(f"{file_id}.json")))
            if found.owner == owner:
                return found
        raise ApiError(404, f"no such file: {file_id[:64]!r}", "file_not_found", "file_id")

    def open(self, file_id: str) -> BinaryIO:
        """The content of a file that was found."""
        return self.storage.open_read(f"{file_id}.jsonl")

    def delete(self, file_id: str, owner: str) -> None:
        """Raises ApiError 404; the record goes first, so that no file is seen without its content."""
        self.find(file_id, owner)
        self.storage.delete(f"{file_id}.json")
        self.storage.delete(f"{file_id}.jsonl")

    def list_all(self, owner: str, purpose: str | None = None) -> list[StoredFile]:
        """A client's files, the newest first."""
        keys = [item.key for item in self.storage.list_objects("file-") if item.key.endswith(".json")]
        found = [StoredFile(**json.loads(self.storage.read_bytes(key))) for key in keys]
        mine = [each for each in found if each.owner == owner and purpose in {None, each.purpose}]
        return sorted(mine, key=lambda each: (each.created_at, each.id), reverse=True)


def cut_page(objects: Sequence[Mapping[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """A page of a list as OpenAI's clients turn them; an unknown `after` gives an empty one."""
    ids = [each["id"] for each in objects]
    start = 0 if after is None else (ids.index(after) + 1 if after in ids else len(ids))
    page = list(objects[start : start + limit])
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(ids),
    }


def clean_name(name: str) -> str:
    """The last part of a name, without what is not printable."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(each for each in last if each.isprintable())[:LONGEST_NAME] or "file"
