"""The model hub: its cache on this machine first, then the network, and a clear word when there is none."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgate_core.errors import ModelError
from dgate_core.models.hashing import SHA256_DIGITS, hash_file
from dgate_core.models.spec import CheckpointSpec
from dgate_core.storage.files import os_error_to_storage_error

logger = logging.getLogger(__name__)

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

CONFIG_PATTERNS = ("*.json", "*/*.txt", "*/*.model")
LEFT_OUT = ("safety_checker/*", "vae_1_0/*", "text_encoders/*")
"""Parts of catalogued repositories that are never loaded."""
HUB_ADDRESS = "https://huggingface.co"
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
    """Fetches what is not in the cache yet, through the hub's own client: in parallel, and to be gone on with.

    Raises:
        ModelError: no network, no such repository, no right to read it, its licence not accepted, no room, or a file
            with another sha256 than the hub's.
    """
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    logger.info("asking the hub for %s", spec.source)
    try:
        about = HfApi().model_info(spec.source, revision=spec.revision, files_metadata=True, timeout=ANSWER_SECONDS)
        folder = snapshot_download(
            spec.source, revision=spec.revision, allow_patterns=list(patterns), ignore_patterns=list(LEFT_OUT)
        )
        _check_sums(Path(folder), about.siblings or [])
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{spec.source} is gated: {spec.licence.removesuffix(' (gated)')} was not accepted with this account",
            "a token of the hub whose account has accepted the licence",
            f"accept it at {HUB_ADDRESS}/{spec.source}, then run `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no {spec.source} that this account may see",
            "an existing repository",
            "check the name; for a private one run `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelError(
            f"the checkpoint {spec.name!r} is not on this machine, and HF_HUB_OFFLINE is set",
            f"{spec.source} in the hub's cache",
            f"run `dgate models pull {spec.name}` where there is a network, or unset HF_HUB_OFFLINE",
        ) from error
    # Its client is httpx or httpx2, by version: the hub's own module knows which.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise os_error_to_storage_error(error, Path(constants.HF_HUB_CACHE)) from error
        raise ModelError(
            f"the checkpoint {spec.name!r} is not on this machine and the hub gave {type(error).__name__}",
            f"{spec.source} in the hub's cache, or a network that reaches the hub",
            "give --model FOLDER with a local diffusers folder, or `starter-unet`, which ships with D-Gate",
        ) from error
    return Path(folder)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode()


def list_recorded_sums(folder: Path) -> dict[str, str]:
    """sha256 by path of a snapshot's large files: the hub's cache keeps them under that name."""
    links = {file: file.readlink().name for file in folder.rglob("*") if file.is_symlink()}
    return {file.relative_to(folder).as_posix(): name for file, name in links.items() if len(name) == SHA256_DIGITS}


def _check_sums(folder: Path, siblings: Sequence[Any]) -> None:
    for sibling in siblings:
        file, wanted = folder / sibling.rfilename, getattr(sibling.lfs, "sha256", None)
        if wanted is not None and file.is_file() and (found := hash_file(file)) != wanted:
            file.resolve().unlink()
            raise ModelError(
                f"{sibling.rfilename} came with sha256 {found[:16]}…", f"sha256 {wanted[:16]}…", "pull it again"
            )
