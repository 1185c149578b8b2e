"""HPSv2 (Wu et al. 2023): `images/STYLE/00000.jpg`, and each style's prompts as it reads them, `prompts/STYLE.json`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from dgate_core.evaluation.exporters.export import ExportError, ExportOptions, Layout, Placement, Sample

STYLES: Final = ("anime", "concept-art", "paintings", "photo")
PROMPTS_OF_A_STYLE: Final = 800


def place_samples(samples: Sequence[Sample], options: ExportOptions) -> Placement:
    """A folder for each style, its pictures numbered as its prompts; one picture a prompt, the first.

    The pictures have a folder of their own, for HPSv2 takes every name beside the styles for a style.

    Raises:
        ExportError: a row has no style, or one that HPSv2 does not know.
    """
    firsts = [sample for sample in samples if sample.image_index == 0]
    by_style: dict[str, list[Sample]] = defaultdict(list)
    for sample in firsts:
        by_style[find_style(sample, options)].append(sample)
    pictures = {
        f"images/{style}/{number:05d}.jpg": sample
        for style, of_style in by_style.items()
        for number, sample in enumerate(of_style)
    }
    texts = {
        f"prompts/{style}.json": json.dumps([sample.prompt for sample in of_style], ensure_ascii=False)
        for style, of_style in by_style.items()
    }
    short = {style: len(of_style) for style, of_style in by_style.items() if len(of_style) != PROMPTS_OF_A_STYLE}
    warnings = tuple(
        f"{count} prompts of the style {style}: HPSv2 averages ten groups of 80, so its mean needs {PROMPTS_OF_A_STYLE}"
        for style, count in short.items()
    )
    return Placement(pictures, texts, len(samples) - len(firsts), warnings)


def find_style(sample: Sample, options: ExportOptions) -> str:
    """The row's own style, else the one given for all rows."""
    style = sample.columns.get("style") or options.style
    if style not in STYLES:
        raise ExportError(
            f"the row {sample.id!r} has the style {style!r}" if style else f"the row {sample.id!r} has no style",
            f"one of {', '.join(STYLES)} in the manifest's column `style`",
            "add the column, or give --style for all rows",
        )
    return str(style)


LAYOUT: Final = Layout(
    "hpsv2",
    columns=("style",),
    place=place_samples,
    tolerates_missing=False,
    command=(
        "python -c \"from hpsv2.evaluation import evaluate; evaluate('benchmark', '{out}/images', '{out}/prompts')\""
    ),
)
