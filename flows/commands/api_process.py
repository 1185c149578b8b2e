"""The private Prefect API as a process: `python -m flows.commands.api_process SOCKET_FD FOLDER PARENT_PID`."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time


def main(arguments: list[str]) -> None:
    """Serves on an inherited socket until it is killed or its parent is gone."""
    descriptor, folder, parent = arguments
    threading.Thread(target=_end_with_parent, args=(int(parent), folder), daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app(), log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(descriptor))])


def _end_with_parent(parent: int, folder: str) -> None:
    """A parent that was killed cannot stop its server nor clear the server's folder away."""
    while os.getppid() == parent:
        time.sleep(1.0)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
