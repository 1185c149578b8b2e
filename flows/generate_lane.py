"""One lane of a run, as a worker of the pool runs it."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.lanes import LaneParameters, conclude_lane, work_as_lane


@flow(name="generate_lane", retries=0, persist_result=False)
def generate_lane(
    run: str,
    lane: str = "lane-0",
    number: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    lease_seconds: float = 120.0,
) -> Any:
    """Works as one lane of a planned run until no shard is left.

    Started by `generate_images` with `execution=work_pool`; a further lane may be added to a run at any time.

    Args:
        run: The run's folder, a path that this worker sees or s3://.
        lane: Name of the lane, unique in the run.
        number: Lanes begin at different shards, so that they seldom meet.
        device: cpu, cuda, mps or auto.
        batch_size: Rows per batch; none finds the best.
        lease_seconds: How long a silent lane keeps its shard.
    """
    parameters = LaneParameters(lane, number, device, batch_size, lease_seconds)
    return conclude_lane(work_as_lane(run, parameters, return_state=True))
