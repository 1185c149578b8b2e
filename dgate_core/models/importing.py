"""Gives a checkpoint a name, here or in a mirror, once it is known to be whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dgate_core.errors import ModelError, UsageError
from dgate_core.models.aliases import read_aliases
from dgate_core.models.catalog import CATALOG, find_checkpoint
from dgate_core.models.imported import ImportedModel, check_name, find_imported, register_model
from dgate_core.models.mirror import open_model, publish_model
from dgate_core.models.model_manifest import ModelManifest, sum_files


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a checkpoint's files do not say."""

    licence: str = "unknown"
    """As its card states it."""
    num_inference_steps: int | None = None
    """Default steps; None is the pipeline's own number."""
    guidance_scale: float | None = None
    """Default guidance; None is the pipeline's own."""
    replaces: bool = False
    """Whether the name may stand for another model already."""

    def __post_init__(self) -> None:
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= 100:
            raise UsageError(f"guidance {self.guidance_scale}", "a number from 0 to 100")


def import_to_registry(path: str, name: str, options: ImportOptions) -> ImportedModel:
    """Lets `--model NAME` open a folder or single file of this machine; nothing is copied.

    Raises:
        ModelError: not whole, not safe, of no known family, or a name that is taken.
    """
    check_free(name)
    source, manifest, pipeline_class = describe_source(path, options)
    before = find_imported(name)
    if before is not None and not options.replaces and (before.source, before.manifest) != (str(source), manifest):
        raise ModelError(
            f"{name} is {before.source} already, with its own steps and guidance",
            "a name that is free",
            "give another --name, or --replace; aliases of it then stand for the new one, or say that it has changed",
        )
    model = ImportedModel(name, str(source), pipeline_class, manifest)
    register_model(model)
    return model


def import_to_mirror(
    path: str, name: str, mirror: str, options: ImportOptions, tell: Callable[[str], object]
) -> ModelManifest:
    """Uploads a folder or single file as `<mirror>/NAME`; `pull_model` fetches it on any machine.

    Raises:
        ModelError: as above, or another model is there under this name.
        StorageError: the mirror refuses or does not answer.
    """
    source, manifest, _ = describe_source(path, options)
    publish_model(source, manifest, open_model(mirror, check_name(name)), tell)
    return manifest


def describe_source(path: str, options: ImportOptions) -> tuple[Path, ModelManifest, str]:
    """The absolute path, the manifest and the pipeline class of a checkpoint that was found whole."""
    source = Path(path).expanduser().resolve()
    if not source.exists():
        raise ModelError(f"there is no {path}", "a diffusers folder or a .safetensors file", "check the path")
    checkpoint = find_checkpoint(str(source))
    if checkpoint.config_folder not in {None, str(source.with_suffix(""))}:
        raise ModelError(
            f"{path} takes its configs from the hub's cache",
            f"its configs in {source.with_suffix('')}, so that it works without that cache",
            "copy the diffusers folder without its weights there",
        )
    entry, files = sum_files(source)
    manifest = ModelManifest(files, entry, options.licence, options.num_inference_steps, options.guidance_scale)
    return source, manifest, checkpoint.pipeline_class


def check_free(name: str) -> None:
    """Raises ModelError for a name that stands for something else, or could be taken for a path."""
    check_name(name)
    if name in CATALOG or name in read_aliases():
        kind = "a model of the catalogue" if name in CATALOG else "an alias"
        raise ModelError(f"{name} is {kind}", "a name that is free", "give another --name")
