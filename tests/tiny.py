"""Real diffusers pipelines at toy size: the classes are the real ones, the weights are random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."


def make_tokenizer(folder: Path, limit: int = 77) -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are letters."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=limit)


def make_text_config(projection: int = WIDTH, width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=2 * len(_LETTERS) + 2,
        bos_token_id=2 * len(_LETTERS),
        eos_token_id=2 * len(_LETTERS) + 1,
        pad_token_id=2 * len(_LETTERS) + 1,
        projection_dim=projection,
    )


def make_vae(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[16, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        **config,
    )


def make_unet(attends: tuple[bool, bool] = (False, True), **config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        norm_num_groups=8,
        **config,
    )


def make_lcm(folder: Path, seed: int = 0, kind: type = StableDiffusionPipeline) -> Path:
    """A latent consistency model: guidance is an input of the UNet, and its scheduler adds noise between steps.

    Args:
        kind: Pipeline class that it is stored as.
    """
    whole = StableDiffusionPipeline.from_pretrained(make_sd(folder / "plain", seed), safety_checker=None)
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_config({**whole.unet.config, "time_cond_proj_dim": 8})
    # Zero as it is made, for training; here it has to show.
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight)
    scheduler = LCMScheduler.from_config(whole.scheduler.config)
    parts = {**whole.components, "unet": unet, "scheduler": scheduler}
    pipeline = kind(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def make_sd(folder: Path, seed: int = 0, width: int = WIDTH, attends: tuple[bool, bool] = (False, True)) -> Path:
    """A Stable Diffusion 1.x pipeline folder, 32 x 32 px, about 0.1 M parameters.

    Args:
        width: Of the text encoder.
        attends: Levels of the UNet that look at the text.
    """
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(make_text_config(width=width)),
        tokenizer=make_tokenizer(folder / "words"),
        unet=make_unet(attends, cross_attention_dim=width, attention_head_dim=2),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def make_sdxl(folder: Path, seed: int = 0) -> Path:
    """An SDXL pipeline folder, 32 x 32 px."""
    torch.manual_seed(seed)
    unet = make_unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(make_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(make_text_config()),
        tokenizer=make_tokenizer(folder / "words"),
        tokenizer_2=make_tokenizer(folder / "words"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    )
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"
