"""What fits on a card: which parts stay on the device, and how the decoder works, chosen before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from dgate_core.errors import ModelError
from dgate_core.models.checkpoint_size import BYTES_PER_ELEMENT, count_part_bytes, estimate_activation_bytes
from dgate_core.models.devices import read_free_bytes
from dgate_core.models.spec import PIPELINES, LocalCheckpoint

logger = logging.getLogger(__name__)

Offload = Literal["none", "model", "group", "sequential"]

USABLE_SHARE: Final = 0.92
"""Of the free memory; the rest is for the libraries' own work space and for holes between blocks."""
_GROUP_SHARE: Final = 1 / 8
"""Of the largest part: two groups of blocks on the device at once, one at work and one on its way."""
_LAYER_SHARE: Final = 1 / 40
"""Of the largest part: its largest layer."""
_NF4_SHARE: Final = 0.3
"""Of a denoiser's 16 bits: 4 bits and a scale for 64 weights, and the layers that are not linear."""
_TILE_SHARE: Final = 1 / 4
"""Of the decoder's activations when it works in tiles of half a side."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a model is kept within memory; the default is all of it on the device."""

    offload: Offload = "none"
    """Parts, groups of blocks, or layers come onto the device when they are at work, and leave it again."""
    vae_slicing: bool = False
    """The decoder takes one picture at a time."""
    vae_tiling: bool = False
    """The decoder takes one tile of a picture at a time; blends at the tiles' borders, so pixels change a little."""
    needed_bytes: int = 0
    """Estimated peak of the device's memory with this plan, one picture at a time."""
    free_bytes: int = 0
    """What was free when it was chosen; 0 when nobody asked."""

    @property
    def steps(self) -> tuple[str, ...]:
        """What is on, by name, as run.json and the rows' warnings say it."""
        steps = [name for name in ("vae_slicing", "vae_tiling") if getattr(self, name)]
        return (*steps, *([f"{self.offload}_offload"] if self.offload != "none" else []))

    @property
    def fits(self) -> bool:
        """Whether the estimate is within what was free."""
        return not self.free_bytes or self.needed_bytes <= self.free_bytes * USABLE_SHARE


WHOLE: Final = MemoryPlan()
"""All of a model on the device."""


def choose_memory_plan(
    weights_bytes: Mapping[str, int], activation_bytes: int, free_bytes: int, *, can_offload: bool = True
) -> MemoryPlan:
    """The quickest plan that fits, in this order: as it is, slicing, offload by part, by group, by layer, tiling.

    Tiling comes last because it alone changes pixels beyond rounding, and only in pictures above the decoder's tile.

    Args:
        weights_bytes: By part of the pipeline, in the precision that it will have.
        activation_bytes: Of one picture, its decoding included.
        free_bytes: Of the device.
        can_offload: False on the CPU, whose memory is where the parts would go.

    Returns:
        The first plan that fits, else the one that needs least; see `MemoryPlan.fits`.
    """
    total, largest = sum(weights_bytes.values()), max(weights_bytes.values(), default=0)
    tiled = int(activation_bytes * _TILE_SHARE)
    ladder = [
        MemoryPlan(needed_bytes=total + 2 * activation_bytes),
        MemoryPlan(vae_slicing=True, needed_bytes=total + activation_bytes),
    ]
    if can_offload:
        resident: dict[Offload, int] = {
            "model": largest,
            "group": int(largest * _GROUP_SHARE),
            "sequential": int(largest * _LAYER_SHARE),
        }
        ladder += [MemoryPlan(kind, True, needed_bytes=size + activation_bytes) for kind, size in resident.items()]
        ladder.append(MemoryPlan("sequential", True, True, needed_bytes=resident["sequential"] + tiled))
    else:
        ladder.append(MemoryPlan("none", True, True, needed_bytes=total + tiled))
    plans = [
        MemoryPlan(each.offload, each.vae_slicing, each.vae_tiling, each.needed_bytes, free_bytes) for each in ladder
    ]
    return next((plan for plan in plans if plan.fits), plans[-1])


def plan_memory(
    checkpoint: LocalCheckpoint,
    precision: str,
    device: str,
    *,
    is_strict: bool = False,
    quantization: str | None = None,
) -> MemoryPlan:
    """The plan for a checkpoint on a device, from what is free there now.

    Args:
        checkpoint: Found, not loaded.
        precision: `float32`, `bfloat16` or `float16`.
        device: `cpu`, `cuda` or `mps`.
        is_strict: Leaves the decoder as it is: how it cuts its work must not hang on what happens to be free.
        quantization: Of the denoiser; only `nf4` is for memory, and counted.

    Raises:
        ModelError: the machine's memory does not hold the weights.
    """
    weights = count_part_bytes(checkpoint, precision)
    total, free_on_host = sum(weights.values()), read_free_bytes("cpu")
    if total > free_on_host:
        raise ModelError(
            f"{checkpoint.spec.name} takes {total / 1e9:.1f} GB in {precision}",
            f"that much free memory on this machine, which has {free_on_host / 1e9:.1f} GB",
            "free some memory, or take a smaller model or precision",
        )
    denoiser = PIPELINES[checkpoint.pipeline_class].denoiser
    if quantization == "nf4" and denoiser in weights:
        weights[denoiser] = int(weights[denoiser] * _NF4_SHARE * 2 / BYTES_PER_ELEMENT[precision])
    activations = estimate_activation_bytes(checkpoint, precision)
    is_card = device == "cuda"
    plan = choose_memory_plan(weights, activations, read_free_bytes(device), can_offload=is_card)
    if is_strict:
        plan = replace(plan, vae_slicing=False, vae_tiling=False)
    if plan.steps:
        told = f"{plan.needed_bytes / 1e9:.1f} GB of {plan.free_bytes / 1e9:.1f} GB that are free"
        logger.warning("%s: %s, about %s", checkpoint.spec.name, ", ".join(plan.steps), told)
    return plan
