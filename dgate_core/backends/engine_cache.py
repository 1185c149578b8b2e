"""Exports and engines on disk, built once however many lanes start, and checked before use.

`KIND/SUBJECT/ENVIRONMENT/` holds an engine's files and engine.json, which names the whole key and each file's sha256;
it appears by one rename. DGATE_ENGINE_CACHE (a folder or s3://) is where machines share engines; the copy that is used
is in D-Gate's own cache in any case.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from dgate_core.backends.contract import ShapeBucket
from dgate_core.errors import ObjectNotFoundError, StorageError
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.hashing import find_cache_folder
from dgate_core.runs.claims import LEASE_SECONDS, identify_holder, take_claim
from dgate_core.storage import Storage, open_storage
from dgate_core.storage.files import os_errors
from dgate_core.telemetry.counts import count_engine_lookup

logger = logging.getLogger(__name__)

CACHE_VARIABLE: Final = "DGATE_ENGINE_CACHE"
RECORD_FILE: Final = "engine.json"
LONGEST_WAIT_SECONDS: Final = 2.0
"""Between two looks at an engine that somebody else builds."""

Build = Callable[[Path], object]
"""Writes an engine's files into an empty folder."""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that an engine depends on; another value of any field is another engine."""

    kind: str
    """`onnx` or `tensorrt`."""
    weights_hash: str
    """sha256 of the checkpoint, or of the quantised artefact."""
    family: str
    """Class of the pipeline."""
    bucket: ShapeBucket
    """Sizes that it serves."""
    precision: str
    """Dtype, with the quantization where there is one."""
    versions: tuple[str, ...] = ()
    """Of the libraries and the driver, such as `tensorrt 11.0`."""
    gpu: str = ""
    """Name of the GPU that it was tuned for; empty where it fits all."""

    @classmethod
    def of_model(cls, kind: str, model: LatentModel, bucket: ShapeBucket, versions: tuple[str, ...]) -> EngineKey:
        """For a model's own weights, on any GPU."""
        checkpoint = model.checkpoint
        precision = str(model.dtype).removeprefix("torch.")
        return cls(kind, checkpoint.weights_hash, checkpoint.pipeline_class, bucket, precision, versions)

    def to_record(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "versions": list(self.versions)}

    @property
    def subject(self) -> str:
        """Folder of the engines of the same thing for all machines."""
        return f"{self.kind}/{_digest([self.weights_hash, self.family, asdict(self.bucket), self.precision])}"

    @property
    def folder(self) -> str:
        """Folder of this engine."""
        return f"{self.subject}/{_digest([self.versions, self.gpu])}"


