"""Rows of one batch key become pictures; a row that cannot be made is found and named, and the others are made."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgate_core.engine.batches import BatchSizer
from dgate_core.engine.embeddings import EmbeddingCache
from dgate_core.errors import BackendUnfitError, RowError, StorageError
from dgate_core.manifest.item import BatchKey

if TYPE_CHECKING:
    from dgate_core.models.families.contract import LoadedModel, Pictures
    from dgate_core.runs.spec import RunSpec

logger = logging.getLogger(__name__)

UNREAD_NEGATIVE = "negative_prompt_unread: it has no effect with this model at this guidance_scale"

OUT_OF_MEMORY = "out_of_memory"
_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED", "Failed to allocate memory")
"""Of errors that are no OutOfMemoryError: the CPU's allocator, cuBLAS and cuDNN, Apple's MPS, ONNX Runtime."""

PlanRow = Mapping[str, Any]
"""A row of the plan, see PLAN_SCHEMA."""


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How batches are made; none of it may change what a picture shows beyond rounding."""

    batch_size: int | None = None
    """Rows per batch; None finds the best by itself."""
    first_batch_size: int = 8
    """Where the search begins."""
    largest_batch_size: int = 64
    """Where the search ends."""


@dataclass(slots=True)
class Batch:
    """What became of some rows: pictures (perhaps still on their way from the device), or one error for all."""

    rows: Sequence[PlanRow]
    pictures: Pictures | None
    error: RowError | None
    batch_size: int
    """Samples on the device, padding included."""
    attempts: int
    """1 when the rows were made at the first try."""
    prompt_seconds: float = 0.0
    """Time of encoding prompts that were not known yet."""
    warnings: Sequence[tuple[str, ...]] = ()
    """Per row."""
    backend: str = ""
    """What made them; empty for an error."""
    warm_up_seconds: float = 0.0
    """Time of compiling and building for this size; no row's time holds it."""


@dataclass(frozen=True, slots=True)
class _Work:
    """Rows that are still to be made."""

    rows: Sequence[PlanRow]
    attempts: int


