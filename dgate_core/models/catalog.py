"""The catalogue of checkpoints, and how a name, folder or file becomes a checkpoint on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dgate_core.errors import ModelError
from dgate_core.models.aliases import check_promoted, resolve_alias
from dgate_core.models.checkpoint_folder import PICKLE_SUFFIXES, inspect_folder
from dgate_core.models.hashing import hash_weights
from dgate_core.models.hub import CONFIG_PATTERNS, download_snapshot, find_in_cache, list_patterns
from dgate_core.models.imported import find_imported, read_imported
from dgate_core.models.mirror import S3_SCHEME, read_pulled
from dgate_core.models.single_file import recognise_single_file
from dgate_core.models.spec import PIPELINES, CheckpointSpec, LocalCheckpoint
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
            num_inference_steps=25,
            # More guidance draws one thing twice where the caption leaves its place open.
            guidance_scale=1.5,
            licence="Apache-2.0",
            step_gflops=1.5,
        ),
        CheckpointSpec(
            "starter-dit",
            str(STARTER_FOLDER / "starter-dit"),
            num_inference_steps=20,
            guidance_scale=3.0,
            # Its third encoder says nothing: the fewest tokens of it are the fastest.
            max_sequence_length=2,
            licence="Apache-2.0",
            step_gflops=0.5,
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
        CheckpointSpec(
            "sd-turbo",
            "stabilityai/sd-turbo",
            revision="b261bac6fd2cf515557d5d0707481eafa0485ec2",
            variant="fp16",
            num_inference_steps=4,
            guidance_scale=0.0,
            licence="Stability AI Non-Commercial Research Community License",
            step_gflops=850.0,
        ),
        CheckpointSpec(
            "sdxl-turbo",
            "stabilityai/sdxl-turbo",
            revision="71153311d3dbb46851df1931d3ca6e939de83304",
            variant="fp16",
            num_inference_steps=4,
            guidance_scale=0.0,
            licence="Stability AI Non-Commercial Research Community License",
            step_gflops=1500.0,
        ),
        CheckpointSpec(
            "lcm-dreamshaper",
            "SimianLuo/LCM_Dreamshaper_v7",
            revision="a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5",
            num_inference_steps=4,
            guidance_scale=8.5,
            licence="MIT",
            step_gflops=2100.0,
        ),
        CheckpointSpec(
            "sd3-medium",
            "stabilityai/stable-diffusion-3-medium-diffusers",
            revision="ea42f8cef0f178587cf766dc8129abd379c90671",
            num_inference_steps=28,
            guidance_scale=7.0,
            size_multiple=16,
            size_range=(0.5, 1.5),
            licence="Stability AI Community License (gated)",
            step_gflops=8904.0,
        ),
        CheckpointSpec(
            "sd35-medium",
            "stabilityai/stable-diffusion-3.5-medium",
            revision="b940f670f0eda2d07fbb75229e779da1ad11eb80",
            num_inference_steps=40,
            guidance_scale=4.5,
            size_multiple=16,
            licence="Stability AI Community License (gated)",
            step_gflops=11250.0,
        ),
        CheckpointSpec(
            "sd35-large",
            "stabilityai/stable-diffusion-3.5-large",
            revision="ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f",
            num_inference_steps=28,
            guidance_scale=3.5,
            size_multiple=16,
            size_range=(0.5, 1.5),
            licence="Stability AI Community License (gated)",
            step_gflops=31121.0,
        ),
        CheckpointSpec(
            "flux-dev",
            "black-forest-labs/FLUX.1-dev",
            revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
            num_inference_steps=28,
            guidance_scale=3.5,
            size_multiple=16,
            licence="FLUX.1 [dev] Non-Commercial License (gated)",
            step_gflops=74385.0,
        ),
        CheckpointSpec(
            "flux-schnell",
            "black-forest-labs/FLUX.1-schnell",
            revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
            num_inference_steps=4,
            guidance_scale=0.0,
            size_multiple=16,
            max_sequence_length=256,
            licence="Apache-2.0 (gated)",
            step_gflops=69467.0,
        ),
        CheckpointSpec(
            "flux2-dev",
            "black-forest-labs/FLUX.2-dev",
            revision="26afe3a78bb242c0a8bb181dcc8937bb16e5c66c",
            guidance_scale=4.0,
            size_multiple=16,
            licence="FLUX [dev] Non-Commercial License v2.0 (gated)",
            step_gflops=310_000.0,
        ),
        CheckpointSpec(
            "flux2-klein-4b",
            "black-forest-labs/FLUX.2-klein-4B",
            revision="e7b7dc27f91deacad38e78976d1f2b499d76a294",
            num_inference_steps=4,
            guidance_scale=1.0,
            size_multiple=16,
            licence="Apache-2.0",
            step_gflops=42_000.0,
        ),
        CheckpointSpec(
            "pixart-sigma",
            "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
            revision="e102b3591cc82e97071b8b4cb90d834d0c487207",
            num_inference_steps=20,
            guidance_scale=4.5,
            size_multiple=16,
            licence="OpenRAIL++",
            step_gflops=6634.0,
        ),
        CheckpointSpec(
            "qwen-image",
            "Qwen/Qwen-Image",
            revision="75e0b4be04f60ec59a75f475837eced720f823b6",
            guidance_scale=4.0,
            size_multiple=16,
            licence="Apache-2.0",
            step_gflops=190_000.0,
        ),
        CheckpointSpec(
            "z-image-turbo",
            "Tongyi-MAI/Z-Image-Turbo",
            revision="f332072aa78be7aecdf3ee76d5c247082da564a6",
            num_inference_steps=9,
            guidance_scale=0.0,
            size_multiple=16,
            licence="Apache-2.0",
            step_gflops=55_000.0,
        ),
    )
}


def find_checkpoint(name: str) -> LocalCheckpoint:
    """Finds a checkpoint and checks that it is whole and safe.

    Args:
        name: A name of the catalogue, an alias such as `production`, an imported name, a diffusers folder, a
            `.safetensors` file, or `hf://OWNER/NAME[@REVISION]`.

    Raises:
        ModelError: unknown, incomplete, a pickle, a pipeline class of no known family, or an alias whose weights are
            not those that were promoted.
    """
    if name in CATALOG:
        return _open(CATALOG[name])
    promoted = resolve_alias(name)
    if promoted != name:
        checkpoint = find_checkpoint(promoted)
        check_promoted(name, checkpoint.weights_hash)
        return checkpoint
    imported = find_imported(name)
    if imported is not None:
        return _open(imported.to_spec())
    checkpoint = _open(_read_name(name))
    pipeline = PIPELINES[checkpoint.pipeline_class]
    defaults = {name: getattr(pipeline, name) for name in ("guidance_scale", "num_inference_steps", "size_multiple")}
    return replace(checkpoint, spec=replace(checkpoint.spec, **defaults))


def find_spec(name: str) -> CheckpointSpec:
    """What is known of a name without looking at its files.

    Raises:
        ModelError: unknown.
    """
    name = resolve_alias(name)
    imported = None if name in CATALOG else find_imported(name)
    return CATALOG.get(name) or (imported.to_spec() if imported is not None else _read_name(name))


def locate_files(spec: CheckpointSpec) -> Path | None:
    """Folder or file on this machine, whole or not, without asking any network; None when there is nothing."""
    path = Path(spec.source)
    if path.is_absolute():
        return path if path.exists() else None
    pulled = read_pulled(spec.name)
    return pulled[0] if pulled is not None else find_in_cache(spec)


def _read_name(name: str) -> CheckpointSpec:
    if name.startswith(HUB_SCHEME):
        source, _, revision = name.removeprefix(HUB_SCHEME).partition("@")
        return CheckpointSpec(name, source, revision or None)
    if name.startswith(S3_SCHEME):
        raise ModelError(
            f"{name} is in a bucket, and models are opened from disk",
            "a model on this machine",
            f"run: dgate models pull {name}",
        )
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
    raise explain_unknown("model", name, [*CATALOG, *read_imported()], ModelError)


def _open(spec: CheckpointSpec) -> LocalCheckpoint:
    path = Path(spec.source)
    if not path.is_absolute():
        return _open_from_hub(spec)
    return _open_single_file(spec, path) if path.is_file() else inspect_folder(spec, path)


def _open_from_hub(spec: CheckpointSpec) -> LocalCheckpoint:
    """A copy from a mirror, or a whole one in the hub's cache, is taken without asking the network."""
    pulled = read_pulled(spec.name)
    if pulled is not None:
        return inspect_folder(spec, pulled[0])
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
        family=PIPELINES[kind.pipeline_class].family,
        weights_hash=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        native_size=kind.native_size,
        pipeline_class=kind.pipeline_class,
        config_folder=str(configs),
    )
