"""Trains the CLIP of the postcard world: `python -m finetune.starter.train_clip --profile gpu --out DIR`."""

from __future__ import annotations

import json

import torch
from torch.nn import functional

from finetune.starter.loop import train_recipe
from finetune.starter.networks import CLIP_MEAN, CLIP_STD, PICTURE_SIZE, build_clip, save_half
from finetune.starter.parts import PartOptions, mark_part, parse_part, replace_folder
from finetune.starter.scenes import starter_vocabulary
from finetune.starter.softening import soften_pixels
from finetune.starter.store import pictures_to_pixels

_LARGEST_SCALE = 4.6052  # log 100, as in CLIP


class ClipRecipe:
    """Contrast within the batch, with captions that are wrong in one thing as further negatives for every picture."""

    def __init__(self, options: PartOptions) -> None:
        self.options = options
        self.rates = options.profile.clip
        self.store = options.open_store("pictures", "tokens", "negatives", "signatures")
        self.network = build_clip(options.profile.widths, starter_vocabulary()).to(options.device)
        if options.device.type == "cpu":
            # The backward pass of PyTorch's fused attention is slow on a CPU.
            self.network.set_attn_implementation("eager")

    def compute_loss(self, generator: torch.Generator) -> torch.Tensor:
        """Loss of one batch."""
        rows = self.store.draw(generator, self.rates.batch)
        held = self.store.tensors
        pixels = soften_pixels(pictures_to_pixels(held["pictures"][rows]), generator)
        choice = torch.randint(held["tokens"].shape[1], rows.shape, generator=generator, device=rows.device)
        captions = torch.cat([held["tokens"][rows, choice], held["negatives"][rows].flatten(0, 1)]).long()
        with torch.autocast(pixels.device.type, torch.bfloat16):
            vision = self.network.vision_model(pixel_values=pixels).pooler_output
            told = self.network.text_model(input_ids=captions).pooler_output
            pictures = functional.normalize(self.network.visual_projection(vision).float(), dim=-1)
            texts = functional.normalize(self.network.text_projection(told).float(), dim=-1)
        scale = self.network.logit_scale.clamp(max=_LARGEST_SCALE).exp()
        return contrast(scale * pictures @ texts.T, held["signatures"][rows])

    def refresh(self) -> None:
        """Takes in newly rendered scenes."""
        self.store.refresh()

    def export(self) -> None:
        """Writes starter-clip/."""
        folder = self.options.out / "starter-clip"
        partial = folder.with_name("starter-clip.partial")
        save_half(self.network, partial, opened_as=torch.float16)
        starter_vocabulary().save(partial)
        (partial / "preprocessor_config.json").write_text(json.dumps(_image_settings(), indent=2), encoding="utf-8")
        replace_folder(partial, folder)


def contrast(logits: torch.Tensor, signatures: torch.Tensor) -> torch.Tensor:
    """Symmetric cross entropy of logits (N, N + K); pairs of equal scenes are neither right nor wrong."""
    number = len(logits)
    same = signatures[:, None] == signatures[None, :]
    same.fill_diagonal_(False)
    muted = functional.pad(same, (0, logits.shape[1] - number))
    logits = logits.masked_fill(muted, float("-inf"))
    right = torch.arange(number, device=logits.device)
    return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits[:, :number].T, right)) / 2


def _image_settings() -> dict[str, object]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": PICTURE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": PICTURE_SIZE, "width": PICTURE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }


def main() -> None:
    """Trains as the command line says."""
    options = parse_part(__doc__ or "")
    train_recipe(ClipRecipe(options), options.loop_options("clip", options.profile.clip))
    mark_part(options.out, "clip")


if __name__ == "__main__":
    main()
