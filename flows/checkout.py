"""The pull step of the deployments in prefect.yaml."""

from __future__ import annotations

import os
from pathlib import Path


def enter_checkout() -> dict[str, str]:
    """Works where this code stands, or in DGATE_HOME when that is set; so relative paths mean the same in every run.

    Returns:
        The directory, as Prefect's own steps do.
    """
    directory = os.environ.get("DGATE_HOME") or str(Path(__file__).resolve().parents[1])
    os.chdir(directory)
    return {"directory": directory}
