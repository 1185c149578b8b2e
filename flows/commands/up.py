"""`dgate up`: Prefect's server, the pools, the deployments and the workers on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from dgate_core.data_files import find_root
from dgate_core.errors import RunError
from dgate_core.models.devices import list_gpus

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_SECONDS = 180.0
STOP_WITHIN_SECONDS = 60.0
DRIVERS = 4
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Flow runs older than 90 days are dropped; Prefect's default keeps them for ever.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "dgate_core,tasks",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


Command = tuple[list[str], dict[str, str]]
"""Arguments of `prefect`, and what is added to the environment."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything runs."""

    port: int
    """Of the server, on loopback."""
    home: str | None
    """Folder of Prefect's data; None is Prefect's own default, ~/.prefect."""

    @property
    def address(self) -> str:
        """Of the UI."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What every process is told."""
        own = {"PREFECT_HOME": str(Path(self.home).expanduser().absolute())} if self.home else {}
        return {**SETTINGS, **own, "PREFECT_API_URL": f"{self.address}/api"}


@click.command("up")
@click.option("--port", default=4200, show_default=True, help="Of the server, on 127.0.0.1.")
@click.option("--home", metavar="DIR", help="Folder of Prefect's data.  [default: ~/.prefect]")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Lanes at once; by default one per GPU, or one on the CPU."
)
def command(port: int, home: str | None, workers: int | None) -> None:
    """Starts a local Prefect server, its pools, the deployments, and one worker per GPU; Ctrl-C stops all of it."""
    place, workers = Place(port, home), workers or max(1, len(list_gpus()))
    os.environ.update(place.environment())
    os.environ.setdefault("DGATE_HOME", str(Path.cwd()))  # relative paths of a form begin here
    for number in (signal.SIGINT, signal.SIGTERM):
        # Set also for SIGINT: a shell that starts this in the background lets it be ignored.
        signal.signal(number, _interrupt)
    with run_server(place) as server:
        make_pools(workers)
        deploy()
        with run_children(list_workers(workers)) as children:
            click.echo(describe_place(place, workers))
            wait_for_end([server, *children])


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001 - the signature is Python's
    raise KeyboardInterrupt


@contextmanager
def run_server(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """The server, ready.

    Raises:
        RunError: the port is taken, or it does not start.
    """
    if is_answering(place):
        raise RunError(f"something answers at {place.address}", "a free port", "stop it, or give another --port")
    arguments = ["server", "start", "--host", "127.0.0.1", "--port", str(place.port), "--log-level", "WARNING"]
    with run_children([(arguments, {})]) as (server,):
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while not is_answering(place):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RunError(
                    f"Prefect's server did not start (exit {server.poll()})",
                    f"it to answer at {place.address} within {READY_WITHIN_SECONDS:.0f} s",
                    "read its messages above",
                )
            time.sleep(0.3)
        yield server


def is_answering(place: Place) -> bool:
    """Whether a Prefect API is ready there."""
    try:
        with urllib.request.urlopen(f"{place.address}/api/health", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def make_pools(workers: int) -> None:
    """The pools of prefect.yaml; `gpu` is as wide as there are workers."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        for name, limit in (("driver", DRIVERS), ("gpu", workers)):
            pool = WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=limit)
            client.create_work_pool(pool, overwrite=True)


def deploy() -> None:
    """Deploys what prefect.yaml says.

    Raises:
        RunError: Prefect refuses.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=find_root(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"`prefect deploy --all` failed:\n{done.stdout}{done.stderr}")


def list_workers(workers: int) -> list[Command]:
    """One worker for drivers, then one per lane, each with a GPU of its own; without GPUs the lanes share the cores."""
    gpus, threads = list_gpus(), max(1, (os.cpu_count() or 1) // workers)
    commands: list[Command] = [
        (["worker", "start", "--pool", "driver", "--name", "driver", "--limit", str(DRIVERS)], {})
    ]
    for number in range(workers):
        own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {"OMP_NUM_THREADS": str(threads)}
        commands.append((["worker", "start", "--pool", "gpu", "--name", f"gpu-{number}", "--limit", "1"], own))
    return commands


@contextmanager
def run_children(commands: Sequence[Command]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`prefect` processes; none of them, and nothing that they started, is left when the block ends."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        for arguments, own in commands:
            # A session of its own: Ctrl-C reaches only this process, which stops the others in order.
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "prefect", *arguments],
                    env={**os.environ, **own},
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        yield children
    finally:
        stop_children(children)


def stop_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks all at once (a lane finishes its batch and gives its claims back), and kills what does not listen."""
    family = [psutil.Process(child.pid) for child in children if child.poll() is None]
    family += [grandchild for child in family for grandchild in child.children(recursive=True)]
    for child in children:
        child.terminate()
    with suppress(KeyboardInterrupt):  # a second Ctrl-C: no more patience
        psutil.wait_procs(family, timeout=STOP_WITHIN_SECONDS)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for child in children:
        child.wait()


def describe_place(place: Place, workers: int) -> str:
    """What a person does next."""
    command = f"PREFECT_API_URL={place.address}/api dgate generate MANIFEST --out runs/first --execution work_pool"
    form = f"{place.address}/deployments"
    return "\n".join(
        [
            f"Prefect is up at {place.address}, lane workers: {workers}. Ctrl-C stops all of it.",
            f"  from the UI       {form} → generate_images → Run; relative paths begin at {os.environ['DGATE_HOME']}",
            f"  from a terminal   {command}",
        ]
    )


def wait_for_end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Returns on Ctrl-C or SIGTERM.

    Raises:
        RunError: one of the processes ended by itself.
    """
    try:
        while all(child.poll() is None for child in children):
            time.sleep(0.5)
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
        return
    ended = next(child for child in children if child.poll() is not None)
    raise RunError(f"`{' '.join(map(str, ended.args[2:]))}` ended by itself (exit {ended.returncode})")  # type: ignore[index]
