"""Models by a mirror in a real S3 server: whole or not at all, gone on with after a kill, every byte checked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dgate_core.errors import DgateError, ModelError, StorageError
from dgate_core.models import mirror_fetch
from dgate_core.models.aliases import REGISTRY_VARIABLE
from dgate_core.models.catalog import CATALOG, find_checkpoint
from dgate_core.models.importing import ImportOptions, import_to_mirror, import_to_registry
from dgate_core.models.mirror import locate_pulled
from dgate_core.models.mirror_fetch import PullOptions, pull_from_mirror
from dgate_core.models.model_manifest import MANIFEST_NAME
from dgate_core.models.pull import PullSource, pull_model
from dgate_core.models.verify import verify_model
from dgate_core.storage import open_storage
from tests.chaos_proxy import ChaosPlan, ChaosProxy
from tests.original_layout import write_original
from tests.tiny import make_sd

PIECE = 16 << 10
SMALL = PullOptions(workers=4, piece_bytes=PIECE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd(tmp_path_factory.mktemp("pulled"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: cache and registry."""
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "registry" / "models.json"))
    return tmp_path


def publish(folder: Path, mirror: str, name: str = "boats") -> None:
    import_to_mirror(str(folder), name, mirror, ImportOptions("MIT", 7, 2.5), lambda _: None)


def pull(mirror: str, name: str = "boats") -> Path:
    return pull_model(name, PullSource(mirror, options=SMALL), lambda _: None)


def refuse(action: Callable[[], object]) -> str:
    with pytest.raises(DgateError) as caught:
        action()
    return str(caught.value)


def test_a_model_goes_up_and_comes_down_the_same(folder: Path, s3_uri: str) -> None:
    publish(folder, s3_uri)
    path = pull_model(f"{s3_uri}/boats", PullSource(options=SMALL), lambda _: None)
    checkpoint = find_checkpoint("boats")
    assert Path(checkpoint.folder) == path == locate_pulled("boats") / "files"
    assert checkpoint.weights_hash == find_checkpoint(str(folder)).weights_hash
    assert (checkpoint.spec.num_inference_steps, checkpoint.spec.guidance_scale, checkpoint.spec.licence) == (
        7,
        2.5,
        "MIT",
    )
    assert {file.state for file in verify_model("boats", lambda _: None).files} == {"ok"}
    again = pull_from_mirror(s3_uri, "boats", SMALL, lambda _: None)
    assert again.fetched_bytes == 0


def test_a_name_of_the_catalogue_is_taken_from_the_mirror(
    folder: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder, s3_uri, "sd15")
    monkeypatch.setenv("DGATE_MODEL_MIRROR", s3_uri)
    pull_model("sd15", PullSource(), lambda _: None)
    checkpoint = find_checkpoint("sd15")
    assert checkpoint.folder == str(locate_pulled("sd15") / "files")
    assert checkpoint.spec == CATALOG["sd15"]


def test_a_single_file_travels_with_its_configs(tmp_path: Path, s3_uri: str) -> None:
    wide = make_sd(tmp_path, width=768, attends=(True, False))
    file = write_original(wide, wide.parent / "model.safetensors")
    publish(file, s3_uri)
    path = pull_model(f"{s3_uri}/boats", PullSource(), lambda _: None)
    assert path.name == "model.safetensors"
    assert find_checkpoint("boats").weights_hash == find_checkpoint(str(file)).weights_hash


PULL_SLOWLY = """
import sys
from dgate_core.models.mirror_fetch import PullOptions, pull_from_mirror
pull_from_mirror(sys.argv[1], "boats", PullOptions(workers=1, piece_bytes=int(sys.argv[2])), print)
"""


def test_a_pull_that_was_killed_goes_on(
    folder: Path, s3_uri: str, home: Path, chaos: Callable[[ChaosPlan], ChaosProxy]
) -> None:
    publish(folder, s3_uri)
    chaos(ChaosPlan(delay=1.0, delay_seconds=0.05))
    process = subprocess.Popen([sys.executable, "-c", PULL_SLOWLY, s3_uri, str(PIECE)], env=os.environ)
    journal = home / "cache" / "models" / ".boats.partial" / ".pieces"
    try:
        end = time.monotonic() + 30
        while not journal.is_file() or len(journal.read_text().splitlines()) < 5:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not locate_pulled("boats").exists(), "whole or not at all"
    pulled = pull_from_mirror(s3_uri, "boats", SMALL, lambda _: None)
    assert pulled.kept_bytes > 0
    assert pulled.fetched_bytes + pulled.kept_bytes == pulled.manifest.size
    assert find_checkpoint(str(pulled.path)).weights_hash == find_checkpoint(str(folder)).weights_hash
    assert [path.name for path in (home / "cache" / "models").glob(".boats*")] == [".boats.lock"]


