"""What ends a run for good, and that the committed part is intact and the run goes on once it is mended."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgate_core.engine.fleet import MAX_DEATHS_WITHOUT_PROGRESS
from dgate_core.storage import open_storage
from tests.faults import CrashWhileLoading
from tests.run_lab import Driver, Order, check_run_is_whole, list_prompts, snapshot, wait_for, write_manifest

ROWS = 64


def give_order(checkpoint: str, folder: Path, out: Path, lanes: int, fault: CrashWhileLoading | None = None) -> Order:
    manifest = write_manifest(folder / "m.jsonl", list_prompts(ROWS))
    settings = {"model": checkpoint, "precision": "float32", "lanes": lanes, "rows_per_shard": 8, "batch_size": 4}
    return Order(str(out), manifest, settings, fault=fault)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mount is refused: this needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("lanes", [1, 2])
def test_disk_full(checkpoint: str, tmp_path: Path, disk: Path, lanes: int) -> None:
    (disk / "ballast").write_bytes(bytes(4_000_000 - 250_000))
    order = give_order(checkpoint, tmp_path, disk / "run", lanes)
    answer = Driver(order).wait()
    assert answer.error == "storage"
    assert "the disk is full" in answer.message
    assert "free some space" in answer.message
    committed = snapshot(disk / "run")
    assert committed
    (disk / "ballast").unlink()
    answer = Driver(order).wait()
    assert not answer.error, answer.message
    assert snapshot(disk / "run").items() >= committed.items()
    assert "error" not in answer.run or answer.run["error"] is None
    check_run_is_whole(open_storage(disk / "run"), {"ok": ROWS})


def test_read_only_folder(checkpoint: str, tmp_path: Path, disk: Path) -> None:
    order = give_order(checkpoint, tmp_path, disk / "run", 1)
    assert not Driver(order).wait().error
    before = snapshot(disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for each in (order, give_order(checkpoint, tmp_path, disk / "other", 1)):
        answer = Driver(each).wait()
        assert answer.error == "storage"
        assert "the file system is read-only" in answer.message
        assert "choose another folder" in answer.message
    assert snapshot(disk / "run") == before


def test_two_drivers_on_one_folder(checkpoint: str, tmp_path: Path) -> None:
    order = give_order(checkpoint, tmp_path, tmp_path / "run", 2)
    first = Driver(order)
    wait_for(lambda: list((tmp_path / "run").glob("shards/*/_claim-*")))
    second = Driver(order).wait()
    assert second.error == "run"
    assert f"is being worked on by process {first.pid}" in second.message
    answer = first.wait()
    assert not answer.error, answer.message
    check_run_is_whole(open_storage(tmp_path / "run"), {"ok": ROWS})


def test_lanes_that_always_die_end_the_run(checkpoint: str, tmp_path: Path) -> None:
    fault = CrashWhileLoading(("lane-0", "lane-1"))
    answer = Driver(give_order(checkpoint, tmp_path, tmp_path / "run", 2, fault)).wait()
    assert answer.error == "run"
    assert f"died {MAX_DEATHS_WITHOUT_PROGRESS + 1} times in a row ({signal.SIGSEGV.name})" in answer.message
    assert not list((tmp_path / "run").glob("shards/*/_COMMIT"))


def test_one_broken_lane_does_not_end_the_run(checkpoint: str, tmp_path: Path) -> None:
    fault = CrashWhileLoading(("lane-1",))
    answer = Driver(give_order(checkpoint, tmp_path, tmp_path / "run", 2, fault)).wait()
    assert not answer.error, answer.message
    assert answer.run["state"] == "completed"
    check_run_is_whole(open_storage(tmp_path / "run"), {"ok": ROWS})
