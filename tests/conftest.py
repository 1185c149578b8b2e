"""Fixtures for all tests, and the order in which processes take them."""

from __future__ import annotations

from pathlib import Path

import pytest

# Before anything takes the distutils of Python 3.11: torch's compiler wants setuptools' own in their place, or fails.
import setuptools  # noqa: F401

pytest_plugins = ["tests.s3_server"]

ROOT = Path(__file__).parent
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A group is a file, for its fixtures are made once; see `--dist loadgroup`."""
    places = {name: place for place, name in enumerate(LONGEST)}
    groups = {item: find_group(item.path) for item in items}
    items.sort(key=lambda item: places.get(groups[item], len(places)))
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))


def find_group(file: Path) -> str:
    """The file's path below tests/, or the group that it belongs to."""
    name = file.relative_to(ROOT).as_posix()
    return PREFECT if name.startswith("flows/") or name == "api/test_flows.py" else name
