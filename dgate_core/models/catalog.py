"""The catalogue of checkpoints, and how a name, folder or file becomes a checkpoint on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dgate_core.errors import ModelError
from dgate_core.models.checkpoint_folder import PICKLE_SUFFIXES, inspect_folder
from dgate_core.models.hashing import hash_weights
from dgate_core.models.hub import CONFIG_PATTERNS, download_snapshot, find_in_cache, list_patterns
from dgate_core.models.single_file import recognise_single_file
from dgate_core.models.spec import PIPELINE_FAMILIES, PIPELINE_GUIDANCE, CheckpointSpec, LocalCheckpoint
from dgate_core.registry import explain_unknown

logger = logging.getLogger(__name__)

STARTER_FOLDER = Path(__file__).resolve().parent / "starter"
HUB_SCHEME = "hf://"

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
    """Finds a checkpoint and checks that it is whole and safe.

    Args:
        name: A name of the catalogue, a diffusers folder, a `.safetensors` file, or `hf://OWNER/NAME[@REVISION]`.

    Raises:
        ModelError: unknown, incomplete, a pickle, or a pipeline class of no known family.
    """
    if name in CATALOG:
        return _open(CATALOG[name])
    checkpoint = _open(_read_name(name))
    guidance_scale = PIPELINE_GUIDANCE[checkpoint.pipeline_class]
    return replace(checkpoint, spec=replace(checkpoint.spec, guidance_scale=guidance_scale))


def _read_name(name: str) -> CheckpointSpec:
    if name.startswith(HUB_SCHEME):
        source, _, revision = name.removeprefix(HUB_SCHEME).partition("@")
        return CheckpointSpec(name, source, revision or None)
    path = Path(name).expanduser()
    if path.suffix in PICKLE_SUFFIXES:
        raise ModelError(
            f"{name} is a pickle checkpoint, and opening one can run any code",
            "a .safetensors file or a diffusers folder with safetensors",
            "convert it on a machine where you trust it: "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(FOLDER, safe_serialization=True)",
        )
    if path.exists():
        return CheckpointSpec(name, str(path.resolve()))
    if "/" in name or path.suffix:
        raise ModelError(
            f"there is no {name}",
            f"a diffusers folder, a .safetensors file, {HUB_SCHEME}OWNER/NAME, or one of {', '.join(CATALOG)}",
            "check the path",
        )
    raise explain_unknown("model", name, CATALOG, ModelError)


def _open(spec: CheckpointSpec) -> LocalCheckpoint:
    path = Path(spec.source)
    if not path.is_absolute():
        return _open_from_hub(spec)
    return _open_single_file(spec, path) if path.is_file() else inspect_folder(spec, path)


def _open_from_hub(spec: CheckpointSpec) -> LocalCheckpoint:
    """A whole copy in the hub's cache is taken without asking the network."""
    cached = find_in_cache(spec)
    if cached is not None:
        try:
            return inspect_folder(spec, cached)
        except ModelError as error:
            logger.info("the cached copy of %s is not whole: %s", spec.name, error.got)
    return inspect_folder(spec, download_snapshot(spec, list_patterns(spec)))


def _open_single_file(spec: CheckpointSpec, path: Path) -> LocalCheckpoint:
    """A file has no configs: they come from the folder of its name beside it, else from the model it descends from."""
    kind = recognise_single_file(path)
    beside, hashes = path.with_suffix(""), [hash_weights(path)]
    if beside.is_dir():
        configs = beside
        hashes.append(hash_weights(beside))
    else:
        configs = download_snapshot(CATALOG[kind.ancestor], CONFIG_PATTERNS)
    return LocalCheckpoint(
        spec=spec,
        folder=str(path),
        family=PIPELINE_FAMILIES[kind.pipeline_class],
        weights_hash=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        native_size=kind.native_size,
        pipeline_class=kind.pipeline_class,
        config_folder=str(configs),
    )
