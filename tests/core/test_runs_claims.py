"""Claims between processes: races, leases, dead and sleeping holders, storage that does not answer."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgate_core.runs.claims import Holder, identify_holder, take_claim
from dgate_core.storage import open_storage, s3_client
from tests.chaos_proxy import ChaosPlan, ChaosProxy

_CONTEXT = multiprocessing.get_context("fork")
PREFIX = "shards/00001/_claim"


def hold_claim(root: str, lease_seconds: float, pipe: Any) -> None:
    """Takes the claim, says so, and answers each question with whether it is valid."""
    claim = take_claim(open_storage(root), PREFIX, identify_holder("lane-1"), lease_seconds)
    pipe.send(claim is not None)
    while pipe.recv():
        assert claim is not None
        pipe.send(claim.is_valid())


def start_holder(root: Path, lease_seconds: float) -> tuple[Any, Any]:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=hold_claim, args=(str(root), lease_seconds, theirs))
    process.start()
    assert ours.recv()
    return process, ours


def race(root: str, rounds: int, barrier: Any, pipe: Any) -> None:
    storage, won = open_storage(root), []
    for number in range(rounds):
        barrier.wait()
        won.append(take_claim(storage, f"shards/{number:05d}/_claim", identify_holder("x"), 60.0) is not None)
    pipe.send(won)
    pipe.recv()


def test_one_of_six_processes_wins_each_race(tmp_path: Path) -> None:
    barrier, pipes, processes = _CONTEXT.Barrier(6), [], []
    for _ in range(6):
        ours, theirs = _CONTEXT.Pipe()
        pipes.append(ours)
        processes.append(_CONTEXT.Process(target=race, args=(str(tmp_path), 20, barrier, theirs)))
        processes[-1].start()
    wins = [pipe.recv() for pipe in pipes]
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)  # until here everybody lives: a dead winner's claim would be free
        process.join()
    assert [sum(column) for column in zip(*wins, strict=True)] == [1] * 20


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    process, _ = start_holder(tmp_path, lease_seconds=3600)
    assert take_claim(open_storage(tmp_path), PREFIX, identify_holder("lane-2")) is None
    process.kill()
    process.join()
    claim = take_claim(open_storage(tmp_path), PREFIX, identify_holder("lane-2"))
    assert claim is not None
    assert claim.state.number == 2
    claim.release()
    assert not list(open_storage(tmp_path).list_objects())


def test_of_another_machine_only_the_lease_is_known(tmp_path: Path) -> None:
    storage, expires = open_storage(tmp_path), time.time() + 1.0
    holder = {"lane": "lane-1", "host": "elsewhere/5", "pid": 1, "started": 0.0}
    state = {"token": "aa", "holder": holder, "expires_at": expires}
    storage.write_bytes(f"{PREFIX}-0001", json.dumps(state).encode())
    assert take_claim(storage, PREFIX, Holder("lane-2", "here/5", 1, 0.0)) is None
    time.sleep(max(0.0, expires - time.time()) + 0.05)
    claim = take_claim(storage, PREFIX, identify_holder("lane-2"))
    assert claim is not None
    claim.release()


def test_a_claim_is_renewed_as_long_as_it_is_held(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with take_claim(storage, PREFIX, identify_holder("lane-1"), 1.0) as claim:  # type: ignore[union-attr]
        for _ in range(12):
            time.sleep(0.2)
            assert claim.is_valid()
            assert take_claim(storage, PREFIX, identify_holder("lane-2"), 1.0) is None
    again = take_claim(storage, PREFIX, identify_holder("lane-2"), 1.0)
    assert again is not None
    again.release()


@pytest.mark.parametrize("is_released", [False, True])
def test_a_sleeper_that_wakes_up_late_has_lost(tmp_path: Path, is_released: bool) -> None:
    """Also when the one that took over has come and gone meanwhile, and left no trace."""
    process, pipe = start_holder(tmp_path, lease_seconds=1.0)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.1)
    claim = take_claim(open_storage(tmp_path), PREFIX, identify_holder("lane-2"), 60.0)
    assert claim is not None
    if is_released:
        claim.release()
    os.kill(process.pid, signal.SIGCONT)
    for _ in range(4):
        pipe.send(True)
        assert not pipe.recv()
        time.sleep(0.2)
    assert claim.is_valid()
    names = [item.key for item in open_storage(tmp_path).list_objects()]
    assert names == ([] if is_released else [f"{PREFIX}-0001", f"{PREFIX}-0002"])
    pipe.send(False)
    process.join()
    claim.release()


def test_a_claim_whose_storage_is_gone_ends_by_itself(
    s3_uri: str, chaos: Callable[[ChaosPlan], ChaosProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "FIRST_DELAY_SECONDS", 0.005)
    proxy, storage = chaos(ChaosPlan()), open_storage(s3_uri)
    with take_claim(storage, PREFIX, identify_holder("lane-1"), 2.0) as claim:  # type: ignore[union-attr]
        time.sleep(1.0)
        assert claim.is_valid()
        proxy.plan = ChaosPlan(busy=1.0)
        time.sleep(2.0)
        assert not claim.is_valid()
