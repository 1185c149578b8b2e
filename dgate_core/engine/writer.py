"""Encoding, hashing and writing beside the denoising loop, with bounded queues."""

from __future__ import annotations

import hashlib
import queue
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa

from dgate_core.engine.generate import Batch, PlanRow
from dgate_core.engine.observer import MadePicture, PictureObserver
from dgate_core.engine.provenance import SUFFIXES, Provenance, encode_picture
from dgate_core.engine.sinks import LooseFiles, PackedFiles, PictureFile, Sink
from dgate_core.errors import RowError
from dgate_core.runs import layout
from dgate_core.runs.record import ROWS_SCHEMA
from dgate_core.runs.spec import RunSpec
from dgate_core.runs.store import RunStore
from dgate_core.safety.guard import SafetyGuard, Verdict, WithheldError

BATCHES_IN_FLIGHT = 3
"""Batches between the device and storage; the denoising loop waits when there are more."""
WRITER_THREADS = 8
"""Files encoded and sent side by side."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a writer writes."""

    store: RunStore
    shard: int
    token: str
    """Of the claim."""
    lane: str
    backend: str


@dataclass(frozen=True, slots=True)
class WrittenBatch:
    """What the loop learns of a batch once its record is in storage."""

    batch_size: int
    rows: int
    failed: int
    seconds: float
    """Of the device: denoise, decode and copy."""


