"""A run under a lossy profile goes on with the levers that its first rows were made with, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgate_core.engine.begin import open_run
from dgate_core.engine.lane import Lane, LaneOptions
from dgate_core.engine.levers import hold_to_levers
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import RunMismatchError
from dgate_core.models.families.contract import Serving
from dgate_core.models.profiles import PROFILES, Profile, StepSavers
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from tests.run_lab import list_prompts, write_manifest

HASH = "0123456789abcdef" * 4


def test_another_artefact_is_refused_and_the_same_one_goes_on(tmp_path: Path) -> None:
    store = RunStore(open_storage(str(tmp_path)))
    first = Serving("compiled", "cuda", "bfloat16", "fp8", "fp8-one", ("deep-cache-2",))
    hold_to_levers(store, HASH, first)
    hold_to_levers(store, HASH, Serving("eager", "cuda", "bfloat16", "fp8", "fp8-one", ("deep-cache-2",)))
    for other in (
        ("fp8", "fp8-two", ("deep-cache-2",)),
        ("fp8", "fp8-one", ()),
        ("int8", "fp8-one", ("deep-cache-2",)),
    ):
        with pytest.raises(RunMismatchError, match="fp8 artefact fp8-one, deep-cache-2"):
            hold_to_levers(store, HASH, Serving("compiled", "cuda", "bfloat16", *other))
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_lossless_runs_carry_no_such_file(tmp_path: Path) -> None:
    store = RunStore(open_storage(str(tmp_path)))
    hold_to_levers(store, HASH, Serving("compiled", "cuda", "bfloat16"))
    assert not list(tmp_path.iterdir())


def test_a_lane_refuses_to_mix(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile is set otherwise between two sessions of one run, as by a newer release."""
    monkeypatch.setitem(PROFILES, "saving", Profile("saving", ("eager",), savers=StepSavers(deep_cache_interval=2)))  # type: ignore[arg-type]
    manifest = write_manifest(tmp_path / "m.jsonl", list_prompts(4, num_inference_steps=2))
    settings = RunSettings(model=checkpoint, device="cpu", precision="float32", profile="saving", rows_per_shard=2)
    store = open_run([manifest], str(tmp_path / "run"), settings).store
    stop = StopSignal()
    lane = Lane(store, LaneOptions(device="cpu"), stop)
    monkeypatch.setattr(lane, "_commit", lambda *given: stop.set() or Lane._commit(lane, *given))
    lane.work()
    assert len(list(tmp_path.glob("run/shards/*/_COMMIT"))) == 1
    (file,) = tmp_path.glob("run/levers/*.json")
    assert json.loads(file.read_text())["savers"] == ["deep-cache-2"]
    monkeypatch.setitem(PROFILES, "saving", Profile("saving", ("eager",), savers=StepSavers(deep_cache_interval=3)))  # type: ignore[arg-type]
    with pytest.raises(RunMismatchError, match="deep-cache-3"):
        Lane(store, LaneOptions(device="cpu"), StopSignal()).work()
    monkeypatch.setitem(PROFILES, "saving", Profile("saving", ("eager",), savers=StepSavers(deep_cache_interval=2)))  # type: ignore[arg-type]
    Lane(store, LaneOptions(device="cpu"), StopSignal()).work()
    assert len(list(tmp_path.glob("run/shards/*/_COMMIT"))) == 2
