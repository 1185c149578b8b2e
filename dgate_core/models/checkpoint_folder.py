"""A diffusers folder on disk: is it whole, is it safe to open, what is it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dgate_core.errors import ModelError
from dgate_core.models.hashing import hash_weights
from dgate_core.models.single_file import read_header
from dgate_core.models.spec import PIPELINES, CheckpointSpec, LocalCheckpoint, PipelineSpec
from dgate_core.registry import explain_unknown

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})


def inspect_folder(spec: CheckpointSpec, folder: Path) -> LocalCheckpoint:
    """Reads model_index.json, the parts' configs and the headers of their weights, never the weights' values.

    Raises:
        ModelError: incomplete, cut off, a pickle, or a pipeline class of no known family.
    """
    index = read_json(folder / "model_index.json")
    pipeline_class = str(index.get("_class_name"))
    if pipeline_class not in PIPELINES:
        raise explain_unknown("pipeline class", pipeline_class, PIPELINES, ModelError)
    _check_parts(folder, [name for name, value in index.items() if isinstance(value, list) and value[0]])
    return LocalCheckpoint(
        spec=spec,
        folder=str(folder),
        family=PIPELINES[pipeline_class].family,
        weights_hash=hash_weights(folder),
        native_size=_read_native_size(folder, PIPELINES[pipeline_class]),
        pipeline_class=pipeline_class,
    )


def _read_native_size(folder: Path, pipeline: PipelineSpec) -> int:
    """Side in pixels: the denoiser's sample size, times the decoder's scale."""
    denoiser = pipeline.denoiser
    try:
        vae = read_json(folder / "vae" / "config.json")
        halvings = len(vae["temperal_downsample"] if "temperal_downsample" in vae else vae["block_out_channels"][1:])
        size = pipeline.sample_size or read_json(folder / denoiser / "config.json")["sample_size"]
        return int(size) << halvings
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder}: vae/config.json or {denoiser}/config.json is not as diffusers writes it ({error})",
            f"vae block_out_channels and {denoiser} sample_size",
            "copy the folder again",
        ) from error


def _check_parts(folder: Path, parts: list[str]) -> None:
    """Every part has its config, and every part with weights has them as safetensors."""
    for part in parts:
        if part in {"safety_checker", "feature_extractor", "image_encoder"}:
            continue
        files = list((folder / part).glob("*")) if (folder / part).is_dir() else []
        if not files:
            raise ModelError(
                f"{folder} is incomplete: its model_index.json names {part!r}, and the folder {part}/ is not there",
                "a whole diffusers folder",
                "download or copy it again",
            )
        pickles = [file.name for file in files if file.suffix in PICKLE_SUFFIXES]
        if pickles and not any(file.suffix == ".safetensors" for file in files):
            raise ModelError(
                f"{folder}/{part} holds its weights as a pickle ({pickles[0]}), and opening one can run any code",
                "safetensors",
                "save it again with safe_serialization=True on a machine where you trust it",
            )
        _check_weights(folder / part, {file.name for file in files})


def _check_weights(folder: Path, names: set[str]) -> None:
    has_weights = any(name.endswith(".safetensors") for name in names)
    if "config.json" in names and not has_weights:
        raise ModelError(
            f"{folder} holds a config and no weights", "a .safetensors file beside it", "download or copy it again"
        )
    for index_file in folder.glob("*.safetensors.index.json"):
        missing = set(read_json(index_file).get("weight_map", {}).values()) - names
        if missing:
            raise ModelError(
                f"{folder} lacks {', '.join(sorted(missing))}", f"every file of {index_file.name}", "download it again"
            )
    for file in folder.glob("*.safetensors"):
        read_header(file)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Raises:
        ModelError: missing or broken.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(
            f"{path} is not there",
            "a diffusers folder (model_index.json and one folder for each part)",
            "check the path",
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not JSON: {error}", "a file written by diffusers", "copy it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a JSON {type(found).__name__}", "a JSON object", "copy it again")
    return found
