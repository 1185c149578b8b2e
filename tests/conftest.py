"""Fixtures for all tests, and the order in which processes take them."""

from __future__ import annotations

from typing import Any

import pytest

# Before anything takes the distutils of Python 3.11: torch's compiler wants setuptools' own in their place, or fails.
import setuptools  # noqa: F401
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.prefect_server", "tests.s3_server"]

PREFECT = "prefect"
"""Files with a Prefect server: in one group they share it."""
LONGEST = (
    PREFECT,
    "finetune/test_starter_quality.py",
    "core/test_evaluation_live.py",
    "core/test_tracking_mlflow.py",
    "core/test_lanes_s3.py",
    "core/test_lanes_killed.py",
    "core/test_bench_generate.py",
    "core/test_backends.py",
    "core/test_evaluation_agreement.py",
    "core/test_evaluation_corpus.py",
    "telemetry/test_serve_wired.py",
    "core/test_runs_resume.py",
    "telemetry/test_run_metrics.py",
    "core/test_plan_memory.py",
    "core/test_tracking_wandb.py",
    "core/test_runs_retry.py",
    "core/test_lanes_failing.py",
    "api/test_api_document.py",
    "core/test_quant_artefact.py",
)
"""Groups that take longest go first, so that no process is left with one of them at the end."""


class GroupScheduling(LoadScopeScheduling):
    """A group to a process, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return find_group(nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """In the place of `--dist`: no file is torn apart, for its fixtures are made once."""
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups that take longest first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(find_group(item.nodeid.partition("::")[0]), len(places)))


def find_group(file: str) -> str:
    """A test file's path below tests/, or the group that it belongs to."""
    name = file.removeprefix("tests/")
    return PREFECT if name.startswith("flows/") or name == "api/test_flows.py" else name
