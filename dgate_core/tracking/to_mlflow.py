"""MLflow: one MLflow run per run of ours, found again by a tag, so that nothing is told twice.

Metrics carry the record's own time and step, which MLflow takes once; a tag per batch says that it has arrived.
The module is imported by its name in TRACKERS, which tells of a missing package.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from dgate_core.tracking.contract import PROJECT, TrackedRun, TrackerError
from dgate_core.tracking.local_json import RecordBatch
from dgate_core.tracking.record import PictureTable, TrackingRecord

ID_TAG = "dgate.id"
TABLES_TAG = "mlflow.loggedArtifacts"
MAX_ENTITIES = 100
MAX_PARAMETER_LENGTH = 6000
MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Left to itself MLflow retries for minutes; what is not sent now is sent by `dgate track sync`."""


def deliver(run: TrackedRun, batches: Sequence[RecordBatch]) -> Iterator[int]:
    """Sends batches to the server at MLFLOW_TRACKING_URI; see `Deliver`.

    Raises:
        TrackerError: MLFLOW_TRACKING_URI is not set.
        MlflowException: the server does not answer, or refuses.
    """
    for name, value in MANNERS.items():
        os.environ.setdefault(name, value)
    session = _Session(MlflowClient(tracking_uri=read_address()), run)
    for batch in batches:
        session.send(batch)
        yield batch.number
    session.close()


def read_address() -> str:
    """The server's address.

    Raises:
        TrackerError: there is none; MLflow itself would begin a database in the current folder.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address:
        raise TrackerError(
            "MLFLOW_TRACKING_URI is not set", "the server's address", "export MLFLOW_TRACKING_URI=http://HOST:5000"
        )
    return address


class _Session:
    """The MLflow run of one run, open."""

    def __init__(self, client: MlflowClient, run: TrackedRun) -> None:
        self._client, self._run = client, run
        self._found = find_run(client, run)
        self._id = self._found.info.run_id

    def send(self, batch: RecordBatch) -> None:
        """Sends a batch unless its tag says that it has arrived."""
        tag = f"dgate.arrived.{batch.number:05d}"
        if tag in self._found.data.tags:
            return
        for line, record in enumerate(batch.records):
            self._send_record(record, f"{batch.number:05d}-{line:03d}")
        self._client.set_tag(self._id, tag, "true")

    def close(self) -> None:
        """Tells that nothing more comes for now."""
        self._client.set_terminated(self._id)

    def _send_record(self, record: TrackingRecord, place: str) -> None:
        moment, step = int(record.created * 1000), record.step or 0
        metrics = [Metric(name, value, moment, step) for name, value in record.metrics.items()]
        tags = [RunTag(name, value) for name, value in record.labels.items()]
        new = record.parameters.keys() - self._found.data.params.keys()  # a parameter, once told, stands
        params = [Param(name, str(record.parameters[name])[:MAX_PARAMETER_LENGTH]) for name in sorted(new)]
        for start in range(0, max(len(metrics), len(params), len(tags)), MAX_ENTITIES):
            part = slice(start, start + MAX_ENTITIES)
            self._client.log_batch(self._id, metrics=metrics[part], params=params[part], tags=tags[part])
        for name, content in record.documents.items():
            self._client.log_dict(self._id, content, f"documents/{place}-{name}.json")
        for table in record.tables:
            self._send_table(table, f"tables/{place}-{table.name}")

    def _send_table(self, table: PictureTable, place: str) -> None:
        """As `log_table` does, which would add the same rows again if they were sent twice, and needs pandas."""
        shown = {table.columns.index(name) for name in table.pictures}
        rows = [
            [self._send_picture(cell, place) if number in shown and cell else cell for number, cell in enumerate(row)]
            for row in table.rows
        ]
        self._client.log_text(self._id, json.dumps({"columns": table.columns, "data": rows}), f"{place}.json")
        told = json.loads(self._client.get_run(self._id).data.tags.get(TABLES_TAG, "[]"))
        entry = {"path": f"{place}.json", "type": "table"}
        if entry not in told:
            self._client.set_tag(self._id, TABLES_TAG, json.dumps([*told, entry]))

    def _send_picture(self, key: str, place: str) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / key.rpartition("/")[2]
            self._run.storage.download_file(key, path)
            self._client.log_artifact(self._id, str(path), place)
        address = f"{place}/{path.name}"
        return {"type": "image", "filepath": address, "compressed_filepath": address}


def find_run(client: MlflowClient, run: TrackedRun) -> Run:
    """The MLflow run that carries this run's id, made if there is none."""
    experiment = find_experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
    found = client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run.id}'", max_results=1)
    if found:
        return found[0]
    tags = {ID_TAG: run.id, "dgate.folder": run.storage.uri}
    return client.create_run(experiment, tags=tags, run_name=run.name)


def find_experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment of this name, made if there is none."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # somebody else may just have made it
            if experiment is None:
                raise error
    return str(experiment.experiment_id)
