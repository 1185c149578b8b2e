"""What a flow needs before it begins: its settings in one piece, and the run's folder in hand."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from typing import Any

from dgate_core.config import build_settings
from dgate_core.engine.local import hold_run
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from tasks.pool_lanes import count_workers


def gather_settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """RunSettings as plain data, from a flow's flat parameters and its `settings`.

    Raises:
        ConfigError: an unknown setting or an impossible value.
        RunError: lanes shall run on a pool that does not exist.
    """
    names = {field.name for field in fields(RunSettings)}
    given = {name: value for name, value in parameters.items() if name in names} | (parameters["settings"] or {})
    if parameters["execution"] == "work_pool" and given["lanes"] is None:
        given["lanes"] = max(1, count_workers())
    return asdict(build_settings(RunSettings, given))


def hold_folder(out: str, settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Keeps other drivers off while the block runs.

    Raises:
        RunError: another driver works on it.
    """
    return hold_run(RunStore(open_storage(out)), settings["lease_seconds"])
