"""Batches as they are kept: one record each, written whole, so that a killed server finds them all again."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dgate_core.api.errors import ApiError
from dgate_core.storage import Storage

BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")
WINDOW_SECONDS = 24 * 3600


class BatchRequest(BaseModel):
    """The body of POST /v1/batches."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str = Field(max_length=64, description="Of a file with purpose `batch`.")
    endpoint: str = Field(max_length=100, description="/v1/images/generations.")
    completion_window: Literal["24h"] = Field(description="What is not made by then is left.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Up to 16 texts of yours.")


Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
UNFINISHED = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


@dataclass(frozen=True, slots=True)
class BatchJob:
    """The record of a batch."""

    id: str
    input_file_id: str
    endpoint: str
    metadata: Mapping[str, str]
    owner: str
    """Client that may see it."""
    base_url: str = ""
    """Where its client reached the server, for addresses in the output."""
    status: Status = "validating"
    times: Mapping[str, float] = field(default_factory=dict)
    """POSIX seconds by name: created_at, in_progress_at, …"""
    errors: tuple[Mapping[str, Any], ...] = ()
    """Why it failed as a whole: code, message, param, line."""
    counts: Mapping[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    """Requests."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    starts: int = 0
    """How often its run was started."""

    def turn(self, status: Status, **changes: Any) -> BatchJob:
        """The same batch in another state, with the time."""
        return replace(self, status=status, times={**self.times, f"{status}_at": time.time()}, **changes)

    def to_object(self, counts: Mapping[str, int] | None = None) -> dict[str, Any]:
        """As OpenAI's API shows it.

        Args:
            counts: Newer ones than the record has.
        """
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        times = {f"{name}_at": self.times.get(f"{name}_at") for name in names}
        created = self.times["created_at"]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": list(self.errors)} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(created),
            "expires_at": int(created) + WINDOW_SECONDS,
            **{name: None if at is None else int(at) for name, at in times.items()},
            "request_counts": dict(counts or self.counts),
            "metadata": dict(self.metadata) or None,
        }


class BatchStore:
    """Batches of all clients.

    Args:
        storage: batches/BATCH_ID.json is a record, runs/BATCH_ID the folder of its run.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def accept(self, request: BatchRequest, owner: str, base_url: str) -> BatchJob:
        """A new batch; accepted for good when this returns."""
        name, times = f"batch_{secrets.token_hex(16)}", {"created_at": time.time()}
        asked = (request.input_file_id, request.endpoint, request.metadata or {})
        job = BatchJob(name, *asked, owner, base_url, times=times)
        self.write(job)
        return job

    def write(self, job: BatchJob) -> None:
        """Whole or not at all."""
        self.storage.write_bytes(f"batches/{job.id}.json", json.dumps(asdict(job)).encode())

    def find(self, batch_id: str, owner: str | None) -> BatchJob:
        """Raises ApiError 404 for a batch that is not there or belongs to somebody else (None may see all)."""
        if BATCH_ID.fullmatch(batch_id) and self.storage.exists(f"batches/{batch_id}.json"):
            job = self._read(f"batches/{batch_id}.json")
            if owner in {None, job.owner}:
                return job
        raise ApiError(404, f"no such batch: {batch_id[:64]!r}", "batch_not_found", "batch_id")

    def list_all(self, owner: str | None = None) -> list[BatchJob]:
        """The newest first."""
        jobs = [self._read(item.key) for item in self.storage.list_objects("batches/")]
        mine = [job for job in jobs if owner in {None, job.owner}]
        return sorted(mine, key=lambda job: (job.times["created_at"], job.id), reverse=True)

    def locate_run(self, batch_id: str) -> str:
        """Address of the batch's run."""
        return self.storage.child(f"runs/{batch_id}").uri

    def locate_manifest(self, batch_id: str) -> tuple[str, str]:
        """Key and address of the batch's requests as its run reads them."""
        key = f"manifests/{batch_id}.jsonl"
        return key, self.storage.uri_of(key)

    def hide_places(self, job: BatchJob, message: str) -> str:
        """A message on one line without where the server keeps things, which is nothing for clients."""
        _, manifest = self.locate_manifest(job.id)
        hidden = message.replace(manifest, job.input_file_id).replace(self.locate_run(job.id), job.id)
        return "; ".join(line.strip() for line in hidden.splitlines())

    def _read(self, key: str) -> BatchJob:
        found = json.loads(self.storage.read_bytes(key))
        return BatchJob(**{**found, "errors": tuple(found["errors"])})
