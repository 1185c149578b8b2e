"""Plans a run, or opens the same run again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from dgate_core.config import build_settings
from dgate_core.engine.begin import OpenedRun, open_run
from dgate_core.manifest.summary import count_problems
from dgate_core.runs.settings import RunSettings

logger = logging.getLogger(__name__)


@task(name="plan", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=6 * 3600)
def plan_images(manifest: Sequence[str], out: str, settings: dict[str, Any]) -> str:
    """Checks every row and cuts the run into shards.

    Returns:
        The run's address.
    """
    opened = open_run(manifest, out, build_settings(RunSettings, settings))
    counts, run_logger = opened.store.read_run()["counts"], get_run_logger()
    if opened.is_new:
        run_logger.info("planned %(planned)s images in %(shards)s shards, %(bad_rows)s bad rows", counts)
    else:
        run_logger.info(
            "going on with %s: %s images in %s shards", opened.store.uri, counts["planned"], counts["shards"]
        )
    warn_of_manifest(opened)
    return opened.store.uri


def warn_of_manifest(opened: OpenedRun) -> None:
    """Says what is wrong with a new run's manifest before hours are spent on its other rows."""
    if opened.summary is None:
        return
    for warning in opened.summary.warnings:
        logger.warning("%s", warning)
    if opened.summary.errors:
        logger.warning(
            "%s of %s rows are bad and will not be made (%s); `dgate plan` lists them",
            f"{opened.summary.errors:,}",
            f"{opened.summary.rows:,}",
            count_problems(opened.summary.problem_counts),
        )
