"""Prompt embeddings: each distinct prompt of a shard once, each negative prompt once per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgate_core.models.families.contract import LoadedModel, PromptEmbedding

KEPT_BYTES = 512 << 20
"""Of the device's memory, for prompts and for negative prompts each: 1,600 prompts of SDXL in 16 bit."""


class EmbeddingCache:
    """Embeddings of one model, on its device.

    Args:
        model: Encodes what is not known yet.
        one_by_one: Encode each prompt alone, so that its embedding never depends on its neighbours.
    """

    def __init__(self, model: LoadedModel, *, one_by_one: bool) -> None:
        self._model, self._one_by_one = model, one_by_one
        self._prompts: dict[str, PromptEmbedding] = {}
        self._negatives: dict[str, PromptEmbedding] = {}

    def forget_prompts(self) -> None:
        """Called between shards; negative prompts stay."""
        self._prompts.clear()

    def find_prompts(self, prompts: Sequence[str]) -> tuple[PromptEmbedding, ...]:
        """In the order of the prompts."""
        return self._find(self._prompts, prompts, self._model.encode_prompts)

    def find_negatives(self, prompts: Sequence[str]) -> tuple[PromptEmbedding, ...]:
        """In the order of the prompts."""
        return self._find(self._negatives, prompts, self._model.encode_negatives)

    def _find(
        self, known: dict[str, PromptEmbedding], prompts: Sequence[str], encode: Callable[..., list[PromptEmbedding]]
    ) -> tuple[PromptEmbedding, ...]:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if missing:
            known.update(zip(missing, encode(missing, one_by_one=self._one_by_one), strict=True))
        found = tuple(known[prompt] for prompt in prompts)
        _forget_oldest(known)
        return found


def _forget_oldest(known: dict[str, PromptEmbedding]) -> None:
    """Keeps the newest that fit; all embeddings of a model have one size."""
    each = next(iter(known.values())).count_bytes()
    for prompt in list(known)[: max(0, len(known) - KEPT_BYTES // each)]:
        del known[prompt]
