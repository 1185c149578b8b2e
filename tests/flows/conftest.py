"""A tiny checkpoint, manifests, and `dgate` in this process; tests/prefect_server.py has the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.tiny import make_sd

    return str(make_sd(tmp_path_factory.mktemp("checkpoint")))


@dataclass(frozen=True)
class Done:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`dgate` in this process, which has torch and Prefect loaded already."""

    def call_main(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert isinstance(ended.value.code, int)
        said = capsys.readouterr()
        return Done(ended.value.code, said.out, said.err)

    return call_main


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def list_prompts(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"a red boat {number}", "num_inference_steps": 2, **columns} for number in range(count)]
