"""T2I-CompBench (Huang et al. 2023): `samples/PROMPT_000000.png`; its tools take the prompt from the file's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dgate_core.evaluation.exporters.export import ExportError, ExportOptions, Layout, Placement, Sample

_LONGEST_NAME: Final = 255


def place_samples(samples: Sequence[Sample], options: ExportOptions) -> Placement:  # noqa: ARG001 - as of every layout
    """All pictures in one folder, numbered through.

    Raises:
        ExportError: a prompt cannot be a file's name that its tools take apart again.
    """
    unfit = [(sample, reason) for sample in samples if (reason := explain_unfit(sample.prompt))]
    if unfit:
        sample, reason = unfit[0]
        raise ExportError(
            f"{len(unfit)} prompts cannot be file names; that of the row {sample.id!r} {reason}: {sample.prompt!r}",
            "prompts without _ and / that fit into a name of 255 bytes",
            "reword them in the manifest: T2I-CompBench reads the prompt from the name, up to its first _",
        )
    return Placement({f"samples/{sample.prompt}_{number:06d}.png": sample for number, sample in enumerate(samples)})


def explain_unfit(prompt: str) -> str:
    """Why a prompt cannot stand in a file's name; empty when it can."""
    if found := next((mark for mark in "_/\\" if mark in prompt), None):
        return f"holds {found!r}"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in prompt):
        return "holds a control character"
    if len(prompt.encode()) + len("_000000.png") > _LONGEST_NAME:
        return f"has {len(prompt.encode())} bytes"
    return ""


LAYOUT: Final = Layout(
    "t2i-compbench",
    columns=(),
    place=place_samples,
    tolerates_missing=True,
    command="cd BLIPvqa_eval && python BLIP_vqa.py --out_dir={out}",
)
