"""Tells trackers of a run and of its evaluation: the run's own JSON lines first, then W&B, MLflow and others.

Nothing here can fail a run because of a tracker: what is slow or down is ended at the limit and named in the outcome.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from PIL import Image

from dgate_core.evaluation.gate.verdict import verdict_to_record
from dgate_core.runs.pictures import PictureReader
from dgate_core.runs.store import RunStore
from dgate_core.storage import Storage, open_storage
from dgate_core.tracking.local_json import LocalLog
from dgate_core.tracking.record import PictureTable, TrackingRecord, record_to_line
from dgate_core.tracking.sending import Sending, start_sending
from reports.evaluation.collect import CollectedEvaluation, collect_evaluation
from reports.evaluation.page import choose_first_metric
from reports.evaluation.pairs import list_orders
from reports.evaluation.scores import BASELINE
from reports.summary import read_summary, read_time

TABLE_ROWS = 16
PICTURE_SIZE = 512


def publish_run(run_uri: str) -> Sending:
    """Records what a finished run is and did, and begins to send it to the trackers in its config.

    Returns:
        The sending; its `wait` gives what came of it.
    """
    store = RunStore(open_storage(run_uri))
    run = store.read_run()
    keep_record(LocalLog(store.storage), run_to_record(run))
    return start_sending(store.uri, list_trackers(run))


def publish_evaluation(run_uri: str, baseline_uri: str | None = None) -> Sending:
    """Records an evaluation with its verdict and its worst pictures, and begins to send it.

    Returns:
        The sending; its `wait` gives what came of it.

    Raises:
        EvaluationError: the run has not been evaluated.
    """
    storage = open_storage(run_uri)
    collected = collect_evaluation(storage, baseline_uri)
    keep_record(LocalLog(storage), evaluation_to_record(collected, storage))
    return start_sending(storage.uri, list_trackers(RunStore(storage).read_run()))


def keep_record(log: LocalLog, record: TrackingRecord) -> None:
    """Appends a record unless the very same is there, as after a second call for the same evaluation."""
    line = record_to_line(record)
    if all(record_to_line(earlier) != line for earlier in log.read_records()):
        log.append([record])


def list_trackers(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Trackers named in a run's config."""
    return tuple(run.get("trackers") or ())


def run_to_record(run: Mapping[str, Any]) -> TrackingRecord:
    """Settings as parameters; counts, speed and seconds by stage as metrics."""
    summary = read_summary(run)
    metrics = {f"images/{name}": float(count) for name, count in summary.counts.items()}
    metrics |= {f"seconds/{stage.name}": stage.seconds for stage in summary.stages}
    speeds = {"pictures_per_second": summary.pictures_per_second, "wall_seconds": summary.wall_seconds}
    metrics |= {name: value for name, value in speeds.items() if value is not None}
    parameters = {name: value for name, value in summary.details if name.startswith("spec.")}
    versions = {name: value for name, value in summary.details if name.startswith("versions.")}
    models = {f"model.{name}": str(facts["weights_hash"]) for name, facts in (run.get("models") or {}).items()}
    labels = {"state": summary.state, "fingerprint": str(run["fingerprint"]), **versions, **models}
    return TrackingRecord("run", run.get("finished_at") or time.time(), None, parameters, metrics, labels)


def evaluation_to_record(collected: CollectedEvaluation, storage: Storage) -> TrackingRecord:
    """Every metric that was measured, the verdict, the worst pictures, and the whole of both as documents."""
    evaluation, verdict = collected.evaluation, collected.verdict
    metrics = {metric.name: metric.value for metric in evaluation.metrics if metric.value is not None}
    for metric in evaluation.metrics:
        if metric.interval:
            metrics |= {f"{metric.name}/low": metric.interval[0], f"{metric.name}/high": metric.interval[1]}
    metrics |= {f"defects/{name}": float(count) for name, count in evaluation.defects.items()}
    documents: dict[str, Any] = {"evaluation": asdict(evaluation)}
    named = {"baseline": collected.baseline_name, "reference": evaluation.reference}
    labels = {name: value for name, value in named.items() if value}
    if verdict:
        documents["verdict"] = verdict_to_record(verdict)
        labels |= {"verdict": verdict.decision, "rules": verdict.rules}
    moment = read_time(evaluation.created)
    created = moment.timestamp() if moment else time.time()
    table = make_picture_table(collected, storage)
    return TrackingRecord("evaluation", created, None, {}, metrics, labels, (table,) if table else (), documents)


def make_picture_table(collected: CollectedEvaluation, storage: Storage) -> PictureTable | None:
    """The pictures that became worst in the metric that decided; copies of them are kept in the run's folder."""
    orders = list_orders(collected.evaluation, collected.comparison, choose_first_metric(collected), TABLE_ROWS)
    if not orders:
        return None
    baseline = open_storage(collected.baseline) if collected.baseline else None
    names = [metric for metric in collected.comparison.rows.column_names if collected.evaluation.find_metric(metric)]
    rows = []
    for place in orders[0].rows:
        row = collected.comparison.rows.slice(place, 1).to_pylist()[0]
        pictures = [
            copy_picture(storage, storage, row["path"], row["sha256"]),
            copy_picture(storage, baseline, row.get("path" + BASELINE), row.get("sha256" + BASELINE)),
        ]
        rows.append((row["id"], row["prompt"], *pictures, *(row[name] for name in names)))
    columns = ("id", "prompt", "picture", "baseline_picture", *names)
    return PictureTable("worst_pictures", columns, ("picture", "baseline_picture"), tuple(rows))


def copy_picture(run: Storage, source: Storage | None, path: str | None, sha256: str | None) -> str:
    """Key of a PNG of at most 512 pixels, named after the picture's hash; empty when there is none to read."""
    if source is None or not path or not sha256:
        return ""
    key = f"tracking/pictures/{sha256[:32]}.png"
    if not run.exists(key):
        try:
            run.write_bytes(key, shrink_picture(PictureReader(source).read(path)))
        except (OSError, ValueError, SyntaxError):
            return ""  # an unreadable picture is a defect, which the evaluation counts
    return key


def shrink_picture(data: bytes) -> bytes:
    """A PNG of at most 512 pixels on its long side."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB")
        small.thumbnail((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
        small.save(out, "PNG")
    return out.getvalue()
