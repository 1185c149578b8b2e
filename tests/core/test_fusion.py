"""Blocks with D-Gate's kernels against the same blocks as diffusers has them, by Triton's interpreter or on a GPU."""

from __future__ import annotations

import copy
import gc
import sys
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from dgate_core.backends.fused_blocks import (
    FusedBlock,
    FusedCrossUp,
    FusedNorm,
    FusedResnet,
    FusedTransformer,
    FusedUp,
    WideAttention,
)
from dgate_core.backends.fusion import fuse, list_fusible, unfuse
from dgate_core.backends.regions import compile_blocks
from dgate_core.errors import ModelError
from dgate_core.models.savers.deep_cache import DeepCache
from dgate_core.quant.fp8 import Fp8Product
from dgate_core.quant.layers import replace_layer
from dgate_core.quant.plan import LayerRange
from dgate_core.quant.product import quantise_layer
from tests.triton_here import DEVICE, HAS_GPU

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton comes with PyTorch on Linux")
FUSED = (FusedResnet, FusedBlock, FusedTransformer, FusedUp, FusedCrossUp, FusedNorm)


def make_unet(**config: Any) -> UNet2DConditionModel:
    """Every kind of block, 4 by 4 latents, no wider than it must be."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=8,
        **config,
    )
    return unet.to(DEVICE).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def draw_inputs(rows: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    sample, text = torch.randn(rows, 4, 4, 4, device=DEVICE), torch.randn(rows, 5, 16, device=DEVICE)
    return sample, torch.tensor(7, device=DEVICE), text


def count_fused(module: nn.Module) -> dict[str, int]:
    return {kind.__name__: sum(type(each) is kind for each in module.modules()) for kind in FUSED}


@pytest.mark.parametrize("linear", [True, False])
@torch.inference_mode()
def test_a_fused_unet_predicts_the_same_and_is_undone(linear: bool) -> None:
    """SDXL's projections are linear layers, those of Stable Diffusion 1.5 convolutions of one pixel."""
    unet, inputs = make_unet(use_linear_projection=linear), draw_inputs()
    wanted, names = unet(*inputs).sample, list(unet.state_dict())
    fuse(unet, least_channels=1)
    counts = count_fused(unet)
    assert counts == {
        "FusedResnet": 8,
        "FusedBlock": 4,
        "FusedTransformer": 4,
        "FusedUp": 1,
        "FusedCrossUp": 1,
        "FusedNorm": 1,
    }
    torch.testing.assert_close(unet(*inputs).sample, wanted, rtol=1e-4, atol=1e-5)
    assert list(unet.state_dict()) == names
    unfuse(unet)
    assert not any(count_fused(unet).values())
    assert torch.equal(unet(*inputs).sample, wanted)


def test_a_narrow_network_stays_as_it_is() -> None:
    """Launches, not memory, are what it waits for."""
    unet = make_unet()
    fuse(unet)
    assert not any(count_fused(unet).values())


@torch.inference_mode()
def test_the_text_is_read_once_for_all_steps_and_forgotten_with_it() -> None:
    unet, (sample, step, text) = make_unet(), draw_inputs()
    fuse(unet, least_channels=1)
    read: list[torch.Tensor] = []
    transformer = next(each for each in unet.modules() if type(each) is FusedTransformer)
    to_k = transformer.transformer_blocks[0].attn2.to_k
    to_k.register_forward_hook(lambda _, given, __: read.append(given[0]))
    for _ in range(2):
        unet(sample, step, text)
    assert len(read) == 1
    other = text + 1
    changed = unet(sample, step, other).sample
    assert len(read) == 2
    read.clear()
    fresh = make_unet()
    fuse(fresh, least_channels=1)
    torch.testing.assert_close(changed, fresh(sample, step, other).sample)
    del other, text
    gc.collect()
    assert not {"_words", "_known_text"} & set(transformer.__dict__)


@torch.inference_mode()
def test_what_comes_after_the_kernels_is_refused_and_not_left_out() -> None:
    class Mine(AttnProcessor2_0):
        """Of an adapter, say."""

    unet, inputs = make_unet(), draw_inputs()
    fuse(unet, least_channels=1)
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(Mine())
    with pytest.raises(ModelError, match="Mine in a UNet"):
        unet(*inputs)
    freed = make_fused()
    freed.enable_freeu(0.9, 0.2, 1.2, 1.4)
    with pytest.raises(ModelError, match="FreeU in a UNet"):
        freed(*inputs)
    mask = torch.ones(1, 5, device=DEVICE)
    with pytest.raises(ModelError, match="encoder_attention_mask"):
        make_fused()(*inputs, encoder_attention_mask=mask)


def make_fused() -> UNet2DConditionModel:
    unet = make_unet()
    fuse(unet, least_channels=1)
    return unet


def quantise(unet: UNet2DConditionModel, *names: str) -> None:
    """Layers in FP8, whose name ends so."""
    for name, layer in list(unet.named_modules()):
        if name.endswith(names) and isinstance(layer, nn.Linear | nn.Conv2d):
            replace_layer(unet, name, quantise_layer(layer, Fp8Product, LayerRange(-8.0, 8.0, -8.0, 8.0), None))


