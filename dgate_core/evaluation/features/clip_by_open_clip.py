"""CLIPs in open_clip's own layout (Cherti et al., 2023), by its package: its transform, its tokenizer, its network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dgate_core.errors import MissingExtraError
from dgate_core.evaluation.features.clip import ClipExtractor
from dgate_core.evaluation.features.computing import StageClock, compute_in_fp32
from dgate_core.models.hashing import hash_weights

if TYPE_CHECKING:
    import torch

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
OPEN_CLIP_WEIGHTS: Final = "open_clip_model.safetensors"


def is_open_clip(folder: Path) -> bool:
    """Whether a folder holds what open_clip saves, in safetensors."""
    return (folder / OPEN_CLIP_CONFIG).is_file() and (folder / OPEN_CLIP_WEIGHTS).is_file()


class OpenClipExtractor(ClipExtractor):
    """Embeddings, not normalised, as `encode_image` and `encode_text` give them.

    Args:
        name: What results call it.
        folder: With OPEN_CLIP_CONFIG and OPEN_CLIP_WEIGHTS, as on the hub.
        device: torch's name of the device.

    Raises:
        MissingExtraError: open_clip is not installed.
    """

    def __init__(self, name: str, folder: Path, device: str = "cpu") -> None:
        self.name, self.folder, self.device = name, folder, device
        try:
            import open_clip
        except ModuleNotFoundError as error:
            raise MissingExtraError("open_clip", "open-clip") from error
        self._library: Any = open_clip
        self.weights_sha256, self.seconds = hash_weights(folder), StageClock()
        config = json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
        self.dimension = int(config["model_cfg"]["embed_dim"])

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        """The network in fp32 on its device, and the transform of its evaluation."""
        source = f"local-dir:{self.folder}"
        model, _, transform = self._library.create_model_and_transforms(source, precision="fp32", device=self.device)
        return model.eval(), transform

    @property
    def model(self) -> Any:
        """The network."""
        return self._opened[0]

    @cached_property
    def tokenizer(self) -> Any:
        """Captions to tokens (N, context), cut off at what the CLIP can read."""
        return self._library.get_tokenizer(f"local-dir:{self.folder}")

    @cached_property
    def resize(self) -> str:
        """Such as `bicubic, antialiased, shortest 224x224 (open_clip)`."""
        config = self.model.visual.preprocess_cfg
        height, width = config["size"]
        return f"{config['interpolation']}, antialiased, {config['resize_mode']} {height}x{width} (open_clip)"

    def extract(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings float32 (N, dimension) of pictures uint8 (H, W, 3)."""
        features, size = np.empty((len(pictures), self.dimension), np.float32), self._batch_size
        model = self.model
        with compute_in_fp32():
            for start in range(0, len(pictures), size):
                with self.seconds.time("resize"):
                    pixels = self.prepare(pictures[start : start + size]).to(self.device)
                with self.seconds.time("network"):
                    features[start : start + size] = model.encode_image(pixels).cpu().numpy()
        return features

    def prepare(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures uint8 (H, W, 3) of any sizes as the network's pixels (N, 3, S, S)."""
        import torch
        from PIL import Image

        return torch.stack([self._opened[1](Image.fromarray(picture)) for picture in pictures])

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings float32 (N, dimension) of captions."""
        features, size = np.empty((len(captions), self.dimension), np.float32), self._batch_size
        with compute_in_fp32():
            for start in range(0, len(captions), size):
                tokens = self.tokenizer(list(captions[start : start + size])).to(self.device)
                features[start : start + size] = self.model.encode_text(tokens).cpu().numpy()
        return features
