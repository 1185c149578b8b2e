"""promtool: the one that is installed, or Debian's, unpacked into D-Gate's cache."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from dgate_core.models.hashing import find_cache_folder

PLACE = "usr/bin/promtool"


def find_promtool() -> Path:
    """Raises OSError or CalledProcessError where it is not installed and cannot be fetched."""
    if installed := shutil.which("promtool"):
        return Path(installed)
    kept = find_cache_folder() / "promtool"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            try:
                _run(["apt-get", "download", "-qq", "prometheus"], folder)
            except subprocess.CalledProcessError:
                _run(["apt-get", "update", "-qq"], folder)  # a fresh machine knows no packages
                _run(["apt-get", "download", "-qq", "prometheus"], folder)
            (package,) = Path(folder).glob("prometheus_*.deb")
            _run(["dpkg-deb", "--extract", package.name, "."], folder)
            (Path(folder) / PLACE).replace(kept)
    return kept


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
