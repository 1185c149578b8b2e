"""Tells what a single `.safetensors` checkpoint is from the names and shapes of its tensors; no weight is read."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgate_core.errors import ModelError

_LARGEST_HEADER = 100 * 1024 * 1024
_CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_CROSS_ATTENTION_XL = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


@dataclass(frozen=True, slots=True)
class SingleFileKind:
    """What a single file holds."""

    pipeline_class: str
    """diffusers pipeline that opens it."""
    native_size: int
    """Side in pixels that it was trained at."""


KINDS: dict[int, SingleFileKind] = {
    768: SingleFileKind("StableDiffusionPipeline", 512),  # SD 1.x: CLIP ViT-L
    1024: SingleFileKind("StableDiffusionPipeline", 768),  # SD 2.x: OpenCLIP ViT-H
    2048: SingleFileKind("StableDiffusionXLPipeline", 1024),  # SDXL: both encoders side by side
}
"""Width of the text embedding that the UNet's cross-attention takes → kind."""


def recognise_single_file(path: Path) -> SingleFileKind:
    """Recognises SD 1.x, SD 2.x and SDXL in the original (LDM) layout.

    Raises:
        ModelError: not a safetensors file, cut off, or another architecture.
    """
    header = read_header(path)
    for name in (_CROSS_ATTENTION, _CROSS_ATTENTION_XL):
        shape = header.get(name, {}).get("shape", [])
        if len(shape) == 2 and shape[1] in KINDS:
            return KINDS[shape[1]]
    raise ModelError(
        f"{path} is no checkpoint that is known here ({len(header)} tensors)",
        "one file with SD 1.x, SD 2.x or SDXL in the original layout",
        "give a diffusers folder instead",
    )


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
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a safetensors file: {error}", "safetensors", "copy it again") from error
    missing = 8 + length + max(ends, default=0) - path.stat().st_size
    if missing > 0:
        raise ModelError(f"{path} is cut off: {missing} bytes are missing", "the whole file", "download it again")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}
