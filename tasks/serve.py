"""The API on a worker for a bounded time, one picture from a form, and batches of the API as flow runs."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelling

from dgate_core.api.admission import open_gatekeeper
from dgate_core.api.batch_runner import BatchEnd, BatchHandle, BatchOrder
from dgate_core.api.bounded_serving import BoundedServer, run_server
from dgate_core.api.metrics_routes import make_metrics_router, watch_pools
from dgate_core.api.one_picture import make_pictures
from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from dgate_core.api.waiting_room import Made
from dgate_core.config import build_settings
from dgate_core.engine.provenance import SUFFIXES
from dgate_core.engine.stopping import StopSignal, listen_for_signals
from dgate_core.errors import RunError
from dgate_core.runs.settings import RunSettings
from dgate_core.storage import open_storage
from dgate_core.telemetry.server import open_telemetry
from tasks.pool_lanes import HOW_TO_DEPLOY

logger = logging.getLogger(__name__)

DEPLOYMENT = "generate_images/generate_images"


@task(name="serve", cache_policy=NO_CACHE, persist_result=False)
def serve_until(settings: dict[str, Any], minutes: float, idle_minutes: float) -> str:
    """Serves until its time is over, nobody has asked for a while, or the flow run is cancelled.

    Returns:
        Why it ended: time, idle, stopped or ended.
    """
    stop = StopSignal()
    asked, telemetry = build_settings(ApiSettings, settings), open_telemetry()
    parts = Parts(
        gatekeeper=open_gatekeeper(asked.keys_file),
        telemetry=telemetry,
        routers=(make_metrics_router(telemetry.metrics),),
    )
    with closing(telemetry), listen_for_signals(stop), run_server(asked, parts) as server:
        watch_pools(telemetry.metrics, server.services)
        show_address(server, minutes, idle_minutes)
        return server.wait(minutes * 60, idle_minutes * 60, stop)


def show_address(server: BoundedServer, minutes: float, idle_minutes: float) -> None:
    """An artifact with what a person needs to use the server."""
    models = ", ".join(model["id"] for model in server.services.models.list_all())
    create_markdown_artifact(
        f"# [{server.address}]({server.address}/)\n\n"
        f"Serves {models} for {minutes:g} minutes, or until nobody has asked for {idle_minutes:g}.\n\n"
        f"- page: {server.address}/\n- examples: {server.address}/docs\n"
        f"- OpenAI's SDK: `OPENAI_BASE_URL={server.address}/v1`\n",
        key="dgate-api",
        description=f"The API at {server.address}",
    )
    logger.info("the API is at %s", server.address)


@task(name="make pictures", cache_policy=NO_CACHE, persist_result=False)
def make_files(settings: dict[str, Any], body: dict[str, Any], out: str) -> list[str]:
    """Makes the pictures of one request and writes them into a folder.

    Returns:
        Their addresses; empty for one that the safety policy withholds.
    """
    made, storage = make_pictures(build_settings(ApiSettings, settings), body), open_storage(out)
    addresses = []
    for each in made:
        key = f"{each.row['row_id']}.{SUFFIXES[body.get('output_format') or 'png']}"
        if each.data is not None:
            storage.write_bytes(key, each.data)
        addresses.append("" if each.data is None else storage.uri_of(key))
    show_pictures(made, addresses)
    return addresses


def show_pictures(made: list[Made], addresses: list[str]) -> None:
    """An artifact with where the pictures are and how to get them again."""
    lines = ["| picture | seed | size | steps | guidance |", "|---|---|---|---|---|"]
    for each, address in zip(made, addresses, strict=True):
        row = each.row
        cells = (
            f"[{Path(address).name}]({address})" if address else "withheld",
            row["seed"],
            f"{row['width']}x{row['height']}",
            row["num_inference_steps"],
            row["guidance_scale"],
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    prompt = made[0].row["prompt"].replace("\n", " ")
    create_markdown_artifact(f"> {prompt}\n\n" + "\n".join(lines), key="dgate-picture", description="Pictures")


class PoolRunner:
    """A `BatchRunner`: batches of the API as runs of the deployment `generate_images`."""

    def submit(self, order: BatchOrder) -> BatchHandle:
        """See `BatchRunner`; a run that outlived the server is found again by its key.

        Raises:
            RunError: the deployment does not exist, or no Prefect server answers.
        """
        defaults = RunSettings()
        names = (name for name in RunSettings.__slots__ if name != "device")
        settings = {
            name: value for name in names if (value := getattr(order.settings, name)) != getattr(defaults, name)
        }
        try:
            submitted = run_deployment(
                DEPLOYMENT,
                parameters={"manifest": [order.manifest], "out": order.out, "settings": settings},
                timeout=0,
                tags=["dgate", "dgate-api"],
                idempotency_key=f"{order.out}:{order.attempt}",
            )
        except ObjectNotFound as error:
            raise RunError(
                f"the Prefect server has no deployment {DEPLOYMENT}", "it deployed", HOW_TO_DEPLOY
            ) from error
        except (httpx.HTTPError, PrefectException) as error:
            raise RunError(f"the Prefect server does not answer: {error}", "", "see PREFECT_API_URL") from error
        return PoolHandle(submitted.id)  # type: ignore[union-attr]


class PoolHandle:
    """A batch's flow run.

    Args:
        run_id: Of the flow run.
    """

    def __init__(self, run_id: Any) -> None:
        self.run_id = run_id

    def poll(self) -> BatchEnd | None:
        """See `BatchHandle`; a server that does not answer just now is asked again."""
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self.run_id).state
        except (httpx.HTTPError, PrefectException) as error:
            logger.warning("the Prefect server does not answer just now: %s", error)
            return None
        if state is None or not state.is_final():
            return None
        if state.is_completed() or state.is_cancelled():
            return BatchEnd("finished")
        return BatchEnd("failed", state.message or str(state.name), may_retry=state.is_crashed())

    def stop(self) -> None:
        """See `BatchHandle`."""
        try:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(self.run_id, Cancelling())
        except (httpx.HTTPError, PrefectException) as error:
            logger.warning("the run could not be cancelled just now: %s", error)

    def leave(self) -> None:
        """See `BatchHandle`: the flow run goes on without the server."""
