"""Prompts that calibrate a model must not be the prompts that judge it: an overlap is refused, not documented."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from dgate_core.errors import DgateError
from dgate_core.manifest.read import open_manifest

_SHOWN: Final = 3
_WORD: Final = re.compile(r"\w+")


class PromptOverlapError(DgateError):
    """Calibration prompts that are evaluation prompts too."""

    code = "prompt_overlap"


def check_no_overlap(calibration: Iterable[str], evaluation: Iterable[str]) -> None:
    """Makes sure that no prompt is in both sets, however it is written.

    Raises:
        PromptOverlapError: counts the prompts in both and names the first of them, in the order of calibration.
    """
    judged = {normalise_prompt(prompt) for prompt in evaluation}
    shared = {key: prompt for prompt in calibration if (key := normalise_prompt(prompt)) in judged}
    if shared:
        first = ", ".join(repr(prompt) for prompt in list(shared.values())[:_SHOWN])
        more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
        raise PromptOverlapError(
            f"{len(shared)} calibration prompts are evaluation prompts: {first}{more}",
            "no prompt in both, whatever its case, spaces and punctuation",
            "take them out of the calibration prompts, or calibrate with suite:postcards-calibration",
        )


def normalise_prompt(prompt: str) -> str:
    """The words alone: `A red boat, at  sea.` is `a red boat at sea`."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(_WORD.findall(text)) or " ".join(text.split())


def read_prompts(manifest: Sequence[str]) -> Iterator[str]:
    """Every prompt of a manifest or suite, in order, rows without one left out.

    Raises:
        ManifestError: the manifest cannot be read.
    """
    for batch in open_manifest(manifest).read_batches():
        yield from (prompt for prompt in batch.columns["prompt"].to_pylist() if prompt)
