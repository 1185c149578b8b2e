"""Weights & Biases with WANDB_MODE=offline: what `wandb sync` would send is in its files, once."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from dgate_core.storage import Storage, open_storage
from dgate_core.tracking.contract import TrackedRun, TrackerError
from dgate_core.tracking.local_json import LocalLog
from dgate_core.tracking.record import PictureTable, TrackingRecord
from dgate_core.tracking.sending import start_sending
from tests.reports.sample_run import draw_postcard

pytest.importorskip("wandb")
PATIENT = 90.0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A run's folder with the records of a generation and of an evaluation."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    storage = open_storage(tmp_path / "night-shift")
    storage.write_bytes("tracking/pictures/a.png", draw_postcard(0, 64)[1])
    table = PictureTable(
        "worst", ("prompt", "picture"), ("picture",), (("a boat", "tracking/pictures/a.png"), ("-", ""))
    )
    log = LocalLog(storage)
    log.append([TrackingRecord("run", 1000.0, parameters={"steps": 20}, metrics={"ok": 64.0})])
    metrics, documents = {"clip_score": 0.25}, {"evaluation": {"n": 3}}
    log.append([TrackingRecord("evaluation", 2000.0, None, {}, metrics, {"verdict": "fail"}, (table,), documents)])
    return storage


def read_offline(folder: Path) -> list[dict[str, Any]]:
    """Every record in a W&B file: blocks of 32 KiB, chunks of (checksum, length, type), after a head of 7 bytes."""
    from google.protobuf.json_format import MessageToDict
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    data, place, parts, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # the whole of a record, or its last chunk
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(MessageToDict(record))
            parts = b""
    return found


def list_sessions(run: Storage) -> list[Path]:
    return sorted(Path(run.uri).glob("tracking/wandb-files/wandb/offline-run-*"))


def read_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was logged, by step."""
    rows = []
    for record in records:
        if "history" in record:
            items = record["history"]["item"]
            rows.append(
                {".".join(item.get("nestedKey", [item.get("key")])): json.loads(item["valueJson"]) for item in items}
            )
    return rows


def is_png(path: Path) -> bool:
    return path.read_bytes()[:4] == b"\x89PNG"


def test_offline_files_hold_everything_once(run: Storage) -> None:
    (outcome,) = start_sending(run.uri, ["wandb"], PATIENT).wait()
    assert (outcome.arrived, outcome.missing, outcome.error) == (2, 0, "")
    (session,) = list_sessions(run)
    assert session.name.endswith(LocalLog(run).read_id())
    records = read_offline(session)
    first, second = read_rows(records)
    assert first["ok"] == 64.0
    assert (second["clip_score"], second["worst._type"], second["worst.nrows"]) == (0.25, "table-file", 2)
    assert (first["_step"], second["_step"]) == (1000, 2000)
    text = json.dumps(records)
    assert '\\"fail\\"' in text
    assert '"steps"' in text
    assert json.loads(next(session.rglob("00002-000-evaluation.json")).read_text()) == {"n": 3}
    pictures = [path for path in Path(run.uri).glob("tracking/wandb-files/**/*") if path.is_file() and is_png(path)]
    assert len(pictures) == 1
    (outcome,) = start_sending(run.uri, ["wandb"], PATIENT).wait()
    assert outcome.missing == 0
    assert list_sessions(run) == [session]


def test_a_later_record_goes_to_the_same_run(run: Storage) -> None:
    assert start_sending(run.uri, ["wandb"], PATIENT).wait()[0].missing == 0
    LocalLog(run).append([TrackingRecord("training", 3000.0, step=7, metrics={"loss": 0.5})])
    assert start_sending(run.uri, ["wandb"], PATIENT).wait()[0].missing == 0
    sessions = list_sessions(run)
    assert len({session.name.rpartition("-")[2] for session in sessions}) == 1
    (row,) = read_rows(read_offline(sessions[-1]))
    assert (row["loss"], row["training_step"], row["_step"]) == (0.5, 7, 3000)


def test_a_bucket_needs_a_folder_for_the_files(run: Storage) -> None:
    from dgate_core.tracking.to_wandb import choose_folder

    with pytest.raises(TrackerError, match="WANDB_DIR"):
        choose_folder(TrackedRun(open_storage("s3://bucket/run"), "0" * 16, "run"))
