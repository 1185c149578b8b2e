"""What every feature extractor is, and how one is opened by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from dgate_core.errors import ModelError
from dgate_core.evaluation.results import EvaluationError
from dgate_core.models.catalog import HUB_SCHEME, STARTER_FOLDER
from dgate_core.models.hub import download_snapshot, find_in_cache
from dgate_core.models.spec import CheckpointSpec
from dgate_core.registry import explain_unknown

INCEPTION: Final = "inception-v3-fid"
INCEPTION_TENSORFLOW: Final = "inception-v3-fid@tensorflow1"
STARTER_CLIP: Final = "starter-clip"
EXTRACTORS: Final[Mapping[str, str]] = {
    INCEPTION: "FID's Inception-v3 up to pool3, with pytorch-fid's resize",
    INCEPTION_TENSORFLOW: "the same network with TensorFlow 1's resize, as in torch-fidelity and torchmetrics",
    STARTER_CLIP: "the CLIP of the postcard world, which ships with D-Gate",
}
_CLIP_FILES: Final = ("*.json", "*.txt", "*.model", "*.safetensors")
_CODE_VERSION: Final = "1"
"""Raise it when an extractor's numbers change: cached features are then made anew."""


class Extractor(Protocol):
    """A network that makes one vector per picture, whatever else is in the batch."""

    name: str
    """`inception-v3-fid`, `starter-clip`, or the name of a CLIP."""
    weights_sha256: str
    """Identity of the weights."""
    dimension: int
    """Length of a vector."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time spent so far, by stage: resize, network."""
        ...

    @property
    def resize(self) -> str:
        """How pictures come to the network's size."""
        ...

    def extract(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Features float32 (N, dimension) of pictures uint8 (H, W, 3), of any sizes."""
        ...


def open_extractor(name: str, device: str = "cpu", model: str | Path | None = None) -> Extractor:
    """Opens an extractor in fp32; its network is loaded by the first pictures that it gets.

    Args:
        name: One of EXTRACTORS; or a CLIP: a folder of transformers or open_clip, or `hf://OWNER/NAME[@REVISION]`.
        device: torch's name of the device.
        model: The CLIP's folder or hub name, when `name` is only what results call it.

    Raises:
        MissingWeightsError: Inception's weights are not on this machine.
        ModelError: no such CLIP, or one without safetensors.
        EvaluationError: unknown name.
    """
    from dgate_core.evaluation.features.clip import ClipExtractor
    from dgate_core.evaluation.features.clip_by_open_clip import OpenClipExtractor
    from dgate_core.evaluation.features.inception import InceptionExtractor

    if name in (INCEPTION, INCEPTION_TENSORFLOW):
        return InceptionExtractor(name, device)
    source = str(model or name)
    if source == STARTER_CLIP:
        return ClipExtractor(STARTER_CLIP, STARTER_FOLDER / STARTER_CLIP, device)
    folder = find_clip(source)
    label = source.removeprefix(HUB_SCHEME) if source.startswith(HUB_SCHEME) else folder.name
    kind = ClipExtractor if _is_transformers_clip(folder) else OpenClipExtractor
    return kind(name if model else label, folder, device)


def find_clip(source: str) -> Path:
    """The folder of a CLIP.

    Args:
        source: A folder, or `hf://OWNER/NAME[@REVISION]`, looked up in the hub's cache first.

    Raises:
        ModelError: the hub has or gives none.
        EvaluationError: there is no such folder.
    """
    if source.startswith(HUB_SCHEME):
        repository, _, revision = source.removeprefix(HUB_SCHEME).partition("@")
        spec = CheckpointSpec(source, repository, revision or None)
        cached = find_in_cache(spec)
        return cached if cached and _is_clip(cached) else _check_clip(download_snapshot(spec, _CLIP_FILES))
    folder = Path(source).expanduser().resolve()
    if folder.is_dir():
        return _check_clip(folder)
    raise explain_unknown("feature extractor", source, [*EXTRACTORS, "a CLIP's folder"], EvaluationError)


def _check_clip(folder: Path) -> Path:
    if not _is_clip(folder):
        raise ModelError(
            f"{folder} holds no CLIP in safetensors",
            "config.json, preprocessor_config.json and *.safetensors (transformers), or open_clip_config.json and "
            "open_clip_model.safetensors (open_clip)",
            "save it with CLIPModel.save_pretrained and CLIPProcessor.save_pretrained, or open_clip.push_to_hf_hub",
        )
    return folder


def _is_clip(folder: Path) -> bool:
    from dgate_core.evaluation.features.clip_by_open_clip import is_open_clip

    return _is_transformers_clip(folder) or is_open_clip(folder)


def _is_transformers_clip(folder: Path) -> bool:
    configs = (folder / name for name in ("config.json", "preprocessor_config.json"))
    return all(config.is_file() for config in configs) and any(folder.glob("*.safetensors"))


def hash_extractor(extractor: Extractor) -> str:
    """sha256 (hex) of all that decides an extractor's numbers: the key of its cached features."""
    parts = (_CODE_VERSION, extractor.name, extractor.weights_sha256, extractor.resize, str(extractor.dimension))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