class EngineCache:
    """A folder of this machine, with or without a shared place behind it.

    Args:
        local: Where engines are used.
        shared: Where other machines find them; None keeps them here.
    """

    def __init__(self, local: Path, shared: Storage | None = None) -> None:
        self.local, self.shared = local, shared

    def obtain(self, key: EngineKey, build: Build, needed_bytes: int = 0) -> Path:
        """Folder of an engine, built now if nobody has; others who ask meanwhile wait.

        Args:
            key: What it must be.
            build: Called by one of all who ask at the same time.
            needed_bytes: Room that it will take, about.

        Raises:
            StorageError: no room, or storage does not answer.
        """
        place = self.local / key.folder
        if self._is_whole(place, key):
            count_engine_lookup("hit")
            return place
        storage = self.shared or open_storage(self.local)
        with _hold(storage, f"claims/{key.folder.replace('/', '-')}"):
            if self._is_whole(place, key):
                count_engine_lookup("hit")
            elif self._fetch(key):
                count_engine_lookup("fetched")
            else:
                count_engine_lookup("built")
                self._tell_stale(key)
                self._build(key, build, needed_bytes)
        return place

    def _is_whole(self, place: Path, key: EngineKey) -> bool:
        """Whether an engine is there and is what its record says; one that is not is told and left to be replaced."""
        if not (place / RECORD_FILE).is_file():
            return False
        problem = find_problem(place, key)
        if problem is not None:
            logger.warning("%s is built anew: %s", place, problem)
        return problem is None

    def _build(self, key: EngineKey, build: Build, needed_bytes: int) -> None:
        with self._draft() as draft:
            check_room(self.local, needed_bytes)
            started = time.time()
            build(draft)
            files = {path.name: _describe_file(path) for path in sorted(draft.iterdir())}
            record = {"key": key.to_record(), "files": files, "seconds": time.time() - started}
            (draft / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if self.shared is not None:
                for name in [*files, RECORD_FILE]:
                    self.shared.upload_file(draft / name, f"{key.folder}/{name}")
            self._place(draft, key)

    def _fetch(self, key: EngineKey) -> bool:
        """Brings an engine from the shared place; False where it has none that is whole."""
        if self.shared is None:
            return False
        try:
            record = json.loads(self.shared.read_bytes(f"{key.folder}/{RECORD_FILE}"))
            with self._draft() as draft:
                for name in [*record["files"], RECORD_FILE]:
                    self.shared.download_file(f"{key.folder}/{name}", draft / name)
                if not self._is_whole(draft, key):
                    return False
                self._place(draft, key)
        except (ObjectNotFoundError, ValueError, KeyError, TypeError):
            return False
        return True

    def _place(self, draft: Path, key: EngineKey) -> None:
        place = self.local / key.folder
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(place)

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """A folder on the cache's own disk, gone afterwards unless it was put in place."""
        with os_errors(self.local):
            self.local.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix="draft-", dir=self.local))
            try:
                yield draft
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def _tell_stale(self, key: EngineKey) -> None:
        """A word when the same thing was built for another machine or by another release."""
        others = [path for path in (self.local / key.subject).glob("*") if path.name != Path(key.folder).name]
        for other in others:
            logger.warning("the engine in %s is of another release or GPU: one for %s is built", other, key.versions)


def open_engine_cache() -> EngineCache:
    """D-Gate's own cache, with DGATE_ENGINE_CACHE behind it where that is set."""
    shared = os.environ.get(CACHE_VARIABLE)
    return EngineCache(find_cache_folder() / "engines", open_storage(shared) if shared else None)


def find_problem(place: Path, key: EngineKey) -> str | None:
    """Why an engine cannot be used; None when it can."""
    try:
        record = json.loads((place / RECORD_FILE).read_text(encoding="utf-8"))
        if differing := _find_difference(record["key"], key.to_record()):
            return differing
        for name, facts in record["files"].items():
            if _describe_file(place / name) != facts:
                return f"{name} is not what was built"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return None


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises StorageError when the disk has less room than an engine needs."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StorageError(
            f"{folder} has {free / 2**30:.1f} GiB left, and the engine needs {needed_bytes / 2**30:.1f} GiB",
            "room for the engine",
            "make room, or set DGATE_CACHE to a larger disk",
        )


def count_weights(model: LatentModel) -> int:
    """Bytes of the denoiser."""
    return sum(value.nbytes for value in model.denoiser.state_dict().values())


def read_driver_version() -> str:
    """Of NVIDIA's kernel module; empty where there is none."""
    file = Path("/proc/driver/nvidia/version")
    words = file.read_text().split() if file.is_file() else []
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "")


def name_gpu(device: torch.device) -> str:
    """As its driver calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


@contextmanager
def _hold(storage: Storage, prefix: str) -> Iterator[None]:
    """One builder at a time; a claim whose holder died ends by itself."""
    pause = 0.05
    holder = identify_holder("engine")
    while (claim := take_claim(storage, prefix, holder, LEASE_SECONDS)) is None:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_WAIT_SECONDS)
    with claim:
        yield


def _find_difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    for name, value in wanted.items():
        if there.get(name) != value:
            return f"its {name} is {there.get(name)}, wanted {value}"
    return None


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
