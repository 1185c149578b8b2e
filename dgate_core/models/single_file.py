"""Tells what a single `.safetensors` checkpoint is from the names and shapes of its tensors; no weight is read."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgate_core.errors import ModelError

_LARGEST_HEADER = 100 * 1024 * 1024
_UNET = "model.diffusion_model."
_INPUT = f"{_UNET}input_blocks.0.0.weight"
_CROSS_ATTENTIONS = tuple(f"{_UNET}input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight" for block in (1, 4))
"""Where the text comes in first: at block 1 in Stable Diffusion, at block 4 in SDXL."""


@dataclass(frozen=True, slots=True)
class SingleFileKind:
    """What a single file holds."""

    pipeline_class: str
    """diffusers pipeline that opens it."""
    native_size: int
    """Side in pixels that it was trained at."""
    ancestor: str
    """Name in the catalogue of the model whose configs fit."""


KINDS: Mapping[int, SingleFileKind] = {
    768: SingleFileKind("StableDiffusionPipeline", 512, "sd15"),  # SD 1.x: CLIP ViT-L
    1024: SingleFileKind("StableDiffusionPipeline", 768, "sd21"),  # SD 2.x: OpenCLIP ViT-H
    2048: SingleFileKind("StableDiffusionXLPipeline", 1024, "sdxl"),  # SDXL: both encoders side by side
}
"""Width of the text embedding that the UNet's cross-attention takes → kind."""

FOREIGN: Mapping[str, str] = {
    "lora_": "a LoRA adapter",
    "double_blocks.": "a Flux transformer",
    f"{_UNET}double_blocks.": "a Flux checkpoint",
    f"{_UNET}joint_blocks.": "a Stable Diffusion 3 checkpoint",
    "control_model.": "a ControlNet",
    "down_blocks.": "a UNet in the diffusers layout, without text encoder and decoder",
    "encoder.": "a decoder (VAE) alone",
}
"""Beginning of tensor names → what such a file is; for messages."""


def recognise_single_file(path: Path) -> SingleFileKind:
    """Recognises SD 1.x, SD 2.x and SDXL in the original (LDM) layout.

    SD 2.x at 512 px cannot be told from SD 2.x at 768 px by shapes; it is taken for the latter.

    Raises:
        ModelError: not a safetensors file, cut off, or another architecture.
    """
    header = read_header(path)
    shapes = {name: entry["shape"] for name, entry in header.items()}
    width = next((shapes[name][1] for name in _CROSS_ATTENTIONS if len(shapes.get(name, ())) == 2), None)
    if width is None or width not in KINDS:
        raise _refuse(path, _name_foreign(shapes))
    if shapes.get(_INPUT, (0, 4))[1] != 4:
        raise _refuse(path, f"a UNet that takes {shapes[_INPUT][1]} channels (inpainting or editing)")
    for prefix, part in (("first_stage_model.", "decoder"), (("cond_stage_model.", "conditioner."), "text encoder")):
        if not any(name.startswith(prefix) for name in shapes):
            raise _refuse(path, f"a checkpoint without its {part}")
    return KINDS[width]


def read_header(path: Path) -> dict[str, Any]:
    """Names, dtypes and shapes of a safetensors file, after a look at whether the file is whole.

    Raises:
        ModelError: not a safetensors file, or shorter than its header says.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a safetensors file: {error}", "safetensors", "copy it again") from error
    missing = 8 + length + end - path.stat().st_size
    if missing > 0:
        raise ModelError(f"{path} is cut off: {missing} bytes are missing", "the whole file", "download it again")
    return dict(header)


def _name_foreign(names: Mapping[str, Any]) -> str:
    for prefix, kind in FOREIGN.items():
        if any(name.startswith(prefix) for name in names):
            return kind
    return f"no checkpoint that is known here ({len(names)} tensors)"


def _refuse(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} is {what}",
        "one file with SD 1.x, SD 2.x or SDXL in the original layout: UNet, text encoder and decoder",
        "give a diffusers folder instead",
    )
