"""Plans a run, or opens the same run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from dgate_core.config import build_settings
from dgate_core.engine.begin import open_run
from dgate_core.runs.settings import RunSettings


@task(name="plan", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=6 * 3600)
def plan_images(manifest: Sequence[str], out: str, settings: dict[str, Any]) -> str:
    """Checks every row and cuts the run into shards.

    Returns:
        The run's address.
    """
    opened = open_run(manifest, out, build_settings(RunSettings, settings))
    counts, logger = opened.store.read_run()["counts"], get_run_logger()
    if opened.is_new:
        logger.info("planned %(planned)s images in %(shards)s shards, %(bad_rows)s bad rows", counts)
    else:
        logger.info("going on with %s: %s images in %s shards", opened.store.uri, counts["planned"], counts["shards"])
    return opened.store.uri
