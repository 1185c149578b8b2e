"""Fixtures for all tests, and the order in which processes take them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

# Before anything takes the distutils of Python 3.11: torch's compiler wants setuptools' own in their place, or fails.
import setuptools  # noqa: F401
from xdist.scheduler import LoadScopeScheduling

from tests.groups import LATE, LONGEST, find_group

if not Path("/dev/nvidiactl").exists() and shutil.which("nvidia-smi") is None:
    # Without a GPU D-Gate's kernels run by Triton's interpreter, which has to be known before anything imports Triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["tests.prefect_server", "tests.s3_server"]


class GroupScheduling(LoadScopeScheduling):
    """A group to a process, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return find_group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """In the place of `--dist`: no file is torn apart, for its fixtures are made once."""
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups that take longest first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(find_group(item.nodeid), len(places)), item.nodeid.startswith(LATE)))
