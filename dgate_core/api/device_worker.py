"""The thread of one device: takes batches, leases models, hands pictures on to be encoded."""

from __future__ import annotations

import hashlib
import logging
import queue
import secrets
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dgate_core.api.contract import BatchRecord, Inspection, PictureInspector, PictureRecord, Telemetry
from dgate_core.api.request_rows import identify_row
from dgate_core.api.step_watch import watch_steps
from dgate_core.api.waiting_room import Made, Ticket, WaitingRoom, WorkKey
from dgate_core.engine.describe import RowDescriber
from dgate_core.engine.embeddings import EmbeddingCache
from dgate_core.engine.generate import Batch, Generator
from dgate_core.engine.lane import measure_memory_share
from dgate_core.engine.provenance import EDIT_RUN, encode_picture
from dgate_core.engine.start_picture import describe_start
from dgate_core.errors import DgateError, RowError
from dgate_core.manifest.identity import ROW_ID_BYTES
from dgate_core.runs.spec import RunSpec

if TYPE_CHECKING:
    from dgate_core.models.families.contract import StartPicture
    from dgate_core.models.pool import ModelPool

logger = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 2
PROMPTS_KEPT = 512
"""Distinct prompts after which a model's embeddings are forgotten."""
SIZES_KEPT = 1024
RUN = "on-demand"
"""In the provenance, where a bulk run has its fingerprint."""


