"""Step savers of a profile onto a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgate_core.errors import ConfigError
from dgate_core.models.profiles import StepSavers

if TYPE_CHECKING:
    from dgate_core.models.families.latent import LatentModel
    from dgate_core.models.savers.contract import StepSaver


def apply_savers(model: LatentModel, savers: StepSavers, *, strict: bool = False) -> tuple[str, ...]:
    """Installs a profile's savers: a UNet takes DeepCache, a transformer the first-block cache, both stop guidance.

    The model's denoiser must still be called as a module (eager or compiled by blocks), not through an exported graph.

    Args:
        model: Loaded, without savers.
        savers: Of the profile.
        strict: Batches keep their size at every step.

    Returns:
        Names for the rows' `backend` and run.json; empty when nothing applies.

    Raises:
        ConfigError: a value is out of range.
        ModelError: the denoiser is of a kind that the saver does not know.
    """
    check_savers(savers)
    installed = _open_savers(model, savers, strict)
    for saver in installed:
        saver.install()
    model.savers = tuple(installed)
    model.guidance_stop = savers.guidance_stop
    return list_savers(model)


def list_savers(model: LatentModel) -> tuple[str, ...]:
    """Names of what is on."""
    partial = (f"guidance-{model.guidance_stop:g}",) if model.guidance_stop < 1 else ()
    return (*(saver.name for saver in model.savers), *partial)


def check_savers(savers: StepSavers) -> None:
    """Raises ConfigError for a value out of range."""
    if savers.deep_cache_interval < 1:
        raise ConfigError(f"deep_cache_interval={savers.deep_cache_interval}", "1 (off) or more steps")
    if savers.deep_cache_branch < 0:
        raise ConfigError(f"deep_cache_branch={savers.deep_cache_branch}", "0 (the shallowest) or more")
    if not 0 <= savers.first_block_threshold < 1:
        raise ConfigError(f"first_block_threshold={savers.first_block_threshold}", "0 (off) to 1")
    if not 0 < savers.guidance_stop <= 1:
        raise ConfigError(f"guidance_stop={savers.guidance_stop}", "above 0, up to 1 (all steps)")


def _open_savers(model: LatentModel, savers: StepSavers, strict: bool) -> list[StepSaver]:
    if hasattr(model.denoiser, "down_blocks"):
        if savers.deep_cache_interval == 1:
            return []
        from dgate_core.models.savers.deep_cache import DeepCache

        return [DeepCache(model.denoiser, savers.deep_cache_interval, savers.deep_cache_branch)]
    if savers.first_block_threshold == 0:
        return []
    from dgate_core.models.savers.first_block_cache import FirstBlockCache

    return [FirstBlockCache(model.denoiser, savers.first_block_threshold, together=strict)]
