"""Trains the judge on softened renderings, never on generated pictures: `python -m finetune.starter.train_judge`."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file
from torch.nn import functional

from dgate_core.evaluation.metrics.attributes import JudgeNet, judge_names, split_logits
from finetune.starter.loop import train_recipe
from finetune.starter.parts import PartOptions, mark_part, parse_part, replace_folder
from finetune.starter.softening import soften_pixels
from finetune.starter.store import pictures_to_pixels

_MUTED = -1


class JudgeRecipe:
    """Cross entropy of every question, on all pairs: a judge must know the held-out ones too."""

    def __init__(self, options: PartOptions) -> None:
        self.options = options
        self.rates = options.profile.judge
        self.store = options.open_store("pictures", "labels", held_out=True)
        self.network = JudgeNet(options.profile.widths.judge).to(options.device)
        self.network.to(memory_format=torch.channels_last)

    def compute_loss(self, generator: torch.Generator) -> torch.Tensor:
        """Loss of one batch."""
        rows = self.store.draw(generator, self.rates.batch)
        pixels = soften_pixels(pictures_to_pixels(self.store.tensors["pictures"][rows]), generator)
        labels = self.store.tensors["labels"][rows].long()
        with torch.autocast(pixels.device.type, torch.bfloat16):
            logits = self.network(pixels.contiguous(memory_format=torch.channels_last))
        questions = split_logits(logits.float())
        return torch.stack([_ask(answer, labels[:, n]) for n, answer in enumerate(questions)]).sum()

    def refresh(self) -> None:
        """Takes in newly rendered scenes."""
        self.store.refresh()

    def export(self) -> None:
        """Writes judge/."""
        folder = self.options.out / "judge"
        partial = folder.with_name("judge.partial")
        partial.mkdir(parents=True, exist_ok=True)
        weights = {key: value.to("cpu", torch.float16).contiguous() for key, value in self.network.state_dict().items()}
        save_file(weights, partial / "model.safetensors")
        config = {"architecture": "JudgeNet", "width": self.network.width, "names": judge_names()}
        (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        replace_folder(partial, folder)


def _ask(answer: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the whole batch; where there is nothing to ask the share is zero."""
    return functional.cross_entropy(answer, labels, ignore_index=_MUTED, reduction="sum") / len(labels)


def main() -> None:
    """Trains as the command line says."""
    options = parse_part(__doc__ or "")
    train_recipe(JudgeRecipe(options), options.loop_options("judge", options.profile.judge))
    mark_part(options.out, "judge")


if __name__ == "__main__":
    main()
