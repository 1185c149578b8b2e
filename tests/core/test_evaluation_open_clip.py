"""A CLIP in open_clip's layout beside open_clip's own calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dgate_core.errors import MissingExtraError
from dgate_core.evaluation.features.clip import ClipExtractor
from dgate_core.evaluation.features.clip_by_open_clip import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from dgate_core.evaluation.features.extractor import open_extractor
from tests.postcard_pictures import make_postcards

SHAPE: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
COLOURS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def write_config(folder: Path) -> None:
    folder.mkdir()
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": SHAPE, "preprocess_cfg": COLOURS}))


@pytest.mark.slow
def test_embeddings_are_those_of_open_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path / "tiny-open-clip"
    write_config(folder)
    torch.manual_seed(0)
    model = open_clip.CLIP(**SHAPE).eval()
    save_file(model.state_dict(), folder / OPEN_CLIP_WEIGHTS)
    ours = open_extractor(str(folder))
    assert isinstance(ours, ClipExtractor)
    assert (ours.name, ours.dimension) == ("tiny-open-clip", 32)
    assert ours.resize == "bicubic, antialiased, shortest 32x32 (open_clip)"
    pictures = [picture.read() for picture in make_postcards(5, 1)]
    transform = open_clip.image_transform(32, is_train=False, **COLOURS)
    captions = ["a red boat at sea", "two blue trees on grass at night"]
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(Image.fromarray(each)) for each in pictures])).numpy()
        told = model.encode_text(open_clip.tokenize(captions)).numpy()
    assert np.abs(ours.extract(pictures) - seen).max() <= 1e-5
    assert np.abs(ours.embed_captions(captions) - told).max() <= 1e-5


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    write_config(tmp_path / "clip")
    save_file({"x": torch.zeros(1)}, tmp_path / "clip" / OPEN_CLIP_WEIGHTS)
    with pytest.raises(MissingExtraError, match="open-clip"):
        open_extractor(str(tmp_path / "clip"))
