"""Picture and caption embeddings of any transformers CLIP, prepared by its own processor; loaded when first needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dgate_core.evaluation.features.computing import StageClock, compute_in_fp32
from dgate_core.models.hashing import hash_weights

if TYPE_CHECKING:
    import torch

_FILTERS: Final = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers of them, which transformers' configs use."""


class ClipExtractor:
    """Projected embeddings, not normalised.

    Args:
        name: What results call it.
        folder: A transformers folder with safetensors.
        device: torch's name of the device.
    """

    def __init__(self, name: str, folder: Path, device: str = "cpu") -> None:
        self.name, self.folder, self.device = name, folder, device
        self.weights_sha256, self.seconds = hash_weights(folder), StageClock()
        self.dimension = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["projection_dim"])

    @cached_property
    def model(self) -> Any:
        """The CLIPModel in fp32 on its device."""
        import torch
        from transformers import CLIPModel
        from transformers.utils import logging

        # Its bar would be drawn across the run's own.
        logging.disable_progress_bar()
        model = CLIPModel.from_pretrained(self.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
        return model.eval().to(self.device)

    @cached_property
    def processor(self) -> Any:
        """The CLIP's own picture processor."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def tokenizer(self) -> Any:
        """The CLIP's own tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def resize(self) -> str:
        """Such as `bicubic, antialiased, shortest edge 224, centre 224x224`."""
        config = json.loads((self.folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size, crop = config.get("size", 224), config.get("crop_size", 224)
        size, crop = _read_size(size, ("shortest_edge",)), _read_size(crop, ("height", "width"))
        text = f"{_FILTERS[config.get('resample', 3)]}, antialiased, {size}"
        return f"{text}, centre {crop}" if config.get("do_center_crop", True) else text

    def extract(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings float32 (N, dimension) of pictures uint8 (H, W, 3)."""
        features, size = np.empty((len(pictures), self.dimension), np.float32), self._batch_size
        model, _ = self.model, self.processor  # loaded outside the stages' time
        with compute_in_fp32():
            for start in range(0, len(pictures), size):
                with self.seconds.time("resize"):
                    pixels = self.prepare(pictures[start : start + size])
                with self.seconds.time("network"):
                    embeddings = model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output
                    features[start : start + size] = embeddings.cpu().numpy()
        return features

    def prepare(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures uint8 (H, W, 3) of any sizes as the network's pixels (N, 3, S, S)."""
        import torch

        planes = [torch.tensor(picture).permute(2, 0, 1) for picture in pictures]
        pixels: torch.Tensor = self.processor(images=planes, return_tensors="pt")["pixel_values"]
        return pixels

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings float32 (N, dimension) of captions, cut off at the tokens that the CLIP can read."""
        features, size = np.empty((len(captions), self.dimension), np.float32), self._batch_size
        limit = self.model.config.text_config.max_position_embeddings
        with compute_in_fp32():
            for start in range(0, len(captions), size):
                batch = list(captions[start : start + size])
                tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=limit, return_tensors="pt")
                embeddings = self.model.get_text_features(**tokens.to(self.device)).pooler_output
                features[start : start + size] = embeddings.cpu().numpy()
        return features

    @property
    def _batch_size(self) -> int:
        return 32 if self.device == "cpu" else 256


def _read_size(size: Mapping[str, int] | int, sides: Sequence[str]) -> str:
    """Older configs give a number alone, which stands for these sides."""
    size = dict.fromkeys(sides, size) if isinstance(size, int) else size
    return f"shortest edge {size['shortest_edge']}" if "shortest_edge" in size else f"{size['height']}x{size['width']}"
