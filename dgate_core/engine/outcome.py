"""What came of a run, as one small object for scripts, flows and people."""

from __future__ import annotations

from typing import Any

from dgate_core.runs import layout
from dgate_core.runs.store import RunStore

_FILES = {
    "results": layout.RESULTS_FILE,
    "gallery": layout.GALLERY_FILE,
    "batch_output": layout.BATCH_OUTPUT_FILE,
    "batch_errors": layout.BATCH_ERRORS_FILE,
    "evaluation": "evaluation/evaluation.json",
}


def read_outcome(store: RunStore) -> dict[str, Any]:
    """State, counts, figures and the addresses of what there is, from run.json.

    Raises:
        RunError: there is no run.
    """
    run = store.read_run()
    return {
        "state": run["state"],
        "run": store.uri,
        "counts": run["counts"],
        "failures": run.get("failures", {}),
        "warnings": run.get("warnings", []),
        "made": run.get("made", 0),
        "pictures_per_second": run.get("pictures_per_second"),
        "wall_seconds": run.get("wall_seconds"),
        "seconds": run.get("seconds", {}),
        "stopped_by": run.get("stopped_by"),
        **{name: store.storage.uri_of(key) for name, key in _FILES.items() if store.storage.exists(key)},
    }
