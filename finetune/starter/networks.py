"""Builds the networks of the starter models, ordinary diffusers and transformers classes, from a profile's widths."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerAncestralDiscreteScheduler, ModelMixin, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, PreTrainedModel

from finetune.starter.profiles import Widths
from finetune.starter.words import CONTEXT_LENGTH, WordVocabulary

PICTURE_SIZE = 64
LATENT_SIZE = 16
LATENT_CHANNELS = 8
PATCH_SIZE = 8
CLIP_MEAN = (0.5, 0.5, 0.5)
CLIP_STD = (0.5, 0.5, 0.5)


def build_vae(widths: Widths) -> AutoencoderKL:
    """Autoencoder of 64 px pictures in [-1, 1] to latents (8, 16, 16)."""
    levels = len(widths.vae)
    return AutoencoderKL(
        block_out_channels=widths.vae,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=PICTURE_SIZE,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_unet(widths: Widths) -> UNet2DConditionModel:
    """Denoiser of latents (8, 16, 16), with cross-attention to the caption on the levels that attend."""
    attends = widths.unet_attends
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=widths.unet,
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        layers_per_block=1,
        cross_attention_dim=widths.text,
        # diffusers reads this entry as the number of heads of each level.
        attention_head_dim=tuple(max(1, width // widths.head) for width in widths.unet),
    )


def build_text_encoder(widths: Widths, vocabulary: WordVocabulary) -> CLIPTextModel:
    """Text encoder of the UNet, trained from nothing together with it."""
    return CLIPTextModel(CLIPTextConfig(**text_settings(widths.text, widths.text_layers, vocabulary)))


def build_clip(widths: Widths, vocabulary: WordVocabulary) -> CLIPModel:
    """CLIP of 64 px pictures in patches of 8 px, with its own small text tower."""
    vision = {
        "hidden_size": widths.clip_vision,
        "intermediate_size": 4 * widths.clip_vision,
        "num_hidden_layers": widths.clip_vision_layers,
        "num_attention_heads": max(1, widths.clip_vision // 32),
        "image_size": PICTURE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    text = text_settings(widths.clip_text, widths.clip_text_layers, vocabulary)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=widths.clip_text))


def text_settings(width: int, layers: int, vocabulary: WordVocabulary) -> dict[str, int]:
    """Settings of a CLIPTextConfig for the postcard vocabulary."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 32),
        "vocab_size": len(vocabulary.tokens),
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": vocabulary.end_id - 1,
        "eos_token_id": vocabulary.end_id,
        "pad_token_id": vocabulary.end_id,
    }


def build_scheduler() -> DDIMScheduler:
    """DDIM with v-prediction and zero terminal SNR (Lin et al. 2023), so that dark and bright skies are reached."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def build_sampler() -> EulerAncestralDiscreteScheduler:
    """The scheduler that ships: fresh noise at each step mends what the steps before drew twice or left half-way."""
    return EulerAncestralDiscreteScheduler.from_config(build_scheduler().config)


def choose_device(name: str | None = None) -> torch.device:
    """The named device, else CUDA when there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def save_half(network: PreTrainedModel, folder: Path, prefix: str = "", opened_as: torch.dtype = torch.float32) -> None:
    """Writes a transformers network as fp16 safetensors, each key under `prefix` when it does not begin with it.

    Its config names `opened_as`, for transformers opens a network in the dtype that stands there, while diffusers opens
    its own in float32 whatever the files hold: the parts of a pipeline must agree.

    CLIPTextModel's keys lost `text_model.` in transformers 5, which reads both spellings; version 4 reads the old.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = network.config
    config.dtype = opened_as
    config.save_pretrained(folder)
    weights = {
        (key if key.startswith(prefix) else prefix + key): value.detach().to("cpu", torch.float16).contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("position_ids")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written["architectures"] = [type(network).__name__]
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True), encoding="utf-8")


def save_half_diffusers(network: ModelMixin, folder: Path) -> None:
    """Writes a diffusers network as fp16 safetensors beside its config."""
    network.save_config(folder)
    weights = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in network.state_dict().items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def load_weights(network: nn.Module, file: Path) -> None:
    """Loads safetensors into a network of the same shape, whatever the precision and the old or new CLIP spelling."""
    own = network.state_dict()
    weights = load_file(file)
    renamed = {(key if key in own else key.removeprefix("text_model.")): value for key, value in weights.items()}
    network.load_state_dict(renamed)
