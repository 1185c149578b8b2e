"""A server, and a run, that are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import FailingSeeds
from tests.run_lab import Driver, Order, list_prompts, make_checkpoint, write_manifest

SETTINGS = {"precision": "float32", "lanes": 1, "rows_per_shard": 8, "batch_size": 2}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A toy Stable Diffusion, 32 px."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def finished_run(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty rows in three shards, two of them failed; its lane is long gone."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{**row, "seed": number} for number, row in enumerate(list_prompts(20))]
    manifest = write_manifest(folder / "m.jsonl", rows)
    order = Order(
        str(folder / "run"), manifest, {"model": checkpoint, **SETTINGS}, fault=FailingSeeds(frozenset({3, 17}))
    )
    answer = Driver(order).wait()
    assert not answer.error, answer.message
    return str(folder / "run")


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """Forty rows that take a moment each."""
    return write_manifest(tmp_path / "m.jsonl", list_prompts(40, num_inference_steps=20))
