"""Prompt embeddings: each distinct prompt of a shard once, each negative prompt once per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgate_core.models.families.contract import LoadedModel, PromptEmbedding

MAX_KEPT = 4096


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
        self.encoded = 0

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
        if len(known) + len(missing) > MAX_KEPT:
            known.clear()
            missing = list(dict.fromkeys(prompts))
        if missing:
            self.encoded += len(missing)
            known.update(zip(missing, encode(missing, one_by_one=self._one_by_one), strict=True))
        return tuple(known[prompt] for prompt in prompts)
