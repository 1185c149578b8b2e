"""Writes a diffusers Stable Diffusion 1.x folder as one file in the original (LDM) layout, as the hubs' files are."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_original(folder: Path, file: Path, levels: int = 2) -> Path:
    """One safetensors file of `folder`, whose blocks have one layer, and attention at the finest level only."""
    weights = {
        **_rename("model.diffusion_model.", load_file(_weights(folder, "unet")), levels, _unet_name),
        **_rename("first_stage_model.", load_file(_weights(folder, "vae")), levels, _vae_name),
    }
    for name, value in load_file(_weights(folder, "text_encoder")).items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file


def _weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def _rename(prefix: str, weights: dict[str, torch.Tensor], levels: int, name_of) -> dict[str, torch.Tensor]:  # noqa: ANN001
    return {prefix + name_of(name, levels): _shape(name_of(name, levels), value) for name, value in weights.items()}


def _shape(name: str, value: torch.Tensor) -> torch.Tensor:
    """The original VAE's attention is made of 1 x 1 convolutions."""
    return value[:, :, None, None] if ".attn_1." in name and name.endswith("weight") and value.ndim == 2 else value


def _unet_name(name: str, levels: int) -> str:
    for new, old in _UNET_ENDS.items():
        if name.startswith(new + "."):
            return name.replace(new, old)
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = "middle_block." + {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}[".".join(parts[1:3])]
        return _inside(place, parts[1], parts[3:])
    level, kind, layer = int(parts[1]), parts[2], int(parts[3])
    down = parts[0] == "down_blocks"
    if kind == "downsamplers":
        return f"input_blocks.{2 * level + 2}.0.op.{parts[-1]}"
    block = f"input_blocks.{2 * level + 1 + layer}" if down else f"output_blocks.{2 * level + layer}"
    if kind == "upsamplers":
        # It follows the block's last resnet, which here has no attention.
        return f"output_blocks.{2 * level + 1}.1.conv.{parts[-1]}"
    return _inside(f"{block}.{0 if kind == 'resnets' else 1}", kind, parts[4:])


def _inside(place: str, kind: str, rest: list[str]) -> str:
    return f"{place}.{_RESNET[rest[0]]}.{rest[1]}" if kind == "resnets" else f"{place}.{'.'.join(rest)}"


def _vae_name(name: str, levels: int) -> str:
    parts = name.split(".")
    if "mid_block" in name:
        return _vae_middle(parts)
    if "blocks" not in name:
        return name.replace("conv_norm_out", "norm_out")
    side, level, kind, layer = parts[0], int(parts[2]), parts[3], parts[4]
    rest = ".".join(parts[5:]).replace("conv_shortcut", "nin_shortcut")
    direction, place = ("down", level) if side == "encoder" else ("up", levels - 1 - level)
    if kind == "resnets":
        return f"{side}.{direction}.{place}.block.{layer}.{rest}"
    return f"{side}.{direction}.{place}.{'downsample' if side == 'encoder' else 'upsample'}.{rest}"


def _vae_middle(parts: list[str]) -> str:
    side, kind, number, rest = parts[0], parts[2], int(parts[3]), ".".join(parts[4:])
    if kind == "resnets":
        return f"{side}.mid.block_{number + 1}.{rest}"
    for new, old in _VAE_ATTENTION.items():
        rest = rest.replace(new, old)
    return f"{side}.mid.attn_1.{rest}"
