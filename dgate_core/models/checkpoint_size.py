"""How large a checkpoint is, by part, from the headers of its files; no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dgate_core.errors import ModelError
from dgate_core.models.checkpoint_folder import read_json
from dgate_core.models.single_file import read_header
from dgate_core.models.spec import LocalCheckpoint

BYTES_PER_ELEMENT: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}
_SINGLE_FILE_PARTS: Final = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text_encoder",
    "conditioner.": "text_encoder",
}
_DECODER_TENSORS: Final = 5
"""Full-size tensors of twice the first block's width that are alive at once in the decoder's last block."""


@dataclass(frozen=True, slots=True)
class PartSize:
    """One part of a pipeline as its files hold it."""

    parameters: int
    """Elements of all tensors."""
    stored_bytes: int
    """Of the tensors, in the precision of the files."""
    dtypes: tuple[str, ...]
    """As safetensors names them, such as `F16`."""


def measure_parts(checkpoint: LocalCheckpoint) -> dict[str, PartSize]:
    """Sizes by part of the pipeline; a variant's files count once, so `fp16` beside full ones is left out.

    Raises:
        ModelError: a file that is cut off, or no safetensors.
    """
    source = Path(checkpoint.folder)
    if source.is_file():
        return _measure_single_file(source)
    parts = (folder for folder in sorted(source.iterdir()) if folder.is_dir())
    sizes = {part.name: _sum_headers(list_weight_files(part)) for part in parts if list_weight_files(part)}
    named = read_json(source / "model_index.json")
    return {part: size for part, size in sizes.items() if part in named}


def list_weight_files(part: Path) -> list[Path]:
    """Files that are loaded: those without a variant, or else those of the one variant there is."""
    files = sorted(part.glob("*.safetensors"))
    plain = [file for file in files if len(file.name.split("-")[0].split(".")) == 2]
    return plain or files


def count_part_bytes(checkpoint: LocalCheckpoint, precision: str) -> dict[str, int]:
    """Bytes by part once it is loaded in a precision."""
    each = BYTES_PER_ELEMENT[precision]
    return {part: size.parameters * each for part, size in measure_parts(checkpoint).items()}


def estimate_activation_bytes(checkpoint: LocalCheckpoint, precision: str) -> int:
    """Peak beside the weights for one picture of native size, which the decoder's last block sets; a rough figure."""
    configs = Path(checkpoint.config_folder or checkpoint.folder)
    config = read_json(configs / "vae" / "config.json")
    try:
        width = int(config["block_out_channels"][0] if "block_out_channels" in config else config["base_dim"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{configs}/vae/config.json does not say how wide the decoder is", "block_out_channels"
        ) from error
    return checkpoint.native_size**2 * 2 * width * BYTES_PER_ELEMENT[precision] * _DECODER_TENSORS


def _measure_single_file(file: Path) -> dict[str, PartSize]:
    header = read_header(file)
    parts: dict[str, dict[str, dict[str, object]]] = {}
    for name, entry in header.items():
        part = next((part for prefix, part in _SINGLE_FILE_PARTS.items() if name.startswith(prefix)), "other")
        parts.setdefault(part, {})[name] = entry
    return {part: _sum_entries(entries) for part, entries in parts.items()}


def _sum_headers(files: list[Path]) -> PartSize:
    return _sum_entries({f"{file.name}:{name}": entry for file in files for name, entry in read_header(file).items()})


def _sum_entries(entries: Mapping[str, Mapping[str, object]]) -> PartSize:
    parameters, stored, dtypes = 0, 0, set()
    for entry in entries.values():
        shape, offsets = entry["shape"], entry["data_offsets"]
        assert isinstance(shape, list)
        assert isinstance(offsets, list)
        parameters += math.prod(shape)
        stored += offsets[1] - offsets[0]
        dtypes.add(str(entry["dtype"]))
    return PartSize(parameters, stored, tuple(sorted(dtypes)))
