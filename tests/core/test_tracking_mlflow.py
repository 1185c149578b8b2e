"""A real MLflow server on loopback: everything arrives once, also when the server is killed in the middle."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from dgate_core.errors import ObjectNotFoundError
from dgate_core.storage import Storage, open_storage
from dgate_core.tracking.contract import TrackedRun, TrackerError
from dgate_core.tracking.delivery import deliver_missing
from dgate_core.tracking.local_json import LocalLog
from dgate_core.tracking.record import PictureTable, TrackingRecord
from flows.commands.track import command
from tests.reports.sample_run import BARE_RUN, draw_postcard
from tests.run_lab import wait_for

pytest.importorskip("mlflow")
STARTING = 240.0


class MlflowServer:
    """`mlflow server` with one worker, its database and artifacts in a folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        places = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination",
            str(self.folder),
        ]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1", *places],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        wait_for(self.is_up, STARTING)  # MLflow imports itself twice

    def is_up(self) -> bool:
        time.sleep(0.25)  # asking all the time would take the processor from the server
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """kill -9 for the server and its worker; one that is dead already is fine."""
        if self.process.poll() is not None:
            return
        parent = psutil.Process(self.process.pid)
        for process in [*parent.children(recursive=True), parent]:
            process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def address(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    """A run's folder with the records of a generation and of an evaluation."""
    storage = open_storage(tmp_path / "night shift")
    storage.write_bytes("run.json", json.dumps(BARE_RUN).encode())
    storage.write_bytes("tracking/pictures/a.png", draw_postcard(0, 64)[1])
    table = PictureTable(
        "worst", ("prompt", "picture"), ("picture",), (("a boat", "tracking/pictures/a.png"), ("-", ""))
    )
    parameters = {f"spec.{number}": number for number in range(120)}
    log = LocalLog(storage)
    log.append([TrackingRecord("run", 1000.0, parameters=parameters, metrics={"ok": 64.0, "pictures_per_second": 3.5})])
    log.append([make_evaluation(0.25, table)])
    return storage


def make_evaluation(score: float, *tables: PictureTable) -> TrackingRecord:
    metrics = {"clip_score": score, "fd:starter-clip": 12.5, "lpips:alex": 0.125}
    return TrackingRecord(
        "evaluation", 2000.0 + score, None, {}, metrics, {"verdict": "fail"}, tables, {"evaluation": {"n": 3}}
    )


def read_remote(run: Storage) -> tuple[object, object]:
    """The one MLflow run of a run, and the client."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("d-gate")
    found = client.search_runs([experiment.experiment_id], f"tags.`dgate.id` = '{LocalLog(run).read_id()}'")
    assert len(found) == 1
    return client, found[0]


def check_remote(run: Storage) -> None:
    """What the server has is what the run recorded, each number once."""
    client, remote = read_remote(run)
    assert remote.info.run_name == "night shift"
    assert remote.info.status == "FINISHED"
    assert len(remote.data.params) == 120
    assert remote.data.params["spec.7"] == "7"
    assert remote.data.tags["verdict"] == "fail"
    told: dict[str, list[tuple[int, float]]] = {}
    for record in LocalLog(run).read_records():
        for name, value in record.metrics.items():
            told.setdefault(name, []).append((int(record.created * 1000), value))
    assert remote.data.metrics.keys() == told.keys()
    for name in ("ok", "fd:starter-clip"):
        history = client.get_metric_history(remote.info.run_id, name)
        assert sorted((point.timestamp, point.value) for point in history) == told[name]
    read = json.loads(read_artifact(client, remote, "tables/00002-000-worst.json"))
    assert read["columns"] == ["prompt", "picture"]
    assert read["data"][1] == ["-", ""]
    picture = read["data"][0][1]["filepath"]
    assert read_artifact(client, remote, picture) == run.read_bytes("tracking/pictures/a.png")
    assert json.loads(remote.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "tables/00002-000-worst.json", "type": "table"}
    ]
    assert json.loads(read_artifact(client, remote, "documents/00002-000-evaluation.json")) == {"n": 3}


def read_artifact(client: object, remote: object, path: str) -> bytes:
    return Path(client.download_artifacts(remote.info.run_id, path)).read_bytes()


def test_everything_arrives_once(run: Storage) -> None:
    assert list(deliver_missing(run.uri, "mlflow")) == [1, 2]
    check_remote(run)
    assert list(deliver_missing(run.uri, "mlflow")) == []
    # As after a kill between the sending and the mark.
    run.delete_many([item.key for item in run.list_objects("tracking/mlflow/")])
    LocalLog(run).append([make_evaluation(0.5)])
    assert list(deliver_missing(run.uri, "mlflow")) == [1, 2, 3]
    check_remote(run)


def test_a_batch_that_was_cut_in_the_middle_is_completed(run: Storage) -> None:
    """The metrics have arrived, the table has not: its picture cannot be read."""
    picture = run.read_bytes("tracking/pictures/a.png")
    run.delete("tracking/pictures/a.png")
    with pytest.raises(ObjectNotFoundError, match=r"tracking/pictures/a\.png"):
        list(deliver_missing(run.uri, "mlflow"))
    run.write_bytes("tracking/pictures/a.png", picture)
    assert list(deliver_missing(run.uri, "mlflow")) == [2]
    check_remote(run)


def test_a_server_killed_in_the_middle_costs_nothing_and_gets_the_rest(run: Storage, server: MlflowServer) -> None:
    sending = deliver_missing(run.uri, "mlflow")
    assert next(sending) == 1
    server.kill()
    with pytest.raises(Exception, match=f"port={server.port}"):
        next(sending)
    result = CliRunner().invoke(command, ["sync", run.uri, "--tracker", "mlflow"], standalone_mode=False)
    assert result.return_value == 1
    assert result.output.startswith("mlflow: 1 of 2 records not sent (")
    assert str(server.port) in result.output
    server.start()
    assert list(deliver_missing(run.uri, "mlflow")) == [2]
    check_remote(run)


def test_without_an_address_nothing_is_written_anywhere(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgate_core.tracking.to_mlflow import deliver

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(TrackerError, match="export MLFLOW_TRACKING_URI"):
        next(deliver(TrackedRun(run, "0" * 16, "x"), []))
