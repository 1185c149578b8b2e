"""Weights & Biases: one W&B run per run of ours, under an id of our own, so that nothing is told twice.

Every record has a step of its own that only grows, and W&B drops a step that it has; a word in the run's summary says
which batches have arrived. The module is imported by its name in TRACKERS, which tells of a missing package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from dgate_core.tracking.contract import PROJECT, TrackedRun, TrackerError
from dgate_core.tracking.local_json import MAX_BATCH_RECORDS, RecordBatch
from dgate_core.tracking.record import PictureTable, TrackingRecord

INIT_SECONDS = 30.0
FOLDER_KEY = "tracking/wandb-files"


def deliver(run: TrackedRun, batches: Sequence[RecordBatch]) -> Iterator[int]:
    """Sends batches as WANDB_MODE, WANDB_PROJECT and W&B's other variables say; see `Deliver`.

    Nothing has arrived before W&B has closed the run, so the numbers come all at the end.

    Raises:
        TrackerError: W&B is offline and has no folder to write to.
        wandb.Error: W&B does not answer, or refuses.
    """
    with open_session(run) as session:
        arrived = set(session.summary.get("dgate_arrived") or ())
        for batch in batches:
            if batch.number not in arrived:
                send_batch(session, run, batch)
        session.summary["dgate_arrived"] = sorted(arrived | {batch.number for batch in batches})
    yield from (batch.number for batch in batches)


def open_session(run: TrackedRun) -> wandb.Run:
    """The W&B run of a run, made or gone on with."""
    folder = choose_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    # The pictures of tables wait here for `wandb sync`; left to itself W&B keeps them in the person's home.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "data"))
    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, init_timeout=INIT_SECONDS
    )
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        id=run.id,
        name=run.name,
        dir=str(folder),
        # Offline, W&B cannot ask whether there is one; its server joins what comes under one id.
        resume=None if is_offline() else "allow",
        settings=settings,
    )


def is_offline() -> bool:
    """Whether W&B only writes files, which `wandb sync` sends later."""
    return os.environ.get("WANDB_MODE") == "offline"


def choose_folder(run: TrackedRun) -> Path:
    """WANDB_DIR, or a folder inside the run's own.

    Raises:
        TrackerError: the run lies in a bucket and WANDB_DIR is not set.
    """
    if given := os.environ.get("WANDB_DIR"):
        return Path(given)
    inside = run.storage.local_path(FOLDER_KEY)
    if inside is None:
        raise TrackerError(
            f"W&B has no folder for its files: {run.storage.uri} is no folder",
            "WANDB_DIR",
            "export WANDB_DIR=FOLDER (offline runs stay there)",
        )
    return inside


def send_batch(session: wandb.Run, run: TrackedRun, batch: RecordBatch) -> None:
    """Every record at a step that it alone has."""
    for line, record in enumerate(batch.records):
        session.config.update(dict(record.parameters), allow_val_change=True)
        session.summary.update(dict(record.labels))
        session.log(record_to_row(record, run), step=batch.number * MAX_BATCH_RECORDS + line)
        for name, content in record.documents.items():
            save_document(session, f"{batch.number:05d}-{line:03d}-{name}.json", content)


def record_to_row(record: TrackingRecord, run: TrackedRun) -> dict[str, Any]:
    """Metrics and tables by name, and the training's step where there is one."""
    row: dict[str, Any] = dict(record.metrics)
    row |= {table.name: table_to_wandb(table, run) for table in record.tables}
    return row if record.step is None else {**row, "training_step": record.step}


def table_to_wandb(table: PictureTable, run: TrackedRun) -> wandb.Table:
    """The table with its pictures read."""
    shown = {table.columns.index(name) for name in table.pictures}

    def read_cell(number: int, cell: Any) -> Any:
        if number not in shown:
            return cell
        if not cell:
            return None  # W&B knows a picture or nothing, but no text in its place
        with run.storage.open_read(cell) as stream:
            return wandb.Image(Image.open(stream).convert("RGB"))

    rows: list[Iterable[Any]] = [[read_cell(number, cell) for number, cell in enumerate(row)] for row in table.rows]
    return wandb.Table(columns=list(table.columns), data=rows)


def save_document(session: wandb.Run, name: str, content: Any) -> None:
    """A JSON file among the run's files."""
    path = Path(session.dir) / "documents" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    session.save(str(path), base_path=session.dir, policy="now")
