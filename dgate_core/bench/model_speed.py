"""Latency, throughput and memory of one model, in a process of its own: `python -m dgate_core.bench.model_speed JOB`.

A process of its own, so that its peak of memory is its own too.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import psutil

from dgate_core.bench.flops import synchronise
from dgate_core.bench.machine import pick_device
from dgate_core.bench.subjects import make_prompts
from dgate_core.bench.variants import parse_variant, prepare_variant
from dgate_core.errors import RunError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.spec import DEFAULT_SCHEDULER, FAMILIES

if TYPE_CHECKING:
    from dgate_core.models.families.latent import LatentModel

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class SpeedJob:
    """What is measured."""

    model: str
    """A name of the catalogue, or a folder."""
    steps: int
    """Of the schedule."""
    guidance: float
    """Guidance scale."""
    size: int
    """Pixels of a side."""
    precision: str
    """`float32`, `bfloat16` or `float16`."""
    profile: str = "exact"
    """A variant, see `parse_variant`."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Sizes that are tried; the first is that of the latency."""
    repeats: int = 3
    """The latency is the median over these."""


def measure_in_process(job: SpeedJob) -> dict[str, Any]:
    """Starts the process and reads what it found.

    Raises:
        RunError: it failed; with its last line.
    """
    command = [sys.executable, "-m", "dgate_core.bench.model_speed", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().rsplit("\n", 1)[-1]
        raise RunError(f"measuring {job.model} failed: {last}", "a model that draws", "see the message")
    found: dict[str, Any] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    return found


def measure_speed(job: SpeedJob) -> dict[str, Any]:
    """Seconds of one picture from its prompt to its pixels, pictures per second by batch, peak of memory."""
    from dgate_core.models.families.contract import LoadOptions

    device = pick_device(job.device)
    checkpoint = find_checkpoint(job.model)
    family = FAMILIES.load(checkpoint.family)()  # its libraries are no memory of the model
    before = read_memory(device)
    model: LatentModel = family.load(checkpoint, LoadOptions(device, job.precision))
    prepare_variant(model, parse_variant(job.profile, device))
    weights = read_memory(device) - before
    # The first of each size pays for warming up.
    seconds = {
        batch: [time_batch(model, job, batch) for _ in range(1 + count_repeats(job, batch))] for batch in job.batches
    }
    rates = {batch: batch / statistics.median(spent[1:]) for batch, spent in seconds.items()}
    best = max(rates, key=lambda batch: rates[batch])
    return {
        "latency_seconds": statistics.median(seconds[job.batches[0]][1:]),
        "pictures_per_second": rates[best],
        "best_batch": best,
        "rates": rates,
        "weights_gib": weights / GIB,
        "peak_gib": (read_peak_memory(device) - before) / GIB,
        "parameters_millions": sum(each.numel() for each in model.denoiser.parameters()) / 1e6,
    }


def count_repeats(job: SpeedJob, batch: int) -> int:
    """One picture varies more than many."""
    return job.repeats if batch == job.batches[0] else 1


def time_batch(model: LatentModel, job: SpeedJob, rows: int) -> float:
    """Seconds from prompts to pixels."""
    from dgate_core.models.families.contract import BatchRequest

    key = BatchKey(job.model, job.size, job.size, job.steps, DEFAULT_SCHEDULER, job.guidance)
    prompts = make_prompts(rows)
    synchronise(model.device.type)
    started = time.perf_counter()
    told = tuple(model.encode_prompts(prompts, one_by_one=False))
    negatives = tuple(model.encode_negatives([""], one_by_one=False) * rows)
    model.generate(BatchRequest(key, tuple(range(rows)), told, negatives)).wait()
    return time.perf_counter() - started


def read_memory(device: str) -> int:
    """Bytes in use: of the GPU by torch, else of the process."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def read_peak_memory(device: str) -> int:
    """Most bytes so far."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(measure_speed(SpeedJob(**{**given, "batches": tuple(given["batches"])}))))
