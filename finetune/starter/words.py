"""A CLIP tokenizer in which every word of the postcard vocabulary is one token.

Byte-pair merges are learned on the vocabulary itself until every word is whole (Sennrich et al. 2016), so the
files are ordinary CLIP ones and any other text still splits into bytes instead of failing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 40
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+")


@dataclass(frozen=True, slots=True)
class WordVocabulary:
    """Tokens and merges in the order in which CLIP's tokenizer reads them."""

    tokens: tuple[str, ...]
    """Token texts; the position is the token id."""
    merges: tuple[tuple[str, str], ...]
    """Byte-pair merges, most urgent first."""

    @property
    def end_id(self) -> int:
        """Id of the end token, which also pads."""
        return len(self.tokens) - 1

    def captions_to_ids(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids (N, CONTEXT_LENGTH) int16, as CLIPTokenizer gives them with padding and truncation.

        Raises KeyError for a word outside the vocabulary: training captions hold none.
        """
        index = {token: number for number, token in enumerate(self.tokens)}
        ids = np.full((len(captions), CONTEXT_LENGTH), self.end_id, dtype=np.int16)
        for row, caption in enumerate(captions):
            words = [index[piece + "</w>"] for piece in split_words(caption)]
            words = words[: CONTEXT_LENGTH - 2]
            ids[row, : len(words) + 1] = [index[START], *words]
        return ids

    def save(self, folder: Path) -> None:
        """Writes vocab.json, merges.txt and the two tokenizer configs that transformers reads."""
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = {token: number for number, token in enumerate(self.tokens)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        specials = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH, "do_lower_case": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | specials, indent=2), encoding="utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2), encoding="utf-8")


def split_words(caption: str) -> list[str]:
    """Words and punctuation of a caption, in lower case, as CLIP's tokenizer splits them."""
    return _PIECES.findall(caption.lower())


def learn_vocabulary(words: Iterable[str]) -> WordVocabulary:
    """Byte-pair vocabulary that keeps each of `words` (and punctuation) as one token."""
    pieces = sorted({piece for word in words for piece in _PIECES.findall(word.lower())} | {",", "."})
    merges = _learn_merges(pieces)
    alphabet = _byte_characters()
    symbols = [*alphabet, *(character + "</w>" for character in alphabet)]
    tokens = dict.fromkeys([*symbols, *("".join(pair) for pair in merges), START, END])
    return WordVocabulary(tuple(tokens), tuple(merges))


def _learn_merges(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """Merges the most frequent pair again and again until every piece is a single symbol."""
    spellings = [[*piece[:-1], piece[-1] + "</w>"] for piece in pieces]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for spelling in spellings for pair in pairwise(spelling)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spellings = [_merge_pair(spelling, best) for spelling in spellings]
    return merges


def _merge_pair(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in spelling:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _byte_characters() -> list[str]:
    """The 256 printable stand-ins for bytes of GPT-2's byte-level encoding."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(hidden))]
