"""Quantised models on this machine: what each is made from, how good and how fast it is, and whether it may serve.

`CACHE/quantised/WEIGHTS/QUANTIZATION-BACKEND/DIGEST/` holds artefact.json and its files. It is put there whole, by one
rename, and only its verdict is added later.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from dgate_core.errors import ModelError, StorageError
from dgate_core.models.hashing import find_cache_folder

ARTEFACT_FILE: Final = "artefact.json"
PLAN_FILE: Final = "plan.safetensors"
"""Of every artefact: ranges and layers."""
ONNX_FILE: Final = "denoiser.onnx"
"""Of artefacts for `onnx_runtime` and `tensorrt`: the denoiser with Q/DQ pairs."""
ARTEFACT_VERSION: Final = 1

_ON_TRIAL: list[Artefact] = []
"""Not of a context: lanes load their models in threads of their own."""

Decision = Literal["none", "pass", "fail", "undecided"]


@dataclass(frozen=True, slots=True)
class Artefact:
    """A quantised denoiser in its folder."""

    folder: Path
    """Where its files are."""
    weights_hash: str
    """sha256 of the checkpoint that it was made from."""
    family: str
    """Of the checkpoint."""
    pipeline_class: str
    """Of the checkpoint."""
    quantization: str
    """`int8`, `fp8` or `nf4`."""
    backend: str
    """Which backend it is for."""
    method: Mapping[str, Any]
    """Options of calibration and sensitivity."""
    kept_layers: tuple[str, ...]
    """Layers that stay in 16 or 32 bit because quantising them shows."""
    calibration_hash: str
    """sha256 of the calibration prompts; empty for `nf4`, which has no ranges."""
    versions: Mapping[str, str]
    """Of the libraries that made it."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File → sha256."""
    quality: Mapping[str, Any] = field(default_factory=dict)
    """The verdict's checks, by metric, against the 16-bit baseline."""
    speed: Mapping[str, Any] = field(default_factory=dict)
    """Pictures per second of it and of what it was raced with."""
    decision: Decision = "none"
    """Of the gate; only `pass` serves."""
    created_at: float = 0.0
    """POSIX seconds."""
    version: int = ARTEFACT_VERSION
    """Of this record."""

    @property
    def name(self) -> str:
        """Short, for records: `int8-onnx_runtime-0123456789`."""
        return f"{self.quantization}-{self.backend}-{self.folder.name[:10]}"

    def find_file(self, name: str) -> Path:
        """One of its files, unchanged, with what lies beside it.

        Raises:
            ModelError: it is not there, or not what was stored.
        """
        # A graph's weights lie beside it, under its name and more.
        for each in dict.fromkeys([name, *(other for other in self.files if other.startswith(f"{name}."))]):
            path = self.folder / each
            if each not in self.files or not path.is_file() or _hash_file(path) != self.files[each]:
                raise ModelError(
                    f"{path} is missing or has changed", "the file as it was stored", "run dgate optimize again"
                )
        return self.folder / name


def list_artefacts(weights_hash: str) -> list[Artefact]:
    """Every artefact of a checkpoint, whatever its verdict, the newest first."""
    found = [read_artefact(file.parent) for file in _locate(weights_hash).glob(f"*/*/{ARTEFACT_FILE}")]
    return sorted(found, key=lambda artefact: artefact.created_at, reverse=True)


@contextmanager
def put_on_trial(artefact: Artefact) -> Iterator[None]:
    """Lets `find_artefact` find this one in this process, passed or not, so that the gate has pictures to judge."""
    _ON_TRIAL.append(artefact)
    try:
        yield
    finally:
        _ON_TRIAL.remove(artefact)


def find_artefact(weights_hash: str, quantization: str, backend: str) -> Artefact | None:
    """The newest artefact that passed its gate, or the one on trial; None where there is none.

    Args:
        weights_hash: Of the checkpoint that is to be served.
        quantization: `int8`, `fp8` or `nf4`.
        backend: Name in BACKENDS.
    """
    passed = [each for each in list_artefacts(weights_hash) if each.decision == "pass"]
    wanted = (weights_hash, quantization, backend)
    for each in (*_ON_TRIAL, *passed):
        if (each.weights_hash, each.quantization, each.backend) == wanted:
            return each
    return None


def read_artefact(folder: Path) -> Artefact:
    """Reads artefact.json.

    Raises:
        ModelError: it is missing, damaged, or of another version.
    """
    try:
        found = json.loads((folder / ARTEFACT_FILE).read_text(encoding="utf-8"))
        if found["version"] != ARTEFACT_VERSION:
            raise ValueError(f"version {found['version']}")
        return Artefact(folder=folder, **{**found, "kept_layers": tuple(found["kept_layers"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the artefact {folder} cannot be read: {error}",
            f"what `dgate optimize` writes, version {ARTEFACT_VERSION}",
            "remove the folder and run dgate optimize again",
        ) from error


def store_artefact(draft: Artefact) -> Artefact:
    """Puts a finished folder into its place; the same files made again keep place and verdict, until there is another.

    Args:
        draft: Its folder is moved; `files` and `created_at` are filled in here.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    files = {path.name: _hash_file(path) for path in sorted(draft.folder.iterdir()) if path.name != ARTEFACT_FILE}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    place = _locate(draft.weights_hash) / f"{draft.quantization}-{draft.backend}" / digest[:16]
    made = replace(draft, files=files, created_at=time.time())
    # A record that cannot be read has no verdict to keep: making it again is what mends it.
    with suppress(ModelError):
        before = read_artefact(place)
        made = replace(made, decision=before.decision, quality=before.quality, speed=before.speed)
    try:
        write_record(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        draft.folder.rename(place)
    except OSError as error:
        raise StorageError(
            f"{place} cannot be written: {error.strerror}",
            "room for the quantised model",
            "make room, or set DGATE_CACHE to a larger disk",
        ) from error
    return replace(made, folder=place)


def note_verdict(artefact: Artefact, decision: Decision, quality: Mapping[str, Any]) -> Artefact:
    """Writes down what the gate said; a pass makes it findable."""
    judged = replace(artefact, decision=decision, quality=dict(quality))
    write_record(judged)
    return judged


def note_speed(artefact: Artefact, speed: Mapping[str, Any]) -> Artefact:
    """Writes down how fast it is."""
    measured = replace(artefact, speed=dict(speed))
    write_record(measured)
    return measured


def write_record(artefact: Artefact) -> None:
    """Writes artefact.json, whole or not at all."""
    record = asdict(artefact)
    del record["folder"]
    draft = artefact.folder / f"{ARTEFACT_FILE}.draft"
    draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draft.replace(artefact.folder / ARTEFACT_FILE)


def make_draft_folder() -> Path:
    """A new folder on the cache's own disk, so that storing it is a rename.

    Raises:
        StorageError: the cache may not be written.
    """
    base = find_cache_folder() / "quantised"
    try:
        base.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="draft-", dir=base))
    except OSError as error:
        raise StorageError(
            f"{base} cannot be written: {error.strerror}", "a folder for quantised models", "set DGATE_CACHE"
        ) from error


def _locate(weights_hash: str) -> Path:
    return find_cache_folder() / "quantised" / weights_hash[:32]


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
