"""What a tracker is: a function that takes batches of records to a tool and says which have arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dgate_core.errors import DgateError
from dgate_core.registry import Registry
from dgate_core.storage import Storage
from dgate_core.tracking.local_json import RecordBatch

PROJECT = "d-gate"
"""W&B project and MLflow experiment, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise."""


class TrackerError(DgateError):
    """A tracker that cannot be used as it is set up."""

    code = "tracker"


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a tracker is told of."""

    storage: Storage
    """Its folder, where the pictures of tables are."""
    id: str
    """Its name in every tracker, 16 hex digits."""
    name: str
    """Its name for people."""


Deliver = Callable[[TrackedRun, Sequence[RecordBatch]], Iterator[int]]
"""Sends batches in order and yields the number of each once it has arrived; sending one again changes nothing there."""

TRACKERS = Registry(
    "tracker",
    {"wandb": "dgate_core.tracking.to_wandb:deliver", "mlflow": "dgate_core.tracking.to_mlflow:deliver"},
    extras={"wandb": "wandb", "mlflow": "mlflow"},
    takes_plugins=True,
)


def check_tracker(name: str) -> None:
    """Accepts a name of TRACKERS or a plug-in `module:function`; imports nothing.

    Raises:
        UsageError: it is neither.
    """
    TRACKERS.check(name)


def load_tracker(name: str) -> Deliver:
    """The function that a name stands for.

    Raises:
        UsageError: there is no such tracker.
        MissingExtraError: its package is not installed.
    """
    deliver: Deliver = TRACKERS.load(name)
    return deliver