class DeviceWorker:
    """One device at work.

    Args:
        device: `cpu`, `cuda` or `mps`, with `number` for one of several GPUs.
        pool: Its models.
        spec: Determinism, precision.
        telemetry: Told of batches and pictures.
        inspector: Sees every picture; None lets all pass.
    """

    def __init__(
        self,
        device: tuple[str, int],
        pool: ModelPool[Generator],
        spec: RunSpec,
        telemetry: Telemetry,
        inspector: PictureInspector | None,
    ) -> None:
        self.device, self.number, self.pool, self.spec = device[0], device[1], pool, spec
        self.telemetry, self.inspector = telemetry, inspector
        self.batch_sizes: OrderedDict[WorkKey, int] = OrderedDict()
        """The largest batch of the keys that were seen, as far as it is known."""
        self._arriving = ThreadPoolExecutor(1, thread_name_prefix="arrive")
        self._flights = threading.Semaphore(BATCHES_IN_FLIGHT)
        self._lessons: queue.SimpleQueue[tuple[WorkKey, int, float]] = queue.SimpleQueue()
        self._prompts_seen = 0

    def work(self, room: WaitingRoom, encoders: Executor) -> None:
        """Takes batches until the room is closed and empty.

        Raises:
            Exception: the device is lost; the tickets in hand have been told.
        """
        self._bind()
        while (tickets := room.take()) is not None:
            mine = [ticket for ticket in tickets if ticket.future.set_running_or_notify_cancel()]
            if not mine:
                continue
            try:
                self._make(mine, room, encoders)
            except Exception as error:
                _fail(mine, error)
                if not isinstance(error, RowError | ModelTrouble):
                    raise
        self._arriving.shutdown(wait=True)

    def _bind(self) -> None:
        """`cuda` means this worker's GPU in its thread."""
        if self.device == "cuda":
            import torch

            torch.cuda.set_device(self.number)

    def _make(self, tickets: Sequence[Ticket], room: WaitingRoom, encoders: Executor) -> None:
        key, started = tickets[0].key, time.monotonic()
        with ExitStack() as lease:
            try:
                generator = lease.enter_context(self.pool.use(key.batch.model))
            except Exception as error:
                raise ModelTrouble(error) from error
            self._learn(generator, key)
            self._limit_embeddings(generator, len(tickets))
            left = iter(tickets)
            with watch_steps(generator.model, key, tickets):
                for batch in generator.generate([ticket.row for ticket in tickets], key.batch):
                    self._send(batch, [next(left) for _ in batch.rows], generator, encoders)
            self._note_size(key, generator.find_sizer(key.batch).size)
        room.note_pace(key, len(tickets), time.monotonic() - started)

    def _send(self, batch: Batch, tickets: Sequence[Ticket], generator: Generator, encoders: Executor) -> None:
        self._flights.acquire()
        facts = generator.model.checkpoint
        planned = {"weights_hash": facts.weights_hash, "revision": facts.spec.revision}
        self._arriving.submit(self._arrive, batch, tickets, planned, encoders)

    def _arrive(self, batch: Batch, tickets: Sequence[Ticket], model: Mapping[str, Any], encoders: Executor) -> None:
        """Waits for the pixels; encoding is for other threads."""
        batch_id = secrets.token_hex(8)
        for ticket in tickets:
            ticket.batch_id = batch_id
        try:
            if batch.pictures is None:
                assert batch.error is not None
                _fail(tickets, batch.error)
                self._tell(batch, tickets, {}, batch.error.row_code)
                return
            batch.pictures.wait()
            stages = batch.pictures.stages.read_seconds()
            seconds = sum(stages.values())
            self._lessons.put((tickets[0].key, len(tickets), seconds))
            self._tell(batch, tickets, {"prompts": batch.prompt_seconds, **stages}, "")
            for index, ticket in enumerate(tickets):
                encoders.submit(self._finish, batch, index, ticket, model)
        except Exception as error:
            logger.exception("a batch was lost on its way from the device")
            _fail(tickets, error)
        finally:
            self._flights.release()

    def _finish(self, batch: Batch, index: int, ticket: Ticket, model: Mapping[str, Any]) -> None:
        try:
            ticket.future.set_result(self._encode(batch, index, ticket, model))
        except Exception as error:
            if not isinstance(error, RowError):
                logger.exception("a picture could not be finished")
            ticket.future.set_exception(error)

    def _encode(self, batch: Batch, index: int, ticket: Ticket, model: Mapping[str, Any]) -> Made:
        assert batch.pictures is not None
        if not bool(batch.pictures.finite[index]):
            raise RowError("nan_picture", "the model gave NaN or infinity", "finite pixels", "try precision=float32")
        started = time.perf_counter()
        waited = max(0.0, time.monotonic() - ticket.since - self._count_seconds(batch))
        row = {**ticket.row, "row_id": identify_row(ticket.row, model["weights_hash"])}
        start = row.pop("start", None)
        if start is not None:
            row["row_id"] = identify_edit(row["row_id"], start)
        pixels = batch.pictures.pixels[index].numpy()
        inspection = Inspection(pixels, None) if self.inspector is None else self.inspector.inspect(pixels)
        data = None if inspection.pixels is None else self._encode_pixels(inspection.pixels, ticket, row, model, start)
        made = Made(
            data,
            row,
            (*(row.get("warnings") or ()), *(batch.warnings[index] if batch.warnings else ())),
            inspection.verdict,
            batch.batch_size,
            queue_seconds=waited,
            device_seconds=self._count_seconds(batch),
        )
        encoding = time.perf_counter() - started
        self.telemetry.on_picture(
            PictureRecord(
                ticket.options.request_id,
                row["model"],
                made.queue_seconds,
                encoding,
                len(data or b""),
                ticket.batch_id,
                row["row_id"],
            )
        )
        return made

    def _encode_pixels(
        self, pixels: Any, ticket: Ticket, row: Mapping[str, Any], model: Mapping[str, Any], start: StartPicture | None
    ) -> bytes:
        image = ticket.options.image
        run = {"models": {row["model"]: model}, "fingerprint": RUN if ticket.key.strength is None else EDIT_RUN}
        provenance = RowDescriber(run, replace(self.spec, image=image), row["model"])(row)
        try:
            return encode_picture(
                pixels, image, replace(provenance, start=None if start is None else describe_start(start))
            )
        except (OSError, ValueError, struct.error) as error:
            raise RowError(
                "encode_failed", f"{image.format} cannot hold this picture: {error}", "", "try png"
            ) from error

    def _learn(self, generator: Generator, key: WorkKey) -> None:
        """What finished batches say about this key's batch size; other keys' lessons come again."""
        while not self._lessons.empty():
            lesson_key, rows, seconds = self._lessons.get()
            if lesson_key == key and seconds > 0:
                generator.find_sizer(key.batch).record(rows, seconds, measure_memory_share(self.device))

    def _note_size(self, key: WorkKey, size: int) -> None:
        self.batch_sizes[key] = size
        self.batch_sizes.move_to_end(key)
        while len(self.batch_sizes) > SIZES_KEPT:
            self.batch_sizes.popitem(last=False)

    def _limit_embeddings(self, generator: Generator, rows: int) -> None:
        """A server meets new prompts without end."""
        self._prompts_seen += rows
        if self._prompts_seen > PROMPTS_KEPT:
            self._prompts_seen = rows
            generator.embeddings = EmbeddingCache(generator.model, one_by_one=generator.is_strict)

    def _tell(self, batch: Batch, tickets: Sequence[Ticket], stages: Mapping[str, float], error_code: str) -> None:
        record = BatchRecord(
            batch.rows[0]["model"],
            f"{self.device}:{self.number}",
            len(batch.rows),
            stages,
            batch.attempts,
            error_code,
            tickets[0].batch_id,
            tuple(ticket.options.request_id for ticket in tickets),
        )
        self.telemetry.on_batch(record)

    @staticmethod
    def _count_seconds(batch: Batch) -> float:
        assert batch.pictures is not None
        return batch.prompt_seconds + sum(batch.pictures.stages.read_seconds().values())


class ModelTrouble(Exception):  # noqa: N818 - carries an error, is none by itself
    """A model could not be leased; the next batch may fare better."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def identify_edit(row_id: str, start: StartPicture) -> str:
    """The row_id of a picture made from a picture: its row's, the start and the strength."""
    state = hashlib.blake2b(f"{row_id}\n{start.strength!r}\n".encode(), digest_size=ROW_ID_BYTES)
    state.update(start.pixels.numpy().tobytes())
    return state.hexdigest()


def _fail(tickets: Sequence[Ticket], error: Exception) -> None:
    cause = error.cause if isinstance(error, ModelTrouble) else error
    if not isinstance(cause, DgateError):
        logger.error("a batch of %s failed: %s: %s", tickets[0].key.batch.model, type(cause).__name__, cause)
    for ticket in tickets:
        if not ticket.future.done():
            ticket.future.set_exception(cause)
