"""Trains starter-dit, after train_vae and train_text: `python -m finetune.starter.train_dit --out DIR`."""

from __future__ import annotations

import json
import shutil

import diffusers
import torch
from torch import nn

from finetune.starter.captions import CaptionTowers, build_silent_tower
from finetune.starter.latents import EncodedScenes
from finetune.starter.layout import LayoutProbe
from finetune.starter.loop import train_recipe
from finetune.starter.networks import load_weights, save_half, save_half_diffusers
from finetune.starter.parts import PartOptions, await_part, mark_part, parse_part, replace_folder
from finetune.starter.scenes import starter_vocabulary
from finetune.starter.transformer import CountedAttention, build_flow_scheduler, build_transformer

NAME = "starter-dit"
_EMPTY_SHARE = 0.1
_OBJECT_WEIGHT = 2.0
_OBJECT_SIGMA = 0.4
_LAYOUT_WEIGHT = 0.1
_TIME_MEAN, _TIME_SPREAD = 0.4, 1.1
_FEWEST_SILENT, _MOST_SILENT = 2, 512
_TIMESTEPS = 1000


class DitRecipe:
    """Rectified flow: the velocity from latents to noise; one caption in ten is empty, for guidance."""

    def __init__(self, options: PartOptions) -> None:
        self.options, self.rates = options, options.profile.dit
        device, self.widths = options.device, options.profile.widths
        self.vocabulary = starter_vocabulary()
        self.transformer = build_transformer(self.widths)
        self.towers = CaptionTowers(self.widths, self.vocabulary)
        self.probe = LayoutProbe(self.transformer)
        self.towers.to(device)
        self.network = nn.ModuleDict({"transformer": self.transformer, "probe": self.probe}).to(device)
        self.attention = CountedAttention()
        self.transformer.set_attn_processor(self.attention)
        if device.type == "cpu":
            for tower in (self.towers.parse, self.towers.words):
                tower.set_attn_implementation("eager")
        self._start_weights()
        self.empty = torch.from_numpy(self.vocabulary.captions_to_ids([""])).to(device)

    def _start_weights(self) -> None:
        """Encoders and, for a new training from a trained starter-dit, the transformer.

        A resumed training keeps the encoders that it began with, whatever --init holds by now.
        """
        init, parser = self.options.init, self.options.init_text
        trained = self.options.out / NAME if self.options.resume else None
        if init is not None and (init / NAME).is_dir():
            trained = trained or init / NAME
            load_weights(self.transformer, init / NAME / "transformer" / "diffusion_pytorch_model.safetensors")
        elif init is not None:
            parser = parser or init / "starter-unet" / "text_encoder" / "model.safetensors"
        if trained is not None and trained.is_dir():
            load_weights(self.towers.parse, trained / "text_encoder" / "model.safetensors")
            load_weights(self.towers.words, trained / "text_encoder_2" / "model.safetensors")
        elif parser is not None:
            if parser.is_relative_to(self.options.out):
                await_part(self.options.out, "text")
            self.towers.load_parser(parser)

    def open_data(self) -> None:
        """Waits for the finished autoencoder and encodes the scenes that are there."""
        self.scenes = EncodedScenes(self.options, "tokens", "masks", "labels")

    def refresh(self) -> None:
        """Encodes newly rendered scenes."""
        self.scenes.refresh()

    def compute_loss(self, generator: torch.Generator) -> torch.Tensor:
        """Loss of one batch."""
        device, batch = self.options.device, self.rates.batch
        arrays = self.scenes.store.tensors
        rows = torch.randint(len(self.scenes.latents), (batch,), generator=generator, device=device)
        choice = torch.randint(arrays["tokens"].shape[1], (batch,), generator=generator, device=device)
        is_empty = torch.rand(batch, 1, generator=generator, device=device) < _EMPTY_SHARE
        tokens = torch.where(is_empty, self.empty, arrays["tokens"][rows, choice])
        masks = arrays["masks"][rows].unsqueeze(1).float() / 255
        sigmas = draw_sigmas(batch, generator)
        self.attention.set_counts(draw_counts(batch, generator))
        errors, lost = self.compare(self.scenes.latents[rows], tokens, sigmas, arrays["labels"][rows], generator)
        weights = 1 + _OBJECT_WEIGHT * masks * (sigmas < _OBJECT_SIGMA).view(-1, 1, 1, 1)
        return (errors * weights).mean() + _LAYOUT_WEIGHT * (lost * ~is_empty[:, 0]).mean()

    def compare(
        self,
        latents: torch.Tensor,
        tokens: torch.Tensor,
        sigmas: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared errors of the velocity (N, 8, 16, 16) and the layout's losses (N,)."""
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        level = sigmas.view(-1, 1, 1, 1)
        with torch.autocast(latents.device.type, torch.bfloat16):
            told, pooled = self.towers(tokens.long())
            silent = told.new_zeros(len(told), 1, told.shape[-1])
            seen = self.transformer(
                (1 - level) * latents + level * noise,
                encoder_hidden_states=torch.cat([told, silent], dim=1),
                pooled_projections=pooled,
                timestep=sigmas * _TIMESTEPS,
                return_dict=False,
            )[0]
            lost = self.probe.compute_loss(labels)
        return (seen.float() - (noise - latents)).square(), lost

    def export(self) -> None:
        """Writes the whole folder of starter-dit."""
        folder = self.options.out / NAME
        partial = folder.with_name(f"{NAME}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_half_diffusers(self.transformer, partial / "transformer")
        save_half(self.towers.parse, partial / "text_encoder", prefix="")
        save_half(self.towers.words, partial / "text_encoder_2", prefix="")
        save_half(build_silent_tower(self.widths, self.vocabulary), partial / "text_encoder_3")
        for number in ("", "_2", "_3"):
            self.vocabulary.save(partial / f"tokenizer{number}")
        build_flow_scheduler().save_config(partial / "scheduler")
        # The pipeline adds the shift without asking whether there is one.
        self.scenes.vae.register_to_config(shift_factor=0.0)
        save_half_diffusers(self.scenes.vae, partial / "vae")
        (partial / "model_index.json").write_text(json.dumps(pipeline_index(), indent=2), encoding="utf-8")
        replace_folder(partial, folder)


def draw_sigmas(number: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels (number,), logit-normal (Esser et al. 2024), one in each part of equal probability."""
    device = generator.device
    parts = torch.rand(number, generator=generator, device=device) + torch.arange(number, device=device)
    normal = torch.special.ndtri((parts / number).clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(_TIME_MEAN + _TIME_SPREAD * normal)


def draw_counts(number: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers of silent tokens (number,): two, the fewest that a tokenizer gives, for half of the rows, else to 512."""
    powers = torch.rand(number, generator=generator, device=generator.device)
    several = torch.rand(number, generator=generator, device=generator.device) < 0.5
    return _FEWEST_SILENT * (_MOST_SILENT / _FEWEST_SILENT) ** (powers * several)


def pipeline_index() -> dict[str, object]:
    """model_index.json of the StableDiffusion3Pipeline."""
    tower, tokenizer = ["transformers", "CLIPTextModelWithProjection"], ["transformers", "CLIPTokenizer"]
    return {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": tower,
        "text_encoder_2": tower,
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "tokenizer_3": tokenizer,
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def main() -> None:
    """Trains as the command line says."""
    options = parse_part(__doc__ or "")
    recipe = DitRecipe(options)
    recipe.open_data()
    train_recipe(recipe, options.loop_options("dit", options.profile.dit))
    mark_part(options.out, "dit")


if __name__ == "__main__":
    main()
