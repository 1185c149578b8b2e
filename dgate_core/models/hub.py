"""The model hub: its cache on this machine first, then the network, and a clear word when there is none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dgate_core.errors import ModelError
from dgate_core.models.spec import CheckpointSpec

logger = logging.getLogger(__name__)

CONFIG_PATTERNS = ("*.json", "*/*.txt", "*/*.model")
LEFT_OUT = ("safety_checker/*", "vae_1_0/*", "text_encoders/*")
"""Parts of catalogued repositories that are never loaded."""
ANSWER_SECONDS = 10.0
"""The hub must say that it has the repository within this time; its own client would try for minutes."""


def list_patterns(spec: CheckpointSpec) -> tuple[str, ...]:
    """Files of a whole checkpoint: configs, tokenizers and the safetensors of one variant."""
    suffix = f".{spec.variant}.safetensors" if spec.variant else ".safetensors"
    return (*CONFIG_PATTERNS, f"*/*{suffix}")


def find_in_cache(spec: CheckpointSpec) -> Path | None:
    """The snapshot in the hub's cache, whole or not; None when there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(spec.source, revision=spec.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def download_snapshot(spec: CheckpointSpec, patterns: Sequence[str]) -> Path:
    """Fetches what is not in the cache yet.

    Raises:
        ModelError: no network, no such repository, or no right to read it.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    logger.info("asking the hub for %s", spec.source)
    try:
        HfApi().model_info(spec.source, revision=spec.revision, timeout=ANSWER_SECONDS)
        folder = snapshot_download(
            spec.source, revision=spec.revision, allow_patterns=list(patterns), ignore_patterns=list(LEFT_OUT)
        )
    # Its client is httpx or httpx2, by version: the hub's own module knows which.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise ModelError(
            f"the checkpoint {spec.name!r} is not on this machine and the hub gave {type(error).__name__}",
            f"{spec.source} in the hub's cache, or a network that reaches the hub",
            "give --model FOLDER with a local diffusers folder, or `starter-unet`, which ships with D-Gate",
        ) from error
    return Path(folder)
