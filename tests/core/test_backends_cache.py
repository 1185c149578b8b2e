"""The engine cache: built once, checked before use, built anew with a word when stale, shared between machines."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dgate_core.backends.contract import ShapeBucket
from dgate_core.backends.engine_cache import RECORD_FILE, EngineCache, EngineKey, find_problem
from dgate_core.backends.opening import serve_model
from dgate_core.errors import StorageError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.unet import UNetFamily
from dgate_core.models.profiles import Profile, find_profile
from dgate_core.storage import open_storage
from tests.tiny import make_sd

KEY = EngineKey("tensorrt", "0" * 64, "FluxPipeline", ShapeBucket(512, 512), "bfloat16", ("tensorrt 11.0",), "H200")


class Builder:
    """Writes an engine and counts how often."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.times, self.seconds, self._lock = 0, seconds, threading.Lock()

    def __call__(self, folder: Path) -> None:
        with self._lock:
            self.times += 1
        time.sleep(self.seconds)
        (folder / "x.engine").write_bytes(b"engine %d" % self.times)


def test_many_who_ask_at_once_build_once(tmp_path: Path) -> None:
    build = Builder(seconds=0.3)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(EngineCache(tmp_path).obtain, KEY, build) for _ in range(6)]
        found = {each.result() for each in asked}
    assert build.times == 1
    assert [(folder / "x.engine").read_bytes() for folder in found] == [b"engine 1"]


def test_every_field_of_the_key_makes_another_engine(tmp_path: Path) -> None:
    others = [
        replace(KEY, weights_hash="1" * 64),
        replace(KEY, family="StableDiffusionPipeline"),
        replace(KEY, bucket=ShapeBucket(512, 768)),
        replace(KEY, bucket=ShapeBucket(512, 512, 4)),
        replace(KEY, precision="float16"),
        replace(KEY, versions=("tensorrt 11.1",)),
        replace(KEY, gpu="L40S"),
    ]
    assert len({key.folder for key in [KEY, *others]}) == 8
    build = Builder()
    for key in [KEY, *others, KEY]:
        EngineCache(tmp_path).obtain(key, build)
    assert build.times == 8


def test_another_release_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    EngineCache(tmp_path).obtain(KEY, Builder())
    with caplog.at_level(logging.WARNING):
        EngineCache(tmp_path).obtain(replace(KEY, versions=("tensorrt 11.1",)), Builder())
    assert "another release or GPU" in caplog.text


def test_a_damaged_engine_is_built_anew_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = Builder()
    folder = EngineCache(tmp_path).obtain(KEY, build)
    (folder / "x.engine").write_bytes(b"engine X")
    with caplog.at_level(logging.WARNING):
        assert EngineCache(tmp_path).obtain(KEY, build) == folder
    assert "x.engine is not what was built" in caplog.text
    assert (folder / "x.engine").read_bytes() == b"engine 2"


def test_an_engine_of_another_gpu_in_the_place_is_not_used(tmp_path: Path) -> None:
    build = Builder()
    elsewhere = EngineCache(tmp_path / "a").obtain(replace(KEY, gpu="L40S"), build)
    place = tmp_path / "b" / KEY.folder
    place.parent.mkdir(parents=True)
    elsewhere.rename(place)
    assert find_problem(place, KEY) == "its gpu is L40S, wanted H200"
    EngineCache(tmp_path / "b").obtain(KEY, build)
    assert find_problem(place, KEY) is None


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"...")
        raise RuntimeError("out of workspace")

    with pytest.raises(RuntimeError):
        EngineCache(tmp_path).obtain(KEY, fail)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    assert EngineCache(tmp_path).obtain(KEY, Builder()).is_dir()


def test_no_room_is_told_before_the_work(tmp_path: Path) -> None:
    build = Builder()
    with pytest.raises(StorageError, match="GiB left, and the engine needs"):
        EngineCache(tmp_path).obtain(KEY, build, needed_bytes=1 << 60)
    assert build.times == 0


def test_machines_share_engines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build, shared = Builder(), open_storage(tmp_path / "shared")
    EngineCache(tmp_path / "one", shared).obtain(KEY, build)
    folder = EngineCache(tmp_path / "two", shared).obtain(KEY, build)
    assert (build.times, (folder / "x.engine").read_bytes()) == (1, b"engine 1")
    (tmp_path / "shared" / KEY.folder / "x.engine").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        EngineCache(tmp_path / "three", shared).obtain(KEY, build)
    assert build.times == 2
    assert find_problem(tmp_path / "shared" / KEY.folder, KEY) is None
    (tmp_path / "shared" / KEY.folder / RECORD_FILE).write_text("{")
    EngineCache(tmp_path / "four", shared).obtain(KEY, build)
    assert build.times == 3


def test_a_cache_that_cannot_be_written_is_a_recorded_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(str(make_sd(tmp_path)))
    (tmp_path / "cache").write_text("a file stands here")
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    key = BatchKey("tiny", 32, 32, 1, "default", 1.0)
    model = serve_model(
        UNetFamily().load(checkpoint, LoadOptions("cpu", "float32")), Profile("mine", ("onnx_runtime", "eager"))
    )
    model.warm_up(key, 2)
    assert model.serving.backend == "eager"
    assert "a file stands where a folder should be" in model.serving.warnings[0]
    alone = serve_model(
        UNetFamily().load(checkpoint, LoadOptions("cpu", "float32")), find_profile("onnx_runtime", "cpu")
    )
    for _ in range(2):
        with pytest.raises(StorageError):
            alone.warm_up(key, 2)
