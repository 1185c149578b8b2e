"""The catalogue of checkpoints, and how a name, folder or file becomes a checkpoint on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from dgate_core.errors import ModelError
from dgate_core.models.hashing import hash_weights
from dgate_core.models.spec import PIPELINE_FAMILIES, CheckpointSpec, LocalCheckpoint
from dgate_core.registry import explain_unknown

STARTER_FOLDER = Path(__file__).parent / "starter"
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})

CATALOG: Mapping[str, CheckpointSpec] = {
    spec.name: spec
    for spec in (
        CheckpointSpec(
            "starter-unet",
            str(STARTER_FOLDER / "starter-unet"),
            num_inference_steps=20,
            guidance_scale=3.0,
            licence="Apache-2.0",
            step_gflops=1.5,
        ),
        CheckpointSpec(
            "sd15",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            variant="fp16",
            licence="CreativeML Open RAIL-M",
            step_gflops=803.0,
        ),
        CheckpointSpec(
            "sd21",
            "stabilityai/stable-diffusion-2-1",
            revision="5cae40e6a2745ae2b01ad92ae5043f95f23644d6",
            variant="fp16",
            licence="CreativeML Open RAIL++-M",
            step_gflops=1900.0,
        ),
        CheckpointSpec(
            "sdxl",
            "stabilityai/stable-diffusion-xl-base-1.0",
            revision="462165984030d82259a11f4367a4eed129e94a7b",
            variant="fp16",
            guidance_scale=5.0,
            licence="CreativeML Open RAIL++-M",
            step_gflops=6761.0,
        ),
    )
}


def find_checkpoint(name: str) -> LocalCheckpoint:
    """Finds a checkpoint by catalogue name, folder, or `.safetensors` file, and checks that it is whole and safe.

    Raises:
        ModelError: unknown, incomplete, a pickle, or a pipeline class of no known family.
    """
    return _find_checkpoint(name)


@cache
def _find_checkpoint(name: str) -> LocalCheckpoint:
    spec = CATALOG.get(name) or _spec_of_path(name)
    path = Path(spec.source)
    if not path.exists():
        path = _fetch_from_hub(spec)
    return inspect_file(spec, path) if path.is_file() else inspect_folder(spec, path)


def _spec_of_path(name: str) -> CheckpointSpec:
    path = Path(name).expanduser()
    if path.suffix in PICKLE_SUFFIXES:
        raise ModelError(
            f"{name} is a pickle checkpoint, and opening one can run any code",
            "a .safetensors file or a diffusers folder with safetensors",
            "convert it on a machine where you trust it: "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(FOLDER, safe_serialization=True)",
        )
    if not path.exists():
        raise explain_unknown("model", name, CATALOG, ModelError)
    return CheckpointSpec(name, str(path.resolve()))


def _fetch_from_hub(spec: CheckpointSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.model", f"*.{spec.variant}.safetensors" if spec.variant else "*.safetensors"]
    try:
        return Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"the checkpoint {spec.name!r} is not on this machine and the hub gave {type(error).__name__}",
            f"{spec.source} in the hub's cache, or a network that reaches the hub",
            "give --model FOLDER with a local diffusers folder, or `starter-unet`, which ships with D-Gate",
        ) from error


def inspect_folder(spec: CheckpointSpec, folder: Path) -> LocalCheckpoint:
    """Reads model_index.json and the parts' configs, never the weights' values."""
    index = read_json(folder / "model_index.json")
    pipeline_class = str(index.get("_class_name"))
    if pipeline_class not in PIPELINE_FAMILIES:
        raise explain_unknown("pipeline class", pipeline_class, PIPELINE_FAMILIES, ModelError)
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    _check_parts(folder, parts)
    vae = read_json(folder / "vae" / "config.json")
    unet = read_json(folder / "unet" / "config.json")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    defaults = {} if spec.name in CATALOG else {"guidance_scale": 5.0 if "XL" in pipeline_class else 7.5}
    return LocalCheckpoint(
        spec=replace(spec, **defaults),  # type: ignore[arg-type]
        folder=str(folder),
        family=PIPELINE_FAMILIES[pipeline_class],
        weights_hash=hash_weights(folder),
        native_size=int(unet["sample_size"]) * scale,
        pipeline_class=pipeline_class,
    )


def inspect_file(spec: CheckpointSpec, path: Path) -> LocalCheckpoint:
    """A single `.safetensors` checkpoint; its architecture is told from its tensors' names and shapes."""
    from dgate_core.models.single_file import recognise_single_file

    kind = recognise_single_file(path)
    return LocalCheckpoint(spec, str(path), "unet", hash_weights(path), kind.native_size, kind.pipeline_class)


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
    is_model = "config.json" in names
    if is_model and not has_weights:
        raise ModelError(
            f"{folder} holds a config and no weights", "a .safetensors file beside it", "download or copy it again"
        )
    for index_file in folder.glob("*.safetensors.index.json"):
        missing = set(read_json(index_file)["weight_map"].values()) - names
        if missing:
            raise ModelError(
                f"{folder} lacks {', '.join(sorted(missing))}", f"every file of {index_file.name}", "download it again"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Raises:
        ModelError: missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is not there",
            "a diffusers folder (model_index.json and one folder for each part)",
            "check the path",
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not JSON: {error}", "a file written by diffusers", "copy it again") from error
