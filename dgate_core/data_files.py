"""The data that comes with D-Gate (manifests, suites, cards): in a checkout's datasets/ or in the installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dgate_core.errors import UsageError

PACKAGED: Final = Path(__file__).resolve().parent / "_data"
"""Where a wheel holds what a checkout has at its root: `datasets/` and `prefect.yaml`."""
CHECKOUT: Final = Path(__file__).resolve().parents[1]


def find_root() -> Path:
    """The folder that holds `datasets/` and `prefect.yaml`.

    Raises:
        UsageError: the package was installed without its data.
    """
    if PACKAGED.is_dir():
        return PACKAGED
    # Beside an installed package `datasets` is Hugging Face's, so only a checkout's own file counts as a sign.
    if (CHECKOUT / "pyproject.toml").is_file() and (CHECKOUT / "datasets").is_dir():
        return CHECKOUT
    raise UsageError(
        f"the data of D-Gate is neither in {PACKAGED} nor in a checkout",
        "the folder datasets/",
        "install D-Gate from its wheel, or with `pip install -e` from a checkout",
    )


def find_data_file(name: str) -> Path:
    """Path of a file of datasets/, such as `manifests/demo.jsonl`; raises UsageError where there is none."""
    path = find_root() / "datasets" / name
    if not path.is_file():
        raise UsageError(f"D-Gate comes with no datasets/{name}", "a file of datasets/", "check the name")
    return path


def list_data_files(folder: str, suffix: str) -> list[Path]:
    """Files directly below a folder of datasets/ whose names end with the suffix, in the order of their names."""
    return sorted((find_root() / "datasets" / folder).glob(f"*{suffix}"))
