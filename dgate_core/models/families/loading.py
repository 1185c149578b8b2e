"""Opening a diffusers pipeline from disk: safetensors only, and every tensor of the config must be there."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from dgate_core.errors import ModelError
from dgate_core.models.single_file import read_header
from dgate_core.models.spec import LocalCheckpoint

_WRAPPERS = frozenset({"model", "text_model", "language_model"})
"""Lead the names of a text encoder's tensors in some releases' files and not in others'."""
_DENOISERS = ("unet", "transformer")


def load_pipeline(checkpoint: LocalCheckpoint, dtype: torch.dtype) -> Any:
    """A diffusers pipeline on the CPU, without a safety checker (verdicts are data, made elsewhere)."""
    pipeline_class = getattr(diffusers, checkpoint.pipeline_class)
    accepted = inspect.signature(pipeline_class.__init__).parameters
    left_out = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }
    arguments = {name: value for name, value in left_out.items() if name in accepted}
    source = Path(checkpoint.folder)
    # Bars of single files would be drawn across the run's own.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        if source.is_file():
            return pipeline_class.from_single_file(
                str(source), config=checkpoint.config_folder, dtype=dtype, local_files_only=True, **arguments
            )
        return pipeline_class.from_pretrained(
            str(source),
            dtype=dtype,
            use_safetensors=True,
            variant=find_variant(source),
            local_files_only=True,
            **arguments,
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"{source} does not load as {checkpoint.pipeline_class}: {' '.join(str(error).split())[:300]}",
            "weights that fit their configs",
            "download or copy it again",
        ) from error


def check_weights_are_whole(pipeline: Any, checkpoint: LocalCheckpoint) -> None:
    """The libraries fill what a file lacks with random numbers and a log line; here that is an error.

    Raises:
        ModelError: names the first tensor that is missing.
    """
    for part, module in pipeline.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        missing = [name for name, value in module.named_parameters() if value.is_meta]
        stored = {
            strip_wrappers(name)
            for file in (Path(checkpoint.folder) / part).glob("*.safetensors")
            for name in read_header(file)
        }
        if stored and isinstance(module, transformers.PreTrainedModel):
            wanted = (name for name, _ in module.named_parameters())
            missing += [name for name in wanted if strip_wrappers(name) not in stored]
        if missing:
            raise ModelError(
                f"{checkpoint.folder}: the weights of {part} lack {missing[0]} ({len(missing)} tensors in all)",
                "every tensor of the config",
                "download or copy it again",
            )


def strip_wrappers(name: str) -> str:
    """A tensor's name without what releases of transformers put before it."""
    parts = name.split(".")
    while parts[0] in _WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def find_variant(folder: Path) -> str | None:
    """`fp16` when the denoiser's weights are there in that variant only."""
    names = {file.name for part in _DENOISERS for file in (folder / part).glob("*.safetensors")}
    return "fp16" if names and all(".fp16." in name for name in names) else None
