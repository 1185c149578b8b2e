"""Brings a model onto this machine: from a mirror, or from the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dgate_core.errors import ModelError
from dgate_core.models.catalog import CATALOG, HUB_SCHEME, find_checkpoint, find_spec, locate_files
from dgate_core.models.hub import is_offline
from dgate_core.models.imported import ImportedModel, check_name, find_imported, register_model
from dgate_core.models.importing import check_free
from dgate_core.models.mirror import S3_SCHEME, locate_mirror, split_model_uri
from dgate_core.models.mirror_fetch import Pulled, PullOptions, pull_from_mirror

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class PullSource:
    """Where a model may come from."""

    mirror: str | None = None
    """`s3://bucket/models` or a folder; None is DGATE_MODEL_MIRROR, and the hub where that is not set."""
    offline: bool = False
    """Nothing is fetched; what is not here is an error."""
    options: PullOptions = field(default_factory=PullOptions)
    """How a mirror is read."""


def pull_model(name: str, source: PullSource, tell: Tell) -> Path:
    """Makes sure that a model is here and whole; `--model NAME` then opens it.

    Args:
        name: Of the catalogue or a mirror, `hf://OWNER/NAME[@REVISION]`, or `s3://bucket/models/NAME`.
        source: Mirror or hub.
        tell: Takes progress lines.

    Returns:
        Its folder or single file.

    Raises:
        ModelError: unknown, gated, damaged on the way, or not here while offline.
        StorageError: no room on the disk, or the mirror does not answer.
    """
    mirror = locate_mirror(source.mirror)
    if name.startswith(S3_SCHEME):
        mirror, name = split_model_uri(name)
    if mirror is None or name.startswith(HUB_SCHEME):
        return _pull_from_hub(name, offline=source.offline or is_offline(), tell=tell)
    if source.offline:
        return _find_here(name)
    if name not in CATALOG and find_imported(check_name(name)) is None:
        check_free(name)
    pulled = pull_from_mirror(mirror, name, source.options, tell)
    return _register(name, pulled)


def _register(name: str, pulled: Pulled) -> Path:
    """A catalogue name finds what was pulled by itself; any other becomes an imported one."""
    if name in CATALOG:
        return Path(find_checkpoint(name).folder)
    checkpoint = find_checkpoint(str(pulled.path))
    register_model(ImportedModel(name, str(pulled.path), checkpoint.pipeline_class, pulled.manifest))
    return pulled.path


def _pull_from_hub(name: str, *, offline: bool, tell: Tell) -> Path:
    spec = find_spec(name)
    if offline or Path(spec.source).is_absolute():
        return _find_here(name)
    tell(f"{name}: {spec.source} of the hub")
    return Path(find_checkpoint(name).folder)


def _find_here(name: str) -> Path:
    found = locate_files(find_spec(name))
    if found is None:
        raise ModelError(
            f"{name} is not on this machine, and this is offline mode",
            "a model that was pulled before",
            f"run `dgate models pull {name}` without --offline and HF_HUB_OFFLINE, on a machine that has a network",
        )
    return Path(find_checkpoint(str(found)).folder)