def test_a_bad_network_changes_nothing(folder: Path, s3_uri: str, chaos: Callable[[ChaosPlan], ChaosProxy]) -> None:
    publish(folder, s3_uri)
    proxy = chaos(ChaosPlan(seed=3, busy=0.1, cut_download=0.1))
    path = pull(s3_uri)
    assert proxy.faults > 0
    assert find_checkpoint(str(path)).weights_hash == find_checkpoint(str(folder)).weights_hash


def test_a_file_that_is_not_what_the_manifest_says(folder: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    publish(folder, str(mirror))
    file = mirror / "boats" / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    told = refuse(lambda: pull(str(mirror)))
    assert "unet/diffusion_pytorch_model.safetensors has sha256" in told
    assert not locate_pulled("boats").exists()
    data[-1] ^= 1
    file.write_bytes(data)
    pulled = pull_from_mirror(str(mirror), "boats", SMALL, lambda _: None)
    assert pulled.fetched_bytes == len(data), "the other files were kept"


def test_a_mirror_without_its_manifest(folder: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    publish(folder, str(mirror))
    (mirror / "boats" / MANIFEST_NAME).unlink()
    assert f"files without {MANIFEST_NAME}" in refuse(lambda: pull(str(mirror)))
    assert "there is nothing at" in refuse(lambda: pull(str(mirror), "ships"))


@pytest.mark.parametrize(
    ("path", "word"),
    [("unet/weights.ckpt", "run any code"), ("../outside.json", "is not valid"), ("run.py", "run any code")],
)
def test_a_manifest_that_lists_what_no_model_holds(folder: Path, tmp_path: Path, path: str, word: str) -> None:
    mirror = tmp_path / "mirror"
    publish(folder, str(mirror))
    manifest = mirror / "boats" / MANIFEST_NAME
    record = json.loads(manifest.read_text())
    record["files"].append({"path": path, "size": 1, "sha256": "0" * 64})
    manifest.write_text(json.dumps(record))
    assert word in refuse(lambda: pull(str(mirror)))


def test_a_damaged_manifest(folder: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    publish(folder, str(mirror))
    (mirror / "boats" / MANIFEST_NAME).write_text('{"version": 7, "files": []}')
    assert "version 7" in refuse(lambda: pull(str(mirror)))


def test_another_model_under_the_same_name_is_refused(folder: Path, tmp_path: Path) -> None:
    mirror = str(tmp_path / "mirror")
    publish(folder, mirror)
    publish(folder, mirror)
    other = make_sd(tmp_path / "other", seed=5)
    assert "holds another model" in refuse(lambda: publish(other, mirror))


def test_a_new_version_takes_the_place_of_the_old_one(folder: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    publish(folder, str(mirror))
    pull(str(mirror))
    shutil.rmtree(mirror)
    other = make_sd(tmp_path / "other", seed=5)
    publish(other, str(mirror))
    pull(str(mirror))
    assert find_checkpoint("boats").weights_hash == find_checkpoint(str(other)).weights_hash


def test_no_room_on_the_disk_is_known_before_anything_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = str(tmp_path / "mirror")
    publish(folder, mirror)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(mirror_fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"0\.00 GB free"):
        pull(mirror)
    assert not list((tmp_path / "cache" / "models").glob("**/*.safetensors"))


def test_offline_takes_what_is_here_and_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    mirror = str(tmp_path / "mirror")
    publish(folder, mirror)
    offline = PullSource(mirror, offline=True)
    assert "unknown model 'boats'" in refuse(lambda: pull_model("boats", offline, lambda _: None))
    assert "offline mode" in refuse(lambda: pull_model("sdxl", offline, lambda _: None))
    pull(mirror)
    assert pull_model("boats", offline, lambda _: None) == locate_pulled("boats") / "files"


def test_names_that_mean_something_else_are_refused(folder: Path) -> None:
    for name, word in (("sdxl", "catalogue"), ("a/b", "small letters"), ("x.safetensors", "small letters")):
        with pytest.raises(ModelError, match=word):
            import_to_registry(str(folder), name, ImportOptions())
    storage = open_storage(folder)
    assert storage.exists("model_index.json")
