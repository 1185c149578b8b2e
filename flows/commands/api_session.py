"""The Prefect API behind a command: the one that the user has set, or a private one for the time of the command."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module, metadata
from pathlib import Path

from dgate_core.errors import RunError

START_WITHIN_SECONDS = 180.0
DATABASE = "prefect.db"
FLOWS = "flows.generate_images"
"""Importing flows loads Prefect, which sets up its logging then."""
CLIENT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "dgate_core,tasks",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
SERVER_SETTINGS = {
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}


@contextmanager
def open_session() -> Iterator[None]:
    """Prefect is ready inside the block, and says nothing on the terminal by itself.

    Raises:
        RunError: the private API does not start.
    """
    for name, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Torch takes seconds to import; the lane will want it when the API is there.
    threading.Thread(target=import_module, args=("dgate_core.models.families.unet",), daemon=True).start()
    if has_api():
        import_module(FLOWS)
        show_own_messages()
        yield
        return
    with start_private_api() as (url, home):
        from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

        with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home, PREFECT_LOGGING_TO_API_ENABLED: False}):
            yield


def has_api() -> bool:
    """Whether the user has set a Prefect API; Prefect, slow to load, is asked only where somebody configured it."""
    if "PREFECT_API_URL" in os.environ:
        return True
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    files = [home / "profiles.toml", Path("prefect.toml"), Path(".env"), Path("pyproject.toml")]
    if not any(path.is_file() and "prefect" in path.read_text(errors="replace").lower() for path in files):
        return False
    from prefect.settings import get_current_settings

    return bool(get_current_settings().api.url)


@contextmanager
def start_private_api() -> Iterator[tuple[str, Path]]:
    """A Prefect API on a free loopback port with a folder of its own; nothing of it is left afterwards.

    Yields:
        Its address and its folder.
    """
    home = Path(tempfile.mkdtemp(prefix="dgate-api-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        template = find_template()
        if template.exists():
            shutil.copyfile(template, home / DATABASE)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            process = start_api_process(listener, home)
        import_module(FLOWS)  # while the server starts
        show_own_messages()
        wait_until_ready(url, process, home)
        keep_template(home / DATABASE, template)
        yield url, home
    finally:
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(home, ignore_errors=True)


def start_api_process(listener: socket.socket, home: Path) -> subprocess.Popen[bytes]:
    """The server inherits the socket, so that its port cannot be taken and early requests wait instead of failing."""
    settings = {
        **SERVER_SETTINGS,
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / DATABASE}",
        "PREFECT_API_DATABASE_MIGRATE_ON_START": "false" if (home / DATABASE).exists() else "true",
    }
    arguments = [str(listener.fileno()), str(home), str(os.getpid())]
    with (home / "server.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.commands.api_process", *arguments],
            env={**os.environ, **settings},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the run, which still needs its API then
        )


def wait_until_ready(url: str, process: subprocess.Popen[bytes], home: Path) -> None:
    """Returns when the API answers.

    Raises:
        RunError: it died, or takes too long.
    """
    try:
        urllib.request.urlopen(f"{url}/health", timeout=START_WITHIN_SECONDS).close()
    except (urllib.error.URLError, OSError) as error:
        log = (home / "server.log").read_text(errors="replace")[-2000:]
        raise RunError(
            f"the private Prefect API did not start (exit {process.poll()}): {error}\n{log}",
            "",
            "set PREFECT_API_URL to a server of yours, or see `dgate up`",
        ) from error


def find_template() -> Path:
    """A database with Prefect's tables and nothing in them: laying them takes seconds, copying them none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dgate" / f"prefect-{metadata.version('prefect')}.db"


def keep_template(database: Path, template: Path) -> None:
    """Keeps a fresh database for the next time; a cache that cannot be written costs that time only."""
    if template.exists():
        return
    try:
        template.parent.mkdir(parents=True, exist_ok=True)
        draft = template.with_name(f"{template.name}.{os.getpid()}")
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(draft)) as copy:
            source.backup(copy)
        draft.replace(template)
    except (OSError, sqlite3.Error) as error:
        logging.getLogger(__name__).info("no cache for Prefect's tables: %s", error)


class MessageHandler(logging.Handler):
    """Warnings as plain lines on stderr, whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        # Not click.echo, which would write past a progress bar's hold on stderr.
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def show_own_messages() -> None:
    """The terminal gets D-Gate's warnings; what Prefect logs goes to its API, what libraries plan to change nowhere."""
    handler = MessageHandler(logging.WARNING)
    handler.addFilter(lambda record: not record.name.startswith(("prefect", "httpx", "httpcore", "uvicorn")))
    logging.getLogger().handlers = [handler]
    internal = logging.getLogger("prefect._internal")  # it has a handler of its own, which tells of its dying server
    internal.handlers, internal.propagate = [], True
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    for name in CLIENT_DEFAULTS["PREFECT_LOGGING_EXTRA_LOGGERS"].split(","):
        logging.getLogger(name).setLevel(logging.INFO)
