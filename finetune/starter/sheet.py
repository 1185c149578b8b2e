"""A sheet of generated pictures with their captions, to be looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PICTURE = 128
_CELL = (152, 196)
_COLUMNS = 8


def draw_sheet(file: Path, examples: Sequence[tuple[np.ndarray, str, bool]]) -> None:
    """Writes a PNG with each picture, its caption, and a red frame where the judge reads something else."""
    rows = -(-len(examples) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], rows * _CELL[1]), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(9)
    for number, (picture, caption, right) in enumerate(examples):
        x, y = (number % _COLUMNS) * _CELL[0] + 12, (number // _COLUMNS) * _CELL[1] + 6
        if not right:
            pen.rectangle((x - 3, y - 3, x + _PICTURE + 2, y + _PICTURE + 2), fill=(210, 40, 40))
        sheet.paste(Image.fromarray(picture).resize((_PICTURE, _PICTURE), Image.Resampling.BICUBIC), (x, y))
        pen.multiline_text((x - 6, y + _PICTURE + 5), textwrap.fill(caption, 30), "black", font, spacing=1)
    sheet.save(file, optimize=True)
