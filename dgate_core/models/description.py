"""All that is known of a model, whether it is on this machine or not; asks no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dgate_core.errors import ModelError
from dgate_core.models.aliases import read_aliases
from dgate_core.models.catalog import find_checkpoint, find_spec, locate_files
from dgate_core.models.checkpoint_size import (
    BYTES_PER_ELEMENT,
    PartSize,
    count_part_bytes,
    estimate_activation_bytes,
    measure_parts,
)
from dgate_core.models.imported import find_imported
from dgate_core.models.model_manifest import FileSum, sum_files
from dgate_core.models.spec import CheckpointSpec, LocalCheckpoint


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a model takes in one precision."""

    weights_bytes: int
    """Of all parts."""
    activation_bytes: int
    """For one picture of native size; rough."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """All that is known of a model; what stands in its files only when it is here."""

    name: str
    """As it was asked for."""
    spec: CheckpointSpec
    """Defaults and licence."""
    aliases: tuple[str, ...]
    """Names that stand for it now."""
    kind: str
    """catalogue, imported, folder, file or hub."""
    path: Path | None = None
    """Where it lies; None when it is not here."""
    checkpoint: LocalCheckpoint | None = None
    """None when it is not here or not whole."""
    problem: str = ""
    """Why it cannot be used, and what is missing."""
    files: tuple[FileSum, ...] = ()
    """With sizes and sha256."""
    parts: dict[str, PartSize] = field(default_factory=dict)
    """By part of the pipeline."""
    memory: dict[str, MemoryEstimate] = field(default_factory=dict)
    """By precision."""


def describe_model(name: str) -> ModelDescription:
    """Everything about a model; one that is not whole is described as far as it goes.

    Raises:
        ModelError: unknown.
    """
    spec = find_spec(name)
    aliases = tuple(alias.name for alias in read_aliases().values() if alias.current.model in {name, spec.name})
    path = locate_files(spec)
    kind = _name_kind(spec, path)
    if path is None:
        missing = f"not on this machine; run: dgate models pull {name}"
        return ModelDescription(name, spec, aliases, kind, problem=missing)
    try:
        checkpoint = find_checkpoint(name) if Path(spec.source).is_absolute() else find_checkpoint(str(path))
        memory = {precision: _estimate(checkpoint, precision) for precision in BYTES_PER_ELEMENT}
        parts, files = measure_parts(checkpoint), sum_files(path)[1]
    except ModelError as error:
        return ModelDescription(name, spec, aliases, kind, path, problem=str(error))
    return ModelDescription(name, spec, aliases, kind, path, checkpoint, files=files, parts=parts, memory=memory)


def _estimate(checkpoint: LocalCheckpoint, precision: str) -> MemoryEstimate:
    weights = sum(count_part_bytes(checkpoint, precision).values())
    return MemoryEstimate(weights, estimate_activation_bytes(checkpoint, precision))


def _name_kind(spec: CheckpointSpec, path: Path | None) -> str:
    if find_imported(spec.name) is not None:
        return "imported"
    if spec.revision is not None or not Path(spec.source).is_absolute():
        return "hub"
    is_shipped = spec.name != spec.source and path is not None and spec.name == path.name
    return "shipped" if is_shipped else "file" if path is not None and path.is_file() else "folder"
