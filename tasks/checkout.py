"""The pull step of the deployments in prefect.yaml."""

from __future__ import annotations

import os

from dgate_core.data_files import CHECKOUT
from dgate_core.errors import UsageError


def enter_checkout() -> dict[str, str]:
    """Works in DGATE_HOME, or else in the checkout that this code is of; so relative paths mean the same in every run.

    Returns:
        The directory, as Prefect's own steps do.

    Raises:
        UsageError: DGATE_HOME is not set, and the code is of an installed package.
    """
    directory = os.environ.get("DGATE_HOME")
    if not directory:
        if not (CHECKOUT / "pyproject.toml").is_file():
            raise UsageError(
                "DGATE_HOME is not set, and D-Gate runs from an installed package",
                "the folder that relative paths of flow runs start from",
                "set DGATE_HOME where the worker is started; `dgate up` does it by itself",
            )
        directory = str(CHECKOUT)
    os.chdir(directory)
    return {"directory": directory}
