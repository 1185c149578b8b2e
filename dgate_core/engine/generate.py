"""Rows of one batch key become pictures; a row that cannot be made is found and named, and the others are made."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dgate_core.engine.batches import BatchSizer
from dgate_core.engine.embeddings import EmbeddingCache
from dgate_core.errors import RowError
from dgate_core.manifest.item import BatchKey

if TYPE_CHECKING:
    from dgate_core.models.families.contract import LoadedModel, Pictures
    from dgate_core.runs.spec import RunSpec

logger = logging.getLogger(__name__)

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
    attempts: int
    started: float
    warnings: Sequence[tuple[str, ...]] = field(default_factory=tuple)


class Generator:
    """Makes the rows of one loaded model.

    Args:
        model: On its device.
        spec: Determinism and the size of strict batches.
        options: Batch sizes.
    """

    def __init__(self, model: LoadedModel, spec: RunSpec, options: GenerateOptions) -> None:
        self.model, self.spec, self.options = model, spec, options
        self.embeddings = EmbeddingCache(model, one_by_one=spec.determinism == "strict")
        self._sizers: dict[BatchKey, BatchSizer] = {}

    def find_sizer(self, key: BatchKey) -> BatchSizer:
        """What is known of this key's batch size."""
        if key not in self._sizers:
            fixed = self.spec.strict_batch_size if self.spec.determinism == "strict" else self.options.batch_size
            limit = fixed or self.options.largest_batch_size
            self._sizers[key] = BatchSizer(self.options.first_batch_size, limit, is_fixed=fixed is not None)
        return self._sizers[key]

    def generate(self, rows: Sequence[PlanRow], key: BatchKey) -> Iterator[Batch]:
        """Batches in the order of the rows, each yielded as soon as it is on its way."""
        position = 0
        while position < len(rows):
            taken = rows[position : position + self.find_sizer(key).size]
            position += len(taken)
            yield from self._make(taken, key, attempts=1)

    def _make(self, rows: Sequence[PlanRow], key: BatchKey, attempts: int) -> Iterator[Batch]:
        import torch

        started = time.perf_counter()
        try:
            yield self._forward(rows, key, attempts, started)
        except (torch.OutOfMemoryError, MemoryError) as error:
            logger.warning("out of memory with %d rows of %s: %s", len(rows), key.model, str(error).splitlines()[0])
            parts = self._split_for_memory(rows, key)
            yield from self._make_parts(parts, rows, key, attempts, RowError("out_of_memory", _first_line(error)))
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            if "CUDA error" in str(error):
                raise  # the device's context is gone: this process cannot go on
            parts = _halve(rows)
            yield from self._make_parts(parts, rows, key, attempts, RowError("generation_failed", _first_line(error)))

    def _make_parts(
        self, parts: list[Sequence[PlanRow]], rows: Sequence[PlanRow], key: BatchKey, attempts: int, error: RowError
    ) -> Iterator[Batch]:
        """Tries again in parts; with no parts left the rows get the error."""
        if not parts:
            yield Batch(rows, None, error, len(rows), attempts, time.perf_counter())
        for part in parts:
            yield from self._make(part, key, attempts + 1)

    def _split_for_memory(self, rows: Sequence[PlanRow], key: BatchKey) -> list[Sequence[PlanRow]]:
        """Halves the batch; below one row asks the model to save memory; empty when nothing is left to try."""
        if self.spec.determinism == "strict":
            # The padded batch is part of what strict promises, so its size cannot give way.
            return [rows] if self._save_memory() else []
        size = self.find_sizer(key).shrink(len(rows))
        if size == 0:
            if not self._save_memory():
                return []
            self.find_sizer(key).allow_one()
            return [rows]
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _save_memory(self) -> bool:
        step = self.model.save_memory()
        if step is not None:
            logger.warning("memory: %s is on from here", step)
        return step is not None

    def _forward(self, rows: Sequence[PlanRow], key: BatchKey, attempts: int, started: float) -> Batch:
        from dgate_core.models.families.contract import BatchRequest

        padded = list(rows)
        if self.spec.determinism == "strict":
            padded += [rows[0]] * (self.spec.strict_batch_size - len(rows))
        prompts = self.embeddings.find_prompts([row["prompt"] for row in padded])
        negatives = self.embeddings.find_negatives([row["negative_prompt"] or "" for row in padded])
        request = BatchRequest(key, tuple(row["seed"] for row in padded), prompts, negatives)
        pictures = self.model.generate(request)
        warnings = [each.warnings for each in prompts[: len(rows)]]
        return Batch(rows, pictures, None, len(padded), attempts, started, warnings)


def _halve(rows: Sequence[PlanRow]) -> list[Sequence[PlanRow]]:
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]] if middle else []


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
