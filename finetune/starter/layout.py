"""An auxiliary loss that makes the transformer's middle layer know what belongs where; thrown away after training.

Read-outs of each third's kind, colour and size at the image tokens give the early layers a target that says which words
matter for which tokens, long before the denoising loss would (the idea of REPA, Yu et al. 2024, with the drawn scene
itself as the representation).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import nn
from torch.nn import functional

from dgate_core.postcards import COLOURS, OBJECTS, SIZES
from finetune.starter.scenes import SLOT_LABELS

THIRDS = 3
_QUESTIONS = (1 + len(OBJECTS), len(COLOURS), 1 + len(SIZES))
_UNASKED = -1


class LayoutProbe(nn.Module):
    """Reads what each third of the picture shows from the image tokens after a middle block."""

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        width = transformer.inner_dim
        self.norm = nn.LayerNorm(width)
        self.weigh = nn.Linear(width, THIRDS)
        self.answer = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, sum(_QUESTIONS)))
        self.seen: torch.Tensor | None = None
        blocks = transformer.transformer_blocks
        blocks[len(blocks) // 2].register_forward_hook(self._remember)

    def _remember(self, _module: nn.Module, _arguments: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.seen = output[1]

    def compute_loss(self, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy (N,) of labels int8 (N, 14), from the features of the transformer's last forward pass."""
        assert self.seen is not None, "the transformer has not run"
        tokens, self.seen = self.norm(self.seen), None
        attended = self.weigh(tokens).float().softmax(dim=1).to(tokens.dtype)
        thirds = attended.transpose(1, 2) @ tokens
        answers = self.answer(thirds).float().split(list(_QUESTIONS), dim=-1)
        told = labels[:, 2:].long().view(len(labels), THIRDS, SLOT_LABELS)
        losses = [
            functional.cross_entropy(
                answer.flatten(0, 1), told[..., number].flatten(), ignore_index=_UNASKED, reduction="none"
            )
            for number, answer in enumerate(answers)
        ]
        return torch.stack(losses).sum(0).view(len(labels), THIRDS).mean(1)
