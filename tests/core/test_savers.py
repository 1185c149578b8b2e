"""Step savers: nothing saved is the plain forward to the bit, something saved is what the papers define."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from diffusers.hooks import FirstBlockCacheConfig

from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.errors import ConfigError, ModelError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.dit import DiTFamily
from dgate_core.models.families.unet import UNetFamily
from dgate_core.models.profiles import StepSavers, find_profile
from dgate_core.models.savers.deep_cache import DeepCache
from dgate_core.models.savers.first_block_cache import FirstBlockCache
from dgate_core.models.savers.installing import apply_savers
from dgate_core.runs.spec import RunSpec
from tests.tiny import make_sd, make_sdxl
from tests.tiny_dit import make_flux, make_sd3

STEPS = 6
MAKERS: dict[str, Callable[[Path], Path]] = {"sd": make_sd, "sdxl": make_sdxl}


def load_unet(folder: Path) -> Any:
    return UNetFamily().load(find_checkpoint(str(folder)), LoadOptions("cpu", "float32"))


def make_inputs(unet: UNet2DConditionModel, rows: int, step: int, side: int = 16) -> dict[str, Any]:
    """Samples that change a little from step to step, as in denoising."""
    draw = torch.Generator().manual_seed(0)
    samples = torch.randn(rows, 4, side, side, generator=draw)
    drift = torch.randn(rows, 4, side, side, generator=draw)
    text = torch.randn(rows, 7, unet.config.cross_attention_dim, generator=draw)
    inputs = {"sample": samples + 0.1 * step * drift, "timestep": 900 - 100 * step, "encoder_hidden_states": text}
    if unet.config.addition_embed_type:
        size = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * rows)
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(rows, 32, generator=draw), "time_ids": size}
    return inputs


def replay_deep_layers(unet: UNet2DConditionModel, interval: int) -> Callable[[int], None]:
    """DeepCache as its definition says it: in a short step every layer but the last gives what it gave before.

    Returns a function that is told the number of the step.
    """
    state = {"short": False}

    def remember(module: torch.nn.Module, _: Any, output: Any) -> Any:
        if state["short"]:
            return module.kept_output
        module.kept_output = output
        return output

    last = unet.up_blocks[-1]
    fresh = [last.resnets[-1], *([last.attentions[-1]] if hasattr(last, "attentions") else [])]
    for block in [*unet.down_blocks, *unet.up_blocks]:
        lists = [getattr(block, name, None) or () for name in ("resnets", "attentions", "downsamplers", "upsamplers")]
        for layer in (each for layers in lists for each in layers if not any(each is one for one in fresh)):
            layer.register_forward_hook(remember)
    unet.mid_block.register_forward_hook(remember)
    return lambda step: state.update(short=step % interval != 0)


@pytest.mark.parametrize("kind", MAKERS)
@torch.inference_mode()
def test_deep_cache_of_interval_one_is_the_plain_forward_to_the_bit(kind: str, tmp_path: Path) -> None:
    unet = load_unet(MAKERS[kind](tmp_path)).unet
    other = copy.deepcopy(unet)
    cache = DeepCache(other, 1)
    cache.install()
    for side in (16, 18):  # 18 does not halve evenly at every level: sizes are forwarded
        cache.begin_batch(2)
        for step in range(3):
            inputs = make_inputs(unet, 2, step, side + side % 4 // 2)
            assert torch.equal(unet(**inputs).sample, other(**inputs).sample)


@torch.inference_mode()
def test_deep_cache_forwards_sizes_that_do_not_halve(tmp_path: Path) -> None:
    unet = load_unet(make_sd(tmp_path)).unet
    other = copy.deepcopy(unet)
    DeepCache(other, 1).install()
    inputs = make_inputs(unet, 1, 0, side=15)
    assert torch.equal(unet(**inputs).sample, other(**inputs).sample)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("interval", [2, 3])
@torch.inference_mode()
def test_deep_cache_is_what_the_paper_defines(kind: str, interval: int, tmp_path: Path) -> None:
    unet = load_unet(MAKERS[kind](tmp_path)).unet
    other = copy.deepcopy(unet)
    plain = [unet(**make_inputs(unet, 2, step)).sample for step in range(STEPS)]
    tell = replay_deep_layers(unet, interval)
    cache = DeepCache(other, interval)
    cache.install()
    cache.begin_batch(2)
    for step in range(STEPS):
        tell(step)
        inputs = make_inputs(unet, 2, step)
        ours = other(**inputs).sample
        assert torch.equal(unet(**inputs).sample, ours)
        assert torch.equal(ours, plain[step]) == (step % interval == 0)


@torch.inference_mode()
def test_a_deeper_branch_is_nearer_to_the_plain_forward(tmp_path: Path) -> None:
    unet = load_unet(make_sdxl(tmp_path)).unet
    plain = [unet(**make_inputs(unet, 2, step)).sample for step in range(2)]
    errors = []
    for branch in range(4):
        other = copy.deepcopy(unet)
        cache = DeepCache(other, 2, branch)
        cache.install()
        cache.begin_batch(2)
        outputs = [other(**make_inputs(unet, 2, step)).sample for step in range(2)]
        errors.append(float((outputs[1] - plain[1]).abs().mean()))
    assert errors[0] > errors[1] > errors[-1] > 0


def test_a_profile_says_how_deep_a_short_step_goes(tmp_path: Path) -> None:
    folder = make_sdxl(tmp_path)
    savers = StepSavers(deep_cache_interval=2, deep_cache_branch=1)
    model = load_unet(folder)
    assert apply_savers(model, savers) == ("deep-cache-2-branch-1",)
    by_hand = load_unet(folder)
    cache = DeepCache(by_hand.unet, 2, 1)
    cache.install()
    by_hand.savers = (cache,)
    assert torch.equal(make_pictures(model, folder, 5.0), make_pictures(by_hand, folder, 5.0))
    with pytest.raises(ModelError, match="branch 9 is too deep for a UNet of 4 up layers"):
        apply_savers(load_unet(folder), StepSavers(deep_cache_interval=2, deep_cache_branch=9))


def test_turbo_on_cuda_saves_what_its_published_figures_save(tmp_path: Path) -> None:
    model = load_unet(make_sdxl(tmp_path))
    assert apply_savers(model, find_profile("turbo", "cuda").savers) == ("deep-cache-2-branch-2",)


def test_deep_cache_refuses_what_it_does_not_know() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        norm_num_groups=8,
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    with pytest.raises(ModelError, match="AttnDownBlock2D"):
        DeepCache(unet, 2)


def make_transformer(seed: int = 0) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def make_flux_inputs(rows: int, step: int, first: int = 0) -> dict[str, Any]:
    """Pictures `first` and on, each with a drift of its own strength, so that they decide differently."""
    draws = [torch.Generator().manual_seed(first + row) for row in range(rows)]
    hidden = [torch.randn(9, 16, generator=draw) for draw in draws]
    drift = [0.15 * (first + row) * step * torch.randn(9, 16, generator=draw) for row, draw in enumerate(draws)]
    return {
        "hidden_states": torch.stack(hidden) + torch.stack(drift),
        "encoder_hidden_states": torch.stack([torch.randn(5, 32, generator=draw) for draw in draws]),
        "pooled_projections": torch.stack([torch.randn(32, generator=draw) for draw in draws]),
        "timestep": torch.full([rows], 1 - step / 10),
        "img_ids": torch.zeros(9, 3),
        "txt_ids": torch.zeros(5, 3),
    }


def run_steps(transformer: Any, cache: FirstBlockCache, rows: int, first: int = 0) -> list[torch.Tensor]:
    cache.begin_batch(rows)
    outputs = [transformer(**make_flux_inputs(rows, step, first)).sample for step in range(STEPS)]
    cache.end_batch()
    return outputs


@torch.inference_mode()
def test_first_block_cache_of_one_picture_is_that_of_diffusers() -> None:
    ours, theirs = make_transformer(), make_transformer()
    theirs.enable_cache(FirstBlockCacheConfig(threshold=0.42))
    cache = FirstBlockCache(ours, 0.42)
    cache.install()
    with theirs.cache_context("one"):
        wanted = [theirs(**make_flux_inputs(1, step, 1)).sample for step in range(STEPS)]
    for mine, other in zip(run_steps(ours, cache, 1, 1), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert 0 < cache.share_computed < 1


@pytest.mark.parametrize("together", [False, True])
@torch.inference_mode()
def test_first_block_cache_decides_for_each_picture_alone(together: bool) -> None:
    transformer = make_transformer()
    cache = FirstBlockCache(transformer, 0.42, together=together)
    cache.install()
    alone = [run_steps(transformer, cache, 1, first) for first in range(4)]
    shares = cache.share_computed
    cache.computed = cache.seen = 0
    batch = run_steps(transformer, cache, 4)
    assert cache.share_computed == shares
    for step in range(STEPS):
        singles = torch.cat([outputs[step] for outputs in alone])
        torch.testing.assert_close(batch[step], singles, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_first_block_cache_leaves_names_and_an_idle_forward_alone() -> None:
    transformer, plain = make_transformer(), make_transformer()
    cache = FirstBlockCache(transformer, 0.3)
    cache.install()
    assert list(transformer.state_dict()) == list(plain.state_dict())
    inputs = make_flux_inputs(2, 1)
    assert torch.equal(transformer(**inputs).sample, plain(**inputs).sample)
    cache.begin_batch(2)
    assert torch.equal(transformer(**inputs).sample, plain(**inputs).sample), "a first step is computed"


@torch.inference_mode()
def test_first_block_cache_knows_blocks_that_give_the_picture_alone() -> None:
    torch.manual_seed(0)
    config = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3}
    transformer = PixArtTransformer2DModel(
        **config, cross_attention_dim=32, sample_size=8, caption_channels=16, use_additional_conditions=False
    ).eval()
    # So that the first block moves with its input, and the last layer with the blocks.
    inputs = {"encoder_hidden_states": torch.randn(2, 5, 16), "encoder_attention_mask": torch.ones(2, 5)}
    drift = torch.randn(2, 4, 8, 8) * torch.tensor([0.01, 3.0]).view(2, 1, 1, 1)
    cache = FirstBlockCache(transformer, 0.2)
    cache.install()
    start = torch.randn(2, 4, 8, 8)

    def run(rows: slice) -> list[torch.Tensor]:
        told = {name: value[rows] for name, value in inputs.items()}
        cache.begin_batch(len(start[rows]))
        return [
            transformer(
                (start + step * drift)[rows],
                timestep=torch.full([len(start[rows])], 500 - step),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                **told,
            ).sample
            for step in range(3)
        ]

    both = run(slice(0, 2))
    assert cache.computed < cache.seen
    for row in range(2):
        for together, alone in zip(both, run(slice(row, row + 1)), strict=True):
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("together", [False, True])
@torch.inference_mode()
def test_first_block_cache_knows_later_blocks_that_take_text_and_picture_in_one(together: bool) -> None:
    """Flux.2: against a cache of one picture at a time, and computing everything against no cache at all."""
    torch.manual_seed(0)
    config = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    transformer = Flux2Transformer2DModel(
        in_channels=16, joint_attention_dim=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False, **config
    ).eval()
    plain = copy.deepcopy(transformer)
    cache = FirstBlockCache(transformer, 0.3, together=together)
    cache.install()

    def make(rows: int, step: int, first: int) -> dict[str, Any]:
        inputs = {**make_flux_inputs(rows, step, first), "img_ids": torch.zeros(9, 4), "txt_ids": torch.zeros(5, 4)}
        del inputs["pooled_projections"]
        # Random modulations move a lot with time: a step is a short one.
        return {**inputs, "timestep": torch.full([rows], 1 - step / 5000)}

    def run(rows: int, first: int) -> list[torch.Tensor]:
        cache.begin_batch(rows)
        return [transformer(**make(rows, step, first)).sample for step in range(STEPS)]

    alone = [run(1, first) for first in range(4)]
    assert 0 < cache.share_computed < 1
    for step, batch in enumerate(run(4, 0)):
        torch.testing.assert_close(batch, torch.cat([outputs[step] for outputs in alone]), rtol=1e-4, atol=1e-5)
    cache.threshold = 0.0
    for step, outputs in enumerate(run(2, 1)):
        assert torch.equal(outputs, plain(**make(2, step, 1)).sample), "without a threshold every step is computed"


@torch.inference_mode()
def test_a_pattern_takes_the_place_of_the_threshold() -> None:
    transformer = make_transformer()
    cache = FirstBlockCache(transformer, 0.1, pattern=(True, False, False))
    cache.install()
    run_steps(transformer, cache, 2, 3)
    assert (cache.computed, cache.seen) == (4, 12)
    assert cache.name == "first-block-1-of-3"


def make_pictures(model: Any, folder: Path, guidance: float, rows: int = 3) -> torch.Tensor:
    key = BatchKey(str(folder), 32, 32, STEPS, "default", guidance)
    prompts = [{"prompt": "boat" * (n + 1), "negative_prompt": "fog", "seed": n} for n in range(rows)]
    [batch] = Generator(model, RunSpec(), GenerateOptions(batch_size=rows)).generate(prompts, key)
    assert batch.pictures is not None, batch.error
    return batch.pictures.pixels.int()


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
def test_savers_off_change_no_pixel_and_batches_forget(kind: str, tmp_path: Path) -> None:
    is_unet = kind in MAKERS
    folder = {**MAKERS, "sd3": make_sd3, "flux": make_flux}[kind](tmp_path)
    family: Any = UNetFamily if is_unet else DiTFamily
    model = family().load(find_checkpoint(str(folder)), LoadOptions("cpu", "float32"))
    plain = make_pictures(model, folder, 5.0)
    assert apply_savers(model, StepSavers()) == ()
    assert torch.equal(make_pictures(model, folder, 5.0), plain)
    names = apply_savers(model, StepSavers(deep_cache_interval=2, first_block_threshold=0.5, guidance_stop=0.5))
    assert names == ("deep-cache-2" if is_unet else "first-block-0.5", "guidance-0.5")
    saved = make_pictures(model, folder, 5.0)
    assert torch.equal(make_pictures(model, folder, 5.0), saved), "the second batch starts from nothing"
    assert not torch.equal(saved, plain)


def test_guidance_that_never_stops_early_is_plain_and_none_is_no_guidance(tmp_path: Path) -> None:
    folder = make_sd(tmp_path)
    model = load_unet(folder)
    unguided = make_pictures(model, folder, 1.0)
    guided = make_pictures(model, folder, 6.0)
    model.guidance_stop = 1.0
    assert torch.equal(make_pictures(model, folder, 6.0), guided)
    model.guidance_stop = 0.01
    assert (make_pictures(model, folder, 6.0) - unguided).abs().max() <= 1
    model.guidance_stop = 0.7
    between = make_pictures(model, folder, 6.0)
    assert 0 < (between - guided).abs().float().mean() < (unguided - guided).abs().float().mean()


@pytest.mark.parametrize(
    "savers",
    [
        StepSavers(deep_cache_interval=0),
        StepSavers(deep_cache_branch=-1),
        StepSavers(first_block_threshold=1.5),
        StepSavers(guidance_stop=0.0),
    ],
)
def test_values_out_of_range_are_refused(savers: StepSavers, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        apply_savers(load_unet(make_sd(tmp_path)), savers)
