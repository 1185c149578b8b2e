"""Pictures on demand: requests' rows wait in one room, and each device makes batches of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dgate_core.api.contract import NoTelemetry, PictureInspector, Telemetry
from dgate_core.api.device_worker import DeviceWorker
from dgate_core.api.errors import ApiError
from dgate_core.api.settings import ApiSettings
from dgate_core.api.waiting_room import (
    Made,
    RoomClosedError,
    RoomFullError,
    Ticket,
    TicketOptions,
    WaitingRoom,
    WorkKey,
)
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.engine.lane import choose_device, load_model
from dgate_core.engine.warm_models import open_pool
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.devices import count_gpus
from dgate_core.runs.spec import RunSpec

logger = logging.getLogger(__name__)

ENCODERS = 4
"""Threads that turn pixels into files."""


class ImageEngine:
    """Takes rows, gives futures of pictures.

    Args:
        settings: Devices, queue, batch sizes.
        spec: Determinism and precision.
        telemetry: Told of batches, pictures and the queue.
        inspector: Sees every picture before it is encoded.
    """

    def __init__(
        self,
        settings: ApiSettings,
        spec: RunSpec,
        telemetry: Telemetry | None = None,
        inspector: PictureInspector | None = None,
    ) -> None:
        self.settings, self.spec = settings, spec
        self.telemetry = telemetry or NoTelemetry()
        self._generate = GenerateOptions(batch_size=settings.batch_size)
        self.workers = [self._make_worker(number, inspector) for number in self._count_devices()]
        self.room = WaitingRoom(
            settings.queue_limit,
            settings.gather_ms / 1000,
            self._measure_batch,
            lambda waiting: self.telemetry.on_queue(waiting, settings.queue_limit),
        )
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._settled = threading.Condition()
        self.failure: Exception | None = None
        """Why the device is lost; None while all is well."""

    @property
    def is_alive(self) -> bool:
        """Whether pictures can be made at all."""
        return self.failure is None and all(thread.is_alive() for thread in self._threads)

    @property
    def unfinished(self) -> int:
        """Pictures that were taken and are not made yet."""
        return self._unfinished

    def start(self) -> None:
        """Starts a thread per device."""
        for worker in self.workers:
            name = f"device-{worker.device}-{worker.number}"
            self._threads.append(threading.Thread(target=self._run, args=(worker,), name=name, daemon=True))
            self._threads[-1].start()

    def submit(
        self, rows: Sequence[Mapping[str, Any]], key: WorkKey, options: TicketOptions
    ) -> tuple[list[Ticket], list[Future[Made]]]:
        """Queues a request's rows, all or none.

        Args:
            rows: Of the plan, of one key.
            key: Theirs; with a strength, every row has its `start`, a StartPicture.
            options: Client, deadline, format, listener.

        Returns:
            The tickets, to cancel, and their futures; these raise RowError, ModelError, or ApiError.

        Raises:
            ApiError: 429 when the queue is full, 503 when the server is going or its device is lost.
        """
        self.check_place(len(rows))
        tickets = [Ticket(row, key, number, options) for number, row in enumerate(rows)]
        try:
            self.room.add(tickets)
        except RoomFullError as error:
            raise self._describe_crowd() from error
        except RoomClosedError as error:
            raise describe_closing() from error
        with self._settled:
            self._unfinished += len(tickets)
        for ticket in tickets:
            ticket.future.add_done_callback(self._settle)
        return tickets, [ticket.future for ticket in tickets]

    def check_place(self, pictures: int) -> None:
        """Raises what `submit` would raise now for so many pictures."""
        limit = self.settings.queue_limit
        if self.failure is not None:
            raise _describe_loss(self.failure)
        if pictures > limit:
            raise ApiError(400, f"n: got {pictures}, the queue holds {limit}", "too_many_images", "n")
        if len(self.room) + pictures > limit:
            raise self._describe_crowd()

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Frees the places of tickets that nobody waits for any more; what is on the device is finished."""
        self.room.remove(tickets)
        for ticket in tickets:
            ticket.future.cancel()

    def warm(self, model: str) -> None:
        """Loads a model on every device, beside those that serve, and follows its name where it has moved."""
        for future in [worker.pool.refresh(model) for worker in self.workers]:
            future.result()

    def close(self, seconds: float) -> bool:
        """Takes nothing more, and waits until everything that was taken is finished; False when time ran out."""
        self.room.close()
        deadline = time.monotonic() + seconds
        with self._settled:
            is_done = self._settled.wait_for(lambda: not self._unfinished, max(0.0, deadline - time.monotonic()))
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._encoders.shutdown(wait=is_done)
        return is_done

    def _run(self, worker: DeviceWorker) -> None:
        try:
            worker.work(self.room, self._encoders)
        except Exception as error:
            logger.exception("the device %s is lost; nothing more can be made by this process", worker.device)
            self.failure = error
            self.room.close()
            for ticket in self.room.empty():
                if ticket.future.set_running_or_notify_cancel():
                    ticket.future.set_exception(_describe_loss(error))

    def _describe_crowd(self) -> ApiError:
        wait = self.room.estimate_wait(len(self.workers))
        message = f"{len(self.room)} pictures are waiting and there is room for {self.settings.queue_limit}"
        return ApiError(429, f"{message}; try again in {wait:.0f} s", "queue_full", retry_after=wait)

    def _settle(self, _: Future[Made]) -> None:
        with self._settled:
            self._unfinished -= 1
            self._settled.notify_all()

    def _measure_batch(self, key: WorkKey) -> int:
        """What the workers have learned of a key."""
        if self.spec.determinism == "strict":
            return self.spec.strict_batch_size
        known = [worker.batch_sizes[key] for worker in self.workers if key in worker.batch_sizes]
        return max(known, default=self._generate.batch_size or self._generate.first_batch_size)

    def _count_devices(self) -> range:
        device = choose_device(self.settings.device)
        if device != "cuda":
            return range(self.settings.devices or 1)
        gpus = count_gpus()
        return range(max(1, min(gpus, self.settings.devices or gpus)))

    def _make_worker(self, number: int, inspector: PictureInspector | None) -> DeviceWorker:
        device = choose_device(self.settings.device)

        def load(model: str) -> Generator:
            planned = {model: {"weights_hash": find_checkpoint(model).weights_hash}}
            if device == "cuda":
                import torch

                torch.cuda.set_device(number)  # loads also come from threads of the pool
            return Generator(load_model(model, device, self.spec, planned), self.spec, self._generate)

        pool = open_pool(load, device, self.spec.precision, self.settings.model_bytes)
        return DeviceWorker((device, number), pool, self.spec, self.telemetry, inspector)


def describe_closing() -> ApiError:
    """The server has been told to end."""
    return ApiError(503, "the server is shutting down; send the request again elsewhere", "shutting_down", None, 1.0)


def _describe_loss(error: Exception) -> ApiError:
    return ApiError(
        503, f"the device is lost ({type(error).__name__}); the server must be started again", "device_lost"
    )
