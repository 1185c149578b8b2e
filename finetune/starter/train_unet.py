"""Trains the UNet and its text encoder, after train_vae: `python -m finetune.starter.train_unet --out DIR`."""

from __future__ import annotations

import json
import shutil

import diffusers
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from finetune.starter.latents import EncodedScenes
from finetune.starter.loop import train_recipe
from finetune.starter.networks import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    build_sampler,
    build_scheduler,
    build_text_encoder,
    build_unet,
    load_weights,
    save_half,
    save_half_diffusers,
)
from finetune.starter.parts import PartOptions, await_part, compile_networks, mark_part, parse_part, replace_folder
from finetune.starter.positions import PositionProbe
from finetune.starter.scenes import starter_vocabulary

_EMPTY_SHARE = 0.1
_OBJECT_WEIGHT = 2.0
_OBJECT_TIME = 250
_POSITION_WEIGHT = 0.3


class UnetRecipe:
    """Predicts v (Salimans and Ho 2022) of latents computed once; one caption in ten is empty, for guidance."""

    def __init__(self, options: PartOptions) -> None:
        self.options = options
        self.rates = options.profile.unet
        device, widths = options.device, options.profile.widths
        self.vocabulary = starter_vocabulary()
        self.unet = build_unet(widths).to(device, memory_format=torch.channels_last)
        self.text = build_text_encoder(widths, self.vocabulary).to(device)
        self.probe = PositionProbe(self.unet).to(device)
        self.network = nn.ModuleDict({"unet": self.unet, "text": self.text, "probe": self.probe})
        if device.type == "cpu":
            # The backward pass of PyTorch's fused attention takes two thirds of a step on a CPU.
            self.unet.set_attn_processor(AttnProcessor())
            self.text.set_attn_implementation("eager")
        if options.init_text is not None:
            if options.init_text.is_relative_to(options.out):
                await_part(options.out, "text")
            load_weights(self.text, options.init_text)
        if options.init is not None:
            folder = options.init / "starter-unet"
            load_weights(self.unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
            load_weights(self.text, folder / "text_encoder" / "model.safetensors")
        self.signal, self.noise = noise_levels(device)
        self.empty = torch.from_numpy(self.vocabulary.captions_to_ids([""])).to(device)

    def compile(self) -> None:
        """Compiles the UNet on noise, while the autoencoder is still being trained."""
        rows, device = self.rates.batch, self.options.device
        latents = torch.randn(rows, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, device=device)
        generator = torch.Generator(device).manual_seed(0)
        masks = torch.zeros(rows, 1, LATENT_SIZE, LATENT_SIZE, device=device)
        compile_networks(
            "unet", (self.unet,), lambda: self.compare(latents, self.empty.expand(rows, -1), masks, generator)
        )
        self.text.zero_grad(set_to_none=True)

    def open_data(self) -> None:
        """Waits for the finished autoencoder and encodes the scenes that are there."""
        self.scenes = EncodedScenes(self.options, "tokens", "masks")

    def compute_loss(self, generator: torch.Generator) -> torch.Tensor:
        """Loss of one batch."""
        device, batch = self.options.device, self.rates.batch
        latents, told = self.scenes.latents, self.scenes.store.tensors
        rows = torch.randint(len(latents), (batch,), generator=generator, device=device)
        choice = torch.randint(told["tokens"].shape[1], (batch,), generator=generator, device=device)
        empty = torch.rand(batch, 1, generator=generator, device=device) < _EMPTY_SHARE
        tokens = torch.where(empty, self.empty, told["tokens"][rows, choice])
        masks = told["masks"][rows].unsqueeze(1).float() / 255
        return self.compare(latents[rows], tokens, masks, generator)

    def compare(
        self, latents: torch.Tensor, tokens: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Mean squared error of v at random times, one in each equal part of the schedule.

        Cells with objects count more, but only where little noise is left: while it is open where an object will be,
        weighing by where it was would pull the picture towards more objects than the caption says.
        """
        number, device = len(latents), latents.device
        parts = torch.rand(number, generator=generator, device=device) + torch.arange(number, device=device)
        times = (parts * (len(self.signal) / number)).long().clamp(max=len(self.signal) - 1)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        signal, spread = (level[times].view(-1, 1, 1, 1) for level in (self.signal, self.noise))
        noisy = (signal * latents + spread * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            told = self.text(input_ids=tokens.long()).last_hidden_state
            seen = self.unet(noisy, times, encoder_hidden_states=told, return_dict=False)[0]
            lost = self.probe.compute_loss()
        errors = (seen.float() - (signal * noise - spread * latents)).square()
        weights = 1 + _OBJECT_WEIGHT * masks * (times < _OBJECT_TIME).view(-1, 1, 1, 1)
        return (errors * weights).mean() + _POSITION_WEIGHT * lost

    def refresh(self) -> None:
        """Encodes newly rendered scenes."""
        self.scenes.refresh()

    def export(self) -> None:
        """Writes every folder of starter-unet but the autoencoder's, which is there."""
        folder = self.options.out / "starter-unet"
        partial = folder.with_name("starter-unet.partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_half_diffusers(self.unet, partial / "unet")
        save_half(self.text, partial / "text_encoder", prefix="text_model.")
        self.vocabulary.save(partial / "tokenizer")
        build_sampler().save_config(partial / "scheduler")
        for part in sorted(partial.iterdir()):
            replace_folder(part, folder / part.name)
        (folder / "model_index.json").write_text(json.dumps(pipeline_index(), indent=2), encoding="utf-8")


def noise_levels(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the signal and of the noise at each of the scheduler's times."""
    products = build_scheduler().alphas_cumprod.to(device)
    return products.sqrt(), (1 - products).sqrt()


def pipeline_index() -> dict[str, object]:
    """model_index.json of the StableDiffusionPipeline."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def main() -> None:
    """Trains as the command line says."""
    options = parse_part(__doc__ or "")
    recipe = UnetRecipe(options)
    if options.compiles(recipe.rates):
        recipe.compile()
    recipe.open_data()
    train_recipe(recipe, options.loop_options("unet", options.profile.unet))
    mark_part(options.out, "unet")


if __name__ == "__main__":
    main()
