"""Warm models of a lane or a server: generators in a `ModelPool`, with their embeddings and batch sizes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from dgate_core.engine.embeddings import EmbeddingCache
from dgate_core.engine.generate import Generator, free_cached_memory
from dgate_core.errors import ModelError
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.checkpoint_size import count_part_bytes
from dgate_core.models.devices import read_free_bytes, read_total_bytes
from dgate_core.models.model_loading import Candidate
from dgate_core.models.pool import ModelPool, PoolOptions

if TYPE_CHECKING:
    from dgate_core.models.spec import LocalCheckpoint

BUDGET_SHARES = {"cuda": 0.7, "mps": 0.5, "cpu": 0.5}
"""Of the device's memory, for weights; batches take the rest."""
HOST_SHARE = 0.25
"""Of the free host memory, for models that were put out of a GPU."""

LoadGenerator = Callable[[str], Generator]
"""Model, as the run names it → generator on the device."""


class GeneratorLoader:
    """Loads generators for a pool; see `ModelLoader`.

    Args:
        load: Puts a model on the device.
        device: `cpu`, `cuda` or `mps`.
        precision: `float32`, `bfloat16` or `float16`.
    """

    def __init__(self, load: LoadGenerator, device: str, precision: str) -> None:
        self._load, self._device, self._precision = load, device, precision

    def identify(self, name: str) -> Candidate:
        """The key is the hash of the weights, with what the catalogue says of how to read them."""
        checkpoint = find_checkpoint(name)
        size = sum(count_part_bytes(checkpoint, self._precision).values())
        return Candidate(name_reading(checkpoint), name, size, checkpoint)

    def load(self, candidate: Candidate) -> Generator:
        """On a stream of its own, so that copies to the device do not queue up behind what is being computed."""
        with use_stream_of_its_own() if self._device == "cuda" else nullcontext():
            generator = self._load(name_to_load(candidate))
        if name_reading(generator.model.checkpoint) != candidate.key:
            raise ModelError(
                f"the files of {candidate.name} have changed since it was found",
                "the weights that the name stood for then",
                "refresh the name, or start again",
            )
        return generator

    def measure_bytes(self, held: Generator) -> int:
        """Weights on the device."""
        return held.model.count_bytes()

    def read_free_bytes(self) -> int | None:
        """See `read_free_bytes` in devices."""
        return read_free_bytes(self._device)

    def send_to_host(self, held: Generator) -> bool:
        """Only from a GPU, and only weights that no backend has a copy of."""
        if self._device != "cuda" or not held.model.leave_device():
            return False
        held.embeddings = EmbeddingCache(held.model, one_by_one=held.is_strict)
        return True

    def bring_back(self, held: Generator) -> None:
        """As it was, with the batch sizes that it had found."""
        held.model.return_to_device()

    def free_memory(self) -> None:
        """Gives the allocator's blocks back, once nothing on the device needs them."""
        gc.collect()
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        free_cached_memory()


def open_pool(
    load: LoadGenerator, device: str, precision: str, budget_bytes: int | None = None
) -> ModelPool[Generator]:
    """A pool for one device.

    Args:
        load: Puts a model on the device.
        device: `cpu`, `cuda` or `mps`.
        precision: `float32`, `bfloat16` or `float16`.
        budget_bytes: For the weights of all models together; None is a share of the device's memory.
    """
    budget = budget_bytes or int(read_total_bytes(device) * BUDGET_SHARES[device])
    host = int(read_free_bytes("cpu") * HOST_SHARE) if device == "cuda" else 0
    return ModelPool(GeneratorLoader(load, device, precision), PoolOptions(budget, host))


@contextmanager
def use_stream_of_its_own() -> Iterator[None]:
    """What the block does on the GPU is done when it ends."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def name_to_load(candidate: Candidate) -> str:
    """As it was asked for; the model itself, when the name is an alias that has moved since."""
    try:
        found = find_checkpoint(candidate.name)
    except ModelError:
        return str(candidate.source.spec.name)
    return candidate.name if name_reading(found) == candidate.key else str(candidate.source.spec.name)


def name_reading(checkpoint: LocalCheckpoint) -> str:
    """The same for names that stand for the same weights, read with the same limits."""
    return f"{checkpoint.weights_hash}/{checkpoint.spec.max_sequence_length}"