class Generator:
    """Makes the rows of one loaded model.

    Args:
        model: On its device.
        spec: Determinism and the size of strict batches.
        options: Batch sizes.
    """

    def __init__(self, model: LoadedModel, spec: RunSpec, options: GenerateOptions) -> None:
        self.model, self.spec, self.options = model, spec, options
        self.is_strict = spec.determinism == "strict"
        self.embeddings = EmbeddingCache(model, one_by_one=self.is_strict)
        self._sizers: dict[BatchKey, BatchSizer] = {}
        self._memory_notes = tuple(name_memory_note(step) for step in model.memory.steps)

    def find_sizer(self, key: BatchKey) -> BatchSizer:
        """What is known of this key's batch size."""
        if key not in self._sizers:
            fixed = self.spec.strict_batch_size if self.is_strict else self.options.batch_size
            limit = fixed or self.options.largest_batch_size
            self._sizers[key] = BatchSizer(self.options.first_batch_size, limit, is_fixed=fixed is not None)
        return self._sizers[key]

    def generate(self, rows: Sequence[PlanRow], key: BatchKey) -> Iterator[Batch]:
        """Batches in the order of the rows, each yielded as soon as it is on its way.

        Raises:
            RuntimeError: the device is lost (a CUDA error), so that this process cannot go on.
        """
        waiting = [_Work(rows, attempts=1)] if rows else []
        while waiting:
            work = waiting.pop()
            size = self.find_sizer(key).size
            taken = work.rows[:size]
            if len(work.rows) > size:
                waiting.append(_Work(work.rows[size:], work.attempts))
            made = self._try_forward(taken, key, work.attempts)
            if isinstance(made, Batch):
                yield made
            elif parts := self._split(taken, key, made):
                waiting.extend(_Work(part, work.attempts + 1) for part in reversed(parts))
            else:
                yield Batch(taken, None, made, len(taken), work.attempts)

    def _try_forward(self, rows: Sequence[PlanRow], key: BatchKey, attempts: int) -> Batch | RowError:
        """The batch, or why it failed. The error itself is not kept: its traceback would hold the batch's tensors."""
        with use_one_thread() if self.is_strict else nullcontext():
            try:
                return self._forward(rows, key, attempts)
            except Exception as error:
                return describe_failure(error)

    def _split(self, rows: Sequence[PlanRow], key: BatchKey, failure: RowError) -> list[Sequence[PlanRow]]:
        """What to try next: halves, or the same rows where memory was found; empty when nothing is left to try."""
        if failure.row_code == BackendUnfitError.code:
            return []  # smaller batches do not change what a backend cannot do
        if failure.row_code != OUT_OF_MEMORY:
            middle = len(rows) // 2
            return [rows[:middle], rows[middle:]] if middle else []
        logger.warning("out of memory with %d rows of %s: %s", len(rows), key.model, failure.got)
        free_cached_memory()
        if self.is_strict:
            return []  # the padded batch and its decoder are what strict promises: neither can give way
        return [rows] if self.find_sizer(key).shrink(len(rows)) or self._save_memory() else []

    def _save_memory(self) -> bool:
        step = self.model.save_memory()
        if step is not None:
            logger.warning("memory: %s is on from here", step)
            self._memory_notes += (name_memory_note(step),)
        return step is not None

    def _forward(self, rows: Sequence[PlanRow], key: BatchKey, attempts: int) -> Batch:
        from dgate_core.models.families.contract import BatchRequest

        padded = [*rows, *[rows[0]] * (self._count_samples(len(rows), key) - len(rows))]
        started = time.perf_counter()
        prompts = self.embeddings.find_prompts([row["prompt"] for row in padded])
        negatives = self.embeddings.find_negatives([row["negative_prompt"] or "" for row in padded])
        prompt_seconds = time.perf_counter() - started
        started = time.perf_counter()
        self.model.warm_up(key, len(padded))
        warm_up_seconds = time.perf_counter() - started
        seeds = tuple(row["seed"] for row in padded)
        starts = tuple(row["start"] for row in padded if row.get("start") is not None)
        pictures = self.model.generate(BatchRequest(key, seeds, prompts, negatives, starts))
        unread = () if self.model.reads_negatives(key.guidance_scale) else (UNREAD_NEGATIVE,)
        warnings = [
            (
                *prompt.warnings,
                *(unread if row["negative_prompt"] else ()),
                *self._memory_notes,
                *self.model.serving.warnings,
            )
            for row, prompt in zip(rows, prompts, strict=False)
        ]
        backend = self.model.serving.label
        return Batch(rows, pictures, None, len(padded), attempts, prompt_seconds, warnings, backend, warm_up_seconds)

    def _count_samples(self, rows: int, key: BatchKey) -> int:
        """Rows of the batch that goes to the device, padding included."""
        if self.is_strict:
            return self.spec.strict_batch_size
        if self.model.serving.pads_batches:
            return min(1 << (rows - 1).bit_length(), max(rows, self.find_sizer(key).size))
        return rows


def name_memory_note(step: str) -> str:
    """The warning of rows that were made with a step of a memory plan."""
    return f"memory: made with {step}"


def describe_failure(error: Exception) -> RowError:
    """The row error that a failed batch would leave.

    Raises:
        Exception: the error itself, when the device is lost, or there is no room for an engine.
    """
    import torch

    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, RowError):
        return error
    if isinstance(error, BackendUnfitError):
        return RowError(error.code, error.got, error.expected, error.next_step)
    if isinstance(error, StorageError):
        raise error  # no room for an engine
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in _MEMORY_SIGNS):
        return RowError(OUT_OF_MEMORY, line, "", "give a smaller size, batch_size or strict_batch_size")
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in text:
        raise error
    return RowError("generation_failed", line)


def free_cached_memory() -> None:
    """Gives the allocator's cached blocks back, so that a smaller batch finds room in one piece."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def use_one_thread() -> Iterator[None]:
    """CPU kernels split their sums by the number of threads, so only one thread gives the same bytes everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
