"""What guidance's two halves have in common is computed once, where D-Gate's kernels serve a UNet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dgate_core.backends.compiled import CompiledOnCuda
from dgate_core.backends.fused_blocks import FusedCrossDown
from dgate_core.backends.fusion import fuse, unfuse
from dgate_core.backends.regions import release_blocks
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.profiles import StepSavers
from dgate_core.models.savers.installing import apply_savers
from dgate_core.runs.spec import RunSpec
from tests.core.test_backends import load
from tests.tiny import make_sd, make_sdxl
from tests.triton_here import DEVICE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton comes with PyTorch on Linux")
STEPS, ROWS, SIDE = 2, 2, 8


def serve(model: LatentModel) -> None:
    """As `compiled` serves on CUDA, but for the compiler."""
    fuse(model.denoiser, least_channels=1)
    model.call_denoiser = CompiledOnCuda(model, None)
    release_blocks(model.denoiser)
    release_blocks(model.vae.decoder)


def make_pictures(model: LatentModel, folder: Path) -> torch.Tensor:
    key = BatchKey(str(folder), SIDE, SIDE, STEPS, "default", 5.0)
    rows = [{"prompt": "boat" * (n + 1), "negative_prompt": "fog", "seed": n} for n in range(ROWS)]
    [batch] = Generator(model, RunSpec(), GenerateOptions(batch_size=ROWS)).generate(rows, key)
    assert batch.pictures is not None, batch.error
    return torch.as_tensor(batch.pictures.pixels).int()


def watch(layer: nn.Module) -> list[int]:
    """Rows of each call."""
    seen: list[int] = []
    layer.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    return seen


@pytest.mark.skipif(DEVICE != "cpu", reason="the model's kernels are the interpreter's")
@pytest.mark.parametrize(
    "savers",
    [
        StepSavers(),
        StepSavers(guidance_stop=0.5),
        StepSavers(deep_cache_interval=2, deep_cache_branch=2),
    ],
    ids=["plain", "guidance-0.5", "deep-cache"],
)
def test_pictures_are_the_same_and_the_first_layer_sees_half(savers: StepSavers, tmp_path: Path) -> None:
    folder = make_sd(tmp_path, attends=(True, False))
    plain, model = load(str(folder)), load(str(folder))
    for each in (plain, model):
        apply_savers(each, savers)
    wanted = make_pictures(plain, folder)
    serve(model)
    first = model.denoiser.down_blocks[0]
    assert type(first) is FusedCrossDown
    block = first.attentions[0].transformer_blocks[0]
    alone, before_text = watch(first.resnets[0]), watch(block.attn1.to_q)
    text, behind = watch(block.attn2.to_q), watch(model.denoiser.down_blocks[1].resnets[0])
    got = make_pictures(model, folder)
    assert (got - wanted).abs().max() <= 1
    assert alone == before_text == [ROWS] * STEPS
    guided = STEPS // 2 if savers.guidance_stop < 1 else STEPS
    assert text == [2 * ROWS] * guided + [ROWS] * (STEPS - guided)
    assert set(behind) <= {ROWS, 2 * ROWS}
    assert not model.are_pairs


@torch.inference_mode()
def test_samples_that_are_no_pairs_are_all_computed(tmp_path: Path) -> None:
    unet = load(str(make_sd(tmp_path, attends=(True, False)))).denoiser.to(DEVICE)
    torch.manual_seed(0)
    samples, text = torch.randn(2, 4, 4, 4, device=DEVICE), torch.randn(2, 7, unet.config.cross_attention_dim)
    inputs: tuple[Any, ...] = (samples, torch.tensor(7, device=DEVICE), text.to(DEVICE))
    wanted = unet(*inputs).sample
    fuse(unet, least_channels=1)
    torch.testing.assert_close(unet(*inputs).sample, wanted, rtol=1e-4, atol=1e-5)
    unet.down_blocks[0].halves_alike = True
    assert (unet(*inputs).sample - wanted).abs().max() > 1e-3, "the second sample was taken for the first"
    unfuse(unet)
    assert torch.equal(unet(*inputs).sample, wanted)
    assert not unet.down_blocks[0].__dict__.get("halves_alike")


@pytest.mark.parametrize("make", [make_sd, make_sdxl])
def test_a_unet_with_more_than_the_text_to_tell_halves_apart_keeps_its_levels(make: Any, tmp_path: Path) -> None:
    """SDXL's time embedding holds the text, and neither reads one in its first level."""
    unet = load(str(make(tmp_path))).denoiser
    fuse(unet, least_channels=1)
    assert not any(isinstance(each, FusedCrossDown) for each in unet.modules())


def test_micro_conditioning_tells_halves_apart(tmp_path: Path) -> None:
    unet = load(str(make_sd(tmp_path, attends=(True, False)))).denoiser
    unet.register_to_config(addition_embed_type="text_time")
    fuse(unet, least_channels=1)
    assert not any(isinstance(each, FusedCrossDown) for each in unet.modules())