class BatchWriter:
    """Writes one shard's batches; `close` returns only when every record is in storage.

    Args:
        target: The shard, and who writes it.
        spec: The image's format and container.
        describe: A plan row's provenance.
        observer: Sees every picture once its record is in storage.
        guard: Looks at every picture before it is encoded.
    """

    def __init__(
        self,
        target: Target,
        spec: RunSpec,
        describe: Callable[[PlanRow], Provenance],
        observer: PictureObserver | None = None,
        guard: SafetyGuard | None = None,
    ) -> None:
        self.target, self.spec, self.describe, self.observer, self.guard = target, spec, describe, observer, guard
        self.stages: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._files = ThreadPoolExecutor(WRITER_THREADS, thread_name_prefix="encode")
        self._batches = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._room = threading.Semaphore(BATCHES_IN_FLIGHT)
        self._written: queue.SimpleQueue[WrittenBatch] = queue.SimpleQueue()
        self._pending: list[Future[None]] = []
        self._count = 0
        self.sink = self._make_sink()

    def _make_sink(self) -> Sink:
        storage, shard = self.target.store.storage, self.target.shard
        if self.spec.image.container == "files":
            return LooseFiles(storage, shard, self._files)
        return PackedFiles(storage, shard, self.target.token, self.spec.image.container)

    def submit(self, batch: Batch) -> None:
        """Takes a batch; waits while too many are on their way.

        Raises:
            StorageError: an earlier batch could not be written.
        """
        started = time.perf_counter()
        self._room.acquire()
        self.stages["wait_for_writer"] += time.perf_counter() - started
        self._raise_failures()
        self._pending.append(self._batches.submit(self._write, batch, self._count))
        self._count += 1

    def take_written(self) -> list[WrittenBatch]:
        """Batches written since the last call."""
        taken = []
        while not self._written.empty():
            taken.append(self._written.get())
        return taken

    def close(self) -> None:
        """Waits for all batches; raises what went wrong."""
        self._batches.shutdown(wait=True)
        self._files.shutdown(wait=True)
        self._raise_failures()

    def __enter__(self) -> BatchWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._batches.shutdown(wait=True, cancel_futures=True)
            self._files.shutdown(wait=True)

    def _raise_failures(self) -> None:
        for future in [future for future in self._pending if future.done()]:
            self._pending.remove(future)
            future.result()

    def _write(self, batch: Batch, number: int) -> None:
        try:
            files = self._encode(batch)
            with self._timed("write"):
                paths = iter(self.sink.put(number, [file for file in files if isinstance(file, PictureFile)]))
                records = [self._make_record(batch, index, file, paths) for index, file in enumerate(files)]
                table = pa.Table.from_pylist(records, ROWS_SCHEMA)
                self.target.store.write_part(self.target.shard, self.target.token, number, table)
            self._show(batch, files)
            failed = sum(record["status"] == "error" for record in records)
            self._written.put(WrittenBatch(batch.batch_size, len(records), failed, self._device_seconds(batch)))
        finally:
            self._room.release()

    def _encode(self, batch: Batch) -> list[PictureFile | RowError]:
        """A file for each row, or why there is none."""
        if batch.pictures is None:
            assert batch.error is not None
            return [batch.error] * len(batch.rows)
        self._add("prompts", batch.prompt_seconds)
        self._add("warm_up", batch.warm_up_seconds)
        with self._timed("wait_for_device"):
            batch.pictures.wait()
        for stage, seconds in batch.pictures.stages.read_seconds().items():
            self._add(stage, seconds)
        with self._timed("encode"):
            return list(self._files.map(lambda index: self._encode_row(batch, index), range(len(batch.rows))))

    def _show(self, batch: Batch, files: Sequence[PictureFile | RowError]) -> None:
        if self.observer is not None and batch.pictures is not None:
            pixels = batch.pictures.pixels.numpy()
            # A picture that was replaced is not what the file holds, and no evaluation may count it.
            shown = [
                (index, file)
                for index, file in enumerate(files)
                if isinstance(file, PictureFile) and not (file.verdict and file.verdict.is_flagged)
            ]
            self.observer.see([MadePicture(pixels[index], file) for index, file in shown])

    def _encode_row(self, batch: Batch, index: int) -> PictureFile | RowError:
        assert batch.pictures is not None
        if not bool(batch.pictures.finite[index]):
            return RowError("nan_picture", "the model gave NaN or infinity", "finite pixels", "try precision=float32")
        row, pixels, verdict = batch.rows[index], batch.pictures.pixels[index].numpy(), None
        try:
            if self.guard is not None:
                looked = self.guard.look(pixels)
                verdict = looked.verdict
                if looked.pixels is None:
                    return self._withhold(row, pixels, verdict)
                pixels = looked.pixels
            return self._encode_pixels(row, pixels, verdict)
        except RowError as error:
            return error

    def _encode_pixels(self, row: PlanRow, pixels: Any, verdict: Verdict | None) -> PictureFile:
        try:
            data = encode_picture(pixels, self.spec.image, self.describe(row))
        except (OSError, ValueError, struct.error) as error:
            why = f"{self.spec.image.format} cannot hold this row: {error}"
            raise RowError("encode_failed", why, "", "try png") from error
        suffix, sha256 = SUFFIXES[self.spec.image.format], hashlib.sha256(data).hexdigest()
        return PictureFile(row["ordinal"], sha256, suffix, data, row["prompt"], verdict)

    def _withhold(self, row: PlanRow, pixels: Any, verdict: Verdict) -> WithheldError:
        """Says why a row has no picture; one in quarantine lies outside of the run's pictures."""
        if verdict.action == "quarantine":
            file = self._encode_pixels(row, pixels, verdict)
            self.target.store.storage.write_bytes(layout.name_quarantined(row["row_id"], file.suffix), file.data)
        return WithheldError(verdict)

    def _make_record(
        self, batch: Batch, index: int, file: PictureFile | RowError, paths: Iterator[str]
    ) -> dict[str, Any]:
        """A row of ROWS_SCHEMA; names that the plan does not know stay null."""
        row = batch.rows[index]
        seconds = self._device_seconds(batch) / len(batch.rows) if batch.pictures is not None else None
        return {
            **{name: row.get(name) for name in ROWS_SCHEMA.names},
            **(_describe_error(file) if isinstance(file, RowError) else _describe_file(file, next(paths))),
            "seconds": seconds,
            "batch_size": batch.batch_size,
            "attempts": batch.attempts,
            "lane": self.target.lane,
            "backend": batch.backend or self.target.backend,
            "warnings": [*(row.get("warnings") or ()), *(batch.warnings[index] if batch.warnings else ())],
        }

    @staticmethod
    def _device_seconds(batch: Batch) -> float:
        return sum(batch.pictures.stages.read_seconds().values()) if batch.pictures is not None else 0.0

    def _timed(self, stage: str) -> _Timer:
        return _Timer(lambda seconds: self._add(stage, seconds))

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.stages[stage] += seconds


class _Timer:
    """Hands the seconds of a block to a callback."""

    def __init__(self, add: Callable[[float], None]) -> None:
        self.add = add

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.add(time.perf_counter() - self.started)


def _describe_file(file: PictureFile, path: str) -> dict[str, Any]:
    outcome = {"status": "ok", "error_code": None, "error_message": None, "path": path, "sha256": file.sha256}
    return outcome | _describe_verdict(file.verdict)


def _describe_error(error: RowError) -> dict[str, Any]:
    outcome = {"status": "error", "error_code": error.row_code, "error_message": str(error)}
    verdict = error.verdict if isinstance(error, WithheldError) else None
    return outcome | {"path": None, "sha256": None} | _describe_verdict(verdict)


def _describe_verdict(verdict: Verdict | None) -> dict[str, Any]:
    return {} if verdict is None else verdict.to_columns()
