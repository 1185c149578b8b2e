"""TensorRT: exported, parsed and built ahead of time for another GPU, with none at hand; what it cannot do it says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from dgate_core.backends.contract import ShapeBucket
from dgate_core.backends.onnx_export import export_denoiser
from dgate_core.backends.tensorrt_builder import EngineOptions, build_engine, check_target, import_tensorrt
from dgate_core.backends.tensorrt_engine import round_up
from dgate_core.errors import BackendUnfitError
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.spec import FAMILIES
from tests.tiny import make_text_config, make_tokenizer, make_vae
from tests.tiny_dit import make_flux, make_sd3

pytestmark = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")),
    reason="neither tensorrt nor tensorrt_rtx (pip install 'd-gate[tensorrt]') is installed",
)
AHEAD_OF_TIME = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or importlib.util.find_spec("tensorrt") is not None,
    reason="only tensorrt_rtx builds without a GPU",
)


def load(folder: str, precision: str) -> LatentModel:
    checkpoint = find_checkpoint(folder)
    return FAMILIES.load(checkpoint.family)().load(checkpoint, LoadOptions("cpu", precision))


def build_ahead(model: LatentModel, folder: Path, size: int) -> Path:
    graph = export_denoiser(model, folder / "denoiser.onnx", ShapeBucket(size, size))
    options = EngineOptions(most_samples=16, compute_capability="SM89", is_refittable=False)
    return build_engine(graph, folder / "denoiser.engine", options)


@AHEAD_OF_TIME
@pytest.mark.parametrize("precision", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_starter_unet_is_built_for_another_gpu(tmp_path: Path, precision: str) -> None:
    model = load("starter-unet", precision)
    weights = sum(value.nbytes for value in model.denoiser.state_dict().values())
    engine = build_ahead(model, tmp_path, 64)
    assert engine.stat().st_size > 0.9 * weights  # strongly typed: weights of 16 bit stay as they are
    assert engine.stat().st_size < 3 * weights


@AHEAD_OF_TIME
@pytest.mark.parametrize("make", [make_sd3, pytest.param(make_flux, marks=pytest.mark.slow)])
def test_transformers_are_built_for_another_gpu(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert build_ahead(load(str(make(tmp_path)), "float16"), tmp_path, 32).stat().st_size > 100_000


@AHEAD_OF_TIME
def test_a_gpu_that_it_does_not_build_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendUnfitError, match="SM90") as found:
        check_target(import_tensorrt(), (9, 0))
    assert "SM89" in found.value.expected
    check_target(import_tensorrt(), (8, 9))


def test_a_file_that_is_no_graph_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendUnfitError, match=r"does not read x\.onnx"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", EngineOptions(2, is_refittable=False))


@pytest.mark.parametrize(("samples", "bucket"), [(1, 2), (2, 2), (3, 4), (16, 16), (33, 64)])
def test_batches_share_engines_by_powers_of_two(samples: int, bucket: int) -> None:
    assert round_up(samples) == bucket


@pytest.mark.slow
@pytest.mark.timeout(1800)
@AHEAD_OF_TIME
def test_the_architecture_of_stable_diffusion_15_is_built(tmp_path: Path) -> None:
    """Its UNet at full size, 860 M parameters, with random weights and a small text encoder of the right width."""
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
    unet = unet.to_empty(device="cpu").to(torch.float16)
    for weights in unet.parameters():
        torch.nn.init.normal_(weights, std=0.01)
    pipeline = StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(make_text_config(width=768)),
        tokenizer=make_tokenizer(tmp_path / "words"),
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "model")
    engine = build_ahead(load(str(tmp_path / "model"), "float16"), tmp_path, 128)
    assert engine.stat().st_size > 1_700_000_000
