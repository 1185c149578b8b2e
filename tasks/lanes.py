"""The lanes of a run: all of them on this machine, or one of them, for a worker of the pool."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, Failed

from dgate_core.config import build_settings
from dgate_core.engine.generate import GenerateOptions
from dgate_core.engine.lane import Lane, LaneOptions
from dgate_core.engine.local import execute_lanes
from dgate_core.engine.stopping import StopSignal, listen_for_signals
from dgate_core.errors import DgateError
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from tasks.artifacts import publish_progress


@dataclass(frozen=True, slots=True)
class LaneParameters:
    """What the flow `generate_lane` is told."""

    lane: str
    """Its name, unique in the run."""
    number: int
    """Lanes begin at different shards."""
    device: str
    """cpu, cuda, mps or auto."""
    batch_size: int | None
    """Rows per batch; None finds the best."""
    lease_seconds: float
    """How long a silent lane keeps its shard."""


@task(name="run lanes", cache_policy=NO_CACHE, persist_result=False)
def run_local_lanes(run: str, settings: dict[str, Any]) -> None:
    """Runs all lanes on this machine until the work is done or a signal stops it."""
    store, stop = RunStore(open_storage(run)), StopSignal()
    with publish_progress(store):
        execute_lanes(store, build_settings(RunSettings, settings), stop, lambda _reports: None)
    if stop.is_set():
        store.update_run(state="cancelled")  # at once: whoever stops a run may not wait for its results


@task(name="work as a lane", cache_policy=NO_CACHE, persist_result=False)
def work_as_lane(run: str, parameters: LaneParameters) -> dict[str, Any]:
    """Claims shards until none are left.

    Returns:
        The lane's report.
    """
    options = LaneOptions(
        parameters.lane,
        parameters.number,
        parameters.device,
        lease_seconds=parameters.lease_seconds,
        generate=GenerateOptions(batch_size=parameters.batch_size),
    )
    stop = StopSignal()
    with listen_for_signals(stop):
        return asdict(Lane(RunStore(open_storage(run)), options, stop).work())


def conclude_lane(state: State[dict[str, Any]]) -> dict[str, Any] | State[Any]:
    """The lane's report, or a state that tells a reconciler whether starting again would help."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, DgateError):
        return Failed(name="Refused", message=str(result))
    if isinstance(result, BaseException):
        raise result
    if result["state"] == "stopped":
        return Cancelled(message=f"{result['lane']} was stopped; its finished rows are kept")
    return result
