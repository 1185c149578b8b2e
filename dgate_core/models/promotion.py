"""Puts a checkpoint behind an alias, once it is known to be whole."""

from __future__ import annotations

import time
from pathlib import Path

from dgate_core.errors import ModelError
from dgate_core.models.aliases import Alias, Promotion, promote_model, resolve_alias
from dgate_core.models.catalog import CATALOG, find_checkpoint
from dgate_core.models.imported import find_imported


def promote_checkpoint(name: str, model: str, reason: str = "") -> Alias:
    """Lets an alias stand for a model.

    Args:
        name: The alias, such as `production`.
        model: A name of the catalogue, a folder, a file, or another alias, whose present model is taken.
        reason: Kept beside it, such as the run whose verdict was a pass.

    Raises:
        ModelError: the alias is a name of the catalogue, or the model is unknown, incomplete or unsafe.
    """
    if name in CATALOG or find_imported(name) is not None:
        raise ModelError(
            f"{name} is a model, of the catalogue or imported", "another name for the alias", "such as: production"
        )
    model = resolve_alias(model)
    if model not in CATALOG and Path(model).expanduser().exists():
        model = str(Path(model).expanduser().resolve())
    return promote_model(name, Promotion(model, find_checkpoint(model).weights_hash, time.time(), reason))
