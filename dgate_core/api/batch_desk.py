"""Takes batches, carries them out one after the other, and goes on with what a stopped or killed server left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dgate_core.api.batch_input import check_lines, describe_problem, write_manifest
from dgate_core.api.batch_output import register_output
from dgate_core.api.batch_runner import BatchEnd, BatchOrder, BatchRunner
from dgate_core.api.batch_store import UNFINISHED, WINDOW_SECONDS, BatchJob, BatchRequest, BatchStore
from dgate_core.api.errors import ApiError, join_lines
from dgate_core.api.file_store import FileStore
from dgate_core.api.served_models import ServedModels
from dgate_core.engine.progress import ProgressReader
from dgate_core.errors import DgateError, StorageError
from dgate_core.manifest.batch_lines import IMAGES_URL
from dgate_core.runs.claims import Claim, identify_holder, take_claim
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
COUNT_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
LOOK_SECONDS = 60.0
"""Between two looks for batches that another server of the folder was given."""
MOST_STARTS = 5
"""Of a batch whose runs keep dying."""
CLAIM_SECONDS = 60.0
"""After which a batch of a server that is lost is another's, who shares the folder; of one on this machine, at once."""


class BatchDesk:
    """The batches of a server.

    Args:
        store: Their records.
        files: Input and output.
        models: Those that a line may name.
        runner: Carries a run out.
        settings: Of every run.
    """

    def __init__(
        self, store: BatchStore, files: FileStore, models: ServedModels, runner: BatchRunner, settings: RunSettings
    ) -> None:
        self.store, self.files, self.models = store, files, models
        self._runner, self._settings = runner, settings
        self._lock = threading.Lock()
        """Of the records: a cancel and the worker may not write over each other."""
        self._wake, self._stop = threading.Event(), threading.Event()
        self._counts: dict[str, Mapping[str, int]] = {}
        self._busy = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the worker, which begins with what is unfinished."""
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Stops the run in hand where it is; the next start goes on with it."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def create(self, request: BatchRequest, owner: str, base_url: str) -> BatchJob:
        """Accepts a batch.

        Raises:
            ApiError: 400 for another endpoint or a file that is not for batches, 404 for no file.
        """
        if request.endpoint != IMAGES_URL:
            message = f"endpoint: got {request.endpoint!r}, expected {IMAGES_URL!r}"
            raise ApiError(400, message, "unsupported_endpoint", "endpoint")
        file = self.files.find(request.input_file_id, owner)
        if file.purpose != "batch":
            message = f"{file.id} was uploaded with purpose {file.purpose!r}, expected 'batch'"
            raise ApiError(400, message, "wrong_purpose", "input_file_id")
        job = self.store.accept(request, owner, base_url)
        self._wake.set()
        return job

    def cancel(self, batch_id: str, owner: str) -> BatchJob:
        """Asks for the end of a batch; what is made until then is kept.

        Raises:
            ApiError: 404 for no batch, 409 for one that has ended.
        """
        with self._lock:
            job = self.store.find(batch_id, owner)
            if job.status not in UNFINISHED:
                raise ApiError(409, f"{job.id} is {job.status} and cannot be cancelled", "batch_ended", "batch_id")
            if job.status != "cancelling":
                job = job.turn("cancelling")
                self.store.write(job)
        self._wake.set()
        return job

    def list_unfinished(self) -> list[BatchJob]:
        """Of all clients, the oldest first."""
        return [job for job in reversed(self.store.list_all()) if job.status in UNFINISHED]

    def describe(self, job: BatchJob) -> dict[str, Any]:
        """With the latest counts."""
        return job.to_object(self._counts.get(job.id) if job.status in UNFINISHED else None)

    @property
    def is_busy(self) -> bool:
        """Whether a batch is in hand, or about to be."""
        return self._busy or self._wake.is_set()

    def _work(self) -> None:
        while True:
            self._wake.clear()
            if self._stop.is_set():  # looked at after the clearing, which may have swallowed the call of close
                return
            try:
                waiting = self.list_unfinished()
                self._busy = bool(waiting) and self._work_on_first(waiting)
            except StorageError as error:
                logger.error("batches wait, for their storage does not answer: %s", join_lines(error))
                self._stop.wait(PATIENCE_SECONDS)
                continue
            if not self._busy:
                # What another server of this folder has in hand becomes ours when that one dies.
                self._wake.wait(PATIENCE_SECONDS if waiting else LOOK_SECONDS)

    def _work_on_first(self, waiting: Sequence[BatchJob]) -> bool:
        """Carries the first batch as far as it goes that no other server has in hand; False when there is none."""
        for job in waiting:
            claim = take_claim(self.store.storage, f"claims/{job.id}", identify_holder("batches"), CLAIM_SECONDS)
            if claim is not None:
                self._busy = True
                with claim:
                    if not self._is_gone(job):  # it may have ended between the list and the claim
                        self._try(self.store.find(job.id, None), claim)
                return True
        return False

    def _try(self, job: BatchJob, claim: Claim) -> None:
        """Carries a batch as far as it goes; what it cannot get over ends it, except that storage may come back."""
        try:
            self._carry_out(job, claim)
        except StorageError:
            raise
        except DgateError as error:
            logger.error("%s: %s", job.id, join_lines(error))
            self._fail(job, [describe_problem(error.code, self.store.hide_places(job, str(error)))])
        except Exception:
            logger.exception("%s could not be carried out", job.id)
            self._fail(job, [describe_problem("internal_error", "the server failed; its log has the details")])

    def _carry_out(self, job: BatchJob, claim: Claim) -> None:
        run = RunStore(open_storage(self.store.locate_run(job.id)))
        if job.status == "validating":
            if errors := self._prepare(job):
                self._fail(job, errors)
                return
            job = self._turn(job, "in_progress")
        if job.status == "cancelling" and not run.exists():
            self._turn(job, "cancelled")
            return
        if job.status in {"in_progress", "cancelling"}:
            end = self._run(job, run, claim)
            if end is None or self._is_gone(job):
                return
            if end.state == "failed":
                if not (end.may_retry and job.starts + 1 < MOST_STARTS):
                    self._fail(job, [describe_problem("run_failed", self.store.hide_places(job, end.message))])
                    return
                logger.warning("%s: %s; it is started again", job.id, end.message)
                self._change(job, starts=job.starts + 1)
                return
        self._conclude(job, run)

    def _run(self, job: BatchJob, run: RunStore, claim: Claim) -> BatchEnd | None:
        """Carries the run on until it ends; None when the server is told to end first, or lost the batch to another."""
        _, manifest = self.store.locate_manifest(job.id)
        order = BatchOrder(manifest, run.uri, self._settings, job.starts)
        handle, counted, progress = self._runner.submit(order), 0.0, None
        while (end := handle.poll()) is None:
            if self._stop.is_set() or not claim.is_valid():
                handle.leave()
                return None
            if self._is_cancelled(job):
                handle.stop()
            if time.monotonic() - counted > COUNT_SECONDS:
                counted, progress = time.monotonic(), progress or _open_progress(run)
                self._counts[job.id] = _count_requests(run, progress)
            time.sleep(POLL_SECONDS)
        return end

    def _conclude(self, job: BatchJob, run: RunStore) -> None:
        """Registers the outputs, then says that the batch has ended."""
        current = self.store.find(job.id, None)
        was_cancelled = current.status == "cancelling" and not self._is_complete(run)
        if current.status not in {"finalizing", "cancelling"}:
            current = self._turn(current, "finalizing")
        output = register_output(run, self.files, self.store, current)
        with self._lock:
            self.store.write(
                current.turn(
                    "cancelled" if was_cancelled else _name_end(current),
                    output_file_id=output.output_file_id,
                    error_file_id=output.error_file_id,
                    counts=output.counts,
                )
            )
        self._counts.pop(job.id, None)

    def _prepare(self, job: BatchJob) -> list[dict[str, Any]]:
        """Writes the run's manifest; returns what is wrong with the file as a whole instead."""
        with self.files.open(job.input_file_id) as stream:
            errors = check_lines(stream, self.models)
            if not errors:
                stream.seek(0)
                key, _ = self.store.locate_manifest(job.id)
                write_manifest(stream, self.models, self.store.storage, key)
        return errors

    def _fail(self, job: BatchJob, errors: list[dict[str, Any]]) -> None:
        self._turn(job, "failed", errors=tuple(errors))

    def _turn(self, job: BatchJob, status: Any, **changes: Any) -> BatchJob:
        """Writes a new state, unless a cancel came first and the new one is not an end."""
        with self._lock:
            current = self.store.find(job.id, None)
            if current.status == "cancelling" and status in UNFINISHED:
                return current
            current = current.turn(status, **changes)
            self.store.write(current)
            return current

    def _change(self, job: BatchJob, starts: int) -> None:
        with self._lock:
            self.store.write(replace(self.store.find(job.id, None), starts=starts))

    def _is_cancelled(self, job: BatchJob) -> bool:
        current = self.store.find(job.id, None)
        return current.status == "cancelling" or time.time() > current.times["created_at"] + WINDOW_SECONDS

    def _is_gone(self, job: BatchJob) -> bool:
        return self.store.find(job.id, None).status not in UNFINISHED

    @staticmethod
    def _is_complete(run: RunStore) -> bool:
        return run.exists() and run.read_run()["state"] in {"completed", "completed_with_errors"}


def _name_end(job: BatchJob) -> Any:
    return "expired" if time.time() > job.times["created_at"] + WINDOW_SECONDS else "completed"


def _open_progress(run: RunStore) -> ProgressReader | None:
    return ProgressReader(run) if run.exists() else None


def _count_requests(run: RunStore, progress: ProgressReader | None) -> dict[str, int]:
    """From images to requests: exact where each asks for one picture, in proportion elsewhere."""
    if progress is None:
        return {"total": 0, "completed": 0, "failed": 0}
    now, counts = progress.read(), run.read_run()["counts"]
    good = counts["rows"] - counts["bad_rows"]
    done = good * now.done // now.total if now.total else good
    failed = good * now.failed // now.total if now.total else 0
    return {"total": counts["rows"], "completed": max(0, done - failed), "failed": counts["bad_rows"] + failed}