@pytest.mark.parametrize(
    "names",
    [
        ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2"),
        # What sensitivity keeps in 16 bit beside what it does not.
        ("to_q", "to_v", "ff.net.2", "proj_out", "conv2"),
    ],
)
@torch.inference_mode()
def test_quantised_layers_take_what_the_kernels_write(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from dgate_core.kernels.rounding import run_rounding

    # Triton's interpreter rounds to E4M3 in a way of its own: here both sides go by it.
    by_kernel = staticmethod(lambda values: run_rounding(values, torch.ones(1, device=DEVICE)))
    monkeypatch.setattr(Fp8Product, "round", by_kernel)
    unet, inputs = make_unet(use_linear_projection=True), draw_inputs()
    exact = unet(*inputs).sample
    quantise(unet, *names)
    wanted = unet(*inputs).sample
    fuse(unet, least_channels=1)
    shared = {each.shares_input for each in unet.modules() if type(each) is FusedBlock}
    assert shared == {"to_k" in names}
    got = unet(*inputs).sample
    loss, difference = (wanted - exact).norm() / exact.norm(), (got - wanted).norm() / exact.norm()
    # Sums in another order fall to the other side of a rounding here and there.
    assert loss > 0.01
    assert difference < loss / 4


@torch.inference_mode()
def test_deep_cache_goes_through_fused_blocks() -> None:
    unet, inputs = make_unet(), draw_inputs()

    def draw(unet: UNet2DConditionModel) -> list[torch.Tensor]:
        saver = DeepCache(unet, 2, 1)
        saver.begin_batch(1)
        return [saver.forward(*inputs).sample for _ in range(2)]

    wanted = draw(unet)
    fuse(unet, least_channels=1)
    for got, expected in zip(draw(unet), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_equal_fused_blocks_share_their_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for a kind of block and its sizes, unbroken."""
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    blocks = nn.Sequential(*(ResnetBlock2D(in_channels=16, groups=8, temb_channels=None) for _ in range(3)))
    blocks = blocks.to(DEVICE).eval().requires_grad_(False)

    def run(pictures: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            pictures = block(pictures, None)
        return pictures

    pictures = torch.randn(1, 16, 4, 4, device=DEVICE).to(memory_format=torch.channels_last)
    wanted = run(pictures)
    fuse(blocks, least_channels=1)
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(blocks)
    torch.testing.assert_close(run(pictures), wanted, rtol=1e-4, atol=1e-5)
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)
    torch._dynamo.reset()


@torch.inference_mode()
def test_a_decoders_blocks_and_options_that_no_fused_block_knows() -> None:
    torch.manual_seed(0)
    decoder = Decoder(4, 3, ("UpDecoderBlock2D",), (16,), layers_per_block=1, norm_num_groups=8)
    decoder = decoder.to(DEVICE).eval().requires_grad_(False)
    latents = torch.randn(1, 4, 4, 4, device=DEVICE)
    wanted = decoder(latents)
    fuse(decoder, least_channels=1)
    assert count_fused(decoder)["FusedResnet"] == 4
    assert isinstance(decoder.conv_act, nn.Identity)
    torch.testing.assert_close(decoder(latents), wanted, rtol=1e-4, atol=1e-5)
    unfuse(decoder)
    assert torch.equal(decoder(latents), wanted)
    strange = nn.ModuleList(
        [
            ResnetBlock2D(in_channels=16, groups=8, time_embedding_norm="scale_shift", temb_channels=8),
            ResnetBlock2D(in_channels=16, groups=8, temb_channels=None, up=True),
            ResnetBlock2D(in_channels=16, groups=8, temb_channels=None, non_linearity="gelu"),
            ResnetBlock2D(in_channels=16, groups=8, temb_channels=None, output_scale_factor=2.0),
        ]
    )
    assert list(list_fusible(strange)) == []
    freed = make_unet()
    freed.enable_freeu(0.9, 0.2, 1.2, 1.4)
    assert not any(type(each).__name__.endswith("UpBlock2D") for each in list_fusible(freed))


@torch.inference_mode()
def test_one_wide_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the queries, the last one shorter; `out_dtype` of a product is CUDA's alone, and emulated elsewhere."""
    from dgate_core.backends import fused_blocks

    if not HAS_GPU:
        plain = torch.mm

        def multiply(a: torch.Tensor, b: torch.Tensor, **to: Any) -> torch.Tensor:
            product = plain(a.float(), b.float())
            return to["out"].copy_(product) if "out" in to else product.to(to.get("out_dtype", a.dtype))

        monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(fused_blocks, "_QUERIES_AT_ONCE", 16)
    torch.manual_seed(0)
    attention = Attention(288, heads=1, dim_head=288, residual_connection=True, bias=True, norm_num_groups=8)
    holder = nn.ModuleList([attention.to(DEVICE, torch.bfloat16).eval().requires_grad_(False)])
    pictures = torch.randn(2, 288, 6, 5, device=DEVICE, dtype=torch.bfloat16)
    wanted, exact = holder[0](pictures), copy.deepcopy(attention).float()(pictures.float())
    fuse(holder, least_channels=1)
    assert type(attention.processor) is WideAttention
    got = holder[0](pictures)
    errors = [(each.float() - exact).norm() / exact.norm() for each in (wanted, got)]
    # The interpreter cuts bfloat16 off where PyTorch rounds it.
    assert errors[1] < errors[0] * (1.5 if HAS_GPU else 3)
    assert not WideAttention.fits(torch.float32, 1024)
    assert not WideAttention.fits(torch.bfloat16, 1 << 16)
    unfuse(holder)
    assert torch.equal(holder[0](pictures), wanted)
