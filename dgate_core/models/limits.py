"""What a checkpoint allows in a manifest, for the checks that come before anything is loaded."""

from __future__ import annotations

from dgate_core.manifest.item import ModelLimits
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.spec import DEFAULT_SCHEDULER, PIPELINES, LocalCheckpoint


def find_limits(name: str) -> ModelLimits:
    """A `ModelLookup` over the catalogue.

    Raises:
        ModelError: see `find_checkpoint`.
    """
    return checkpoint_to_limits(find_checkpoint(name))


def checkpoint_to_limits(checkpoint: LocalCheckpoint) -> ModelLimits:
    """Sizes in pixels around the native one; defaults from the catalogue."""
    spec, native = checkpoint.spec, checkpoint.native_size
    smallest, largest = spec.size_range
    return ModelLimits(
        model=spec.name,
        weights_hash=checkpoint.weights_hash,
        schedulers=PIPELINES[checkpoint.pipeline_class].schedulers | {DEFAULT_SCHEDULER},
        width=native,
        height=native,
        size_multiple=spec.size_multiple,
        size_min=int(native * smallest),
        size_max=int(native * largest),
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        scheduler=DEFAULT_SCHEDULER,
        seconds_per_step=estimate_seconds_per_step(spec.step_gflops),
    )


def estimate_seconds_per_step(step_gflops: float) -> float:
    """Rough: 40 % of a data-centre GPU's bf16 rate, or 150 GFLOP/s of a CPU core pair; both guided samples counted."""
    rate_gflops = 300_000.0 if _has_gpu() else 150.0
    return 2 * step_gflops / rate_gflops


def _has_gpu() -> bool:
    from dgate_core.models.devices import count_gpus

    return count_gpus() > 0
