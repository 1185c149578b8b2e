"""Runs in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dgate_core.errors import RunError
from dgate_core.runs.layout import RUN_FILE
from dgate_core.runs.store import RunStore
from dgate_core.storage import Storage


def find_runs(folder: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and run.json of every run directly below a folder.

    Raises:
        RunError: there is none.
    """
    found = False
    for name in list_children(folder):
        store = RunStore(folder.child(name))
        if store.exists():
            found = True
            yield name, store.read_run()
    if not found:
        raise RunError(f"no run below {folder.uri}", f"folders that hold {RUN_FILE}", "give the folder above your runs")


def list_children(folder: Storage) -> list[str]:
    """Names of the folders directly below."""
    local = folder.local_path("x")
    if local is not None:
        parent = local.parent
        return sorted(item.name for item in parent.iterdir() if item.is_dir()) if parent.is_dir() else []
    # Buckets have no folders: names are read off the keys.
    return sorted({item.key.partition("/")[0] for item in folder.list_objects() if "/" in item.key})
