"""Rendered postcards as pictures of an evaluation, in memory and as files; and the weights that tests share."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgate_core.evaluation.pictures import Picture, decode_picture
from dgate_core.evaluation.results import EvaluationError
from dgate_core.evaluation.weights.fetch import fetch_weights
from dgate_core.evaluation.weights.store import has_weights
from dgate_core.postcards import render_scene, sample_scene


def make_postcards(count: int, seed: int, size: int = 64) -> list[Picture]:
    """Different postcards; equal arguments give equal files."""
    rng = np.random.default_rng(seed)
    return [encode_picture(str(number), render_scene(sample_scene(rng), size)) for number in range(count)]


def encode_picture(row_id: str, pixels: np.ndarray) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    data = file.getvalue()
    return Picture(row_id, hashlib.sha256(data).hexdigest(), lambda: decode_picture(data))


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> Path:
    folder.mkdir(parents=True)
    for picture in pictures:
        Image.fromarray(picture.read()).save(folder / f"{int(picture.row_id):05}.png")
    return folder


def need_weights(*names: str) -> None:
    """Fetches weights that are not here yet; without an index the test is left out, which pytest says."""
    missing = [name for name in names if not has_weights(name)]
    try:
        fetch_weights(missing, None, print)
    except EvaluationError as error:
        pytest.skip(f"{', '.join(missing)} cannot be fetched: {error.got}")
