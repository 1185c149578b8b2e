"""Two servers on one folder: every batch is one server's, and another's when that one goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgate_core.api import batch_desk
from dgate_core.api.batch_runner import BatchEnd, BatchHandle, BatchOrder
from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from tests.api.batch_lab import ThreadRunner, make_line, read_lines, start_batch, wait_for_batch, write_lines
from tests.api.conftest import run_server
from tests.run_lab import wait_for


class CountingRunner(ThreadRunner):
    """Notes what it was told to carry out."""

    def __init__(self) -> None:
        self.orders: list[str] = []

    def submit(self, order: BatchOrder) -> BatchHandle:
        self.orders.append(order.out)
        return super().submit(order)


class EndlessRunner:
    """A run that is at work for as long as its server is."""

    def __init__(self) -> None:
        self.orders: list[str] = []

    def submit(self, order: BatchOrder) -> BatchHandle:
        self.orders.append(order.out)
        return self

    def poll(self) -> BatchEnd | None:
        return None

    def stop(self) -> None:
        pass

    def leave(self) -> None:
        pass


def test_a_batch_is_one_servers_until_that_one_goes(
    own_settings: ApiSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_desk, "PATIENCE_SECONDS", 0.05)
    first, second = EndlessRunner(), CountingRunner()
    path = write_lines(tmp_path / "in.jsonl", [make_line(number) for number in range(2)])
    with run_server(own_settings, Parts(runner=second)) as later:
        with run_server(own_settings, Parts(runner=first)) as sooner:
            batch = start_batch(sooner.client(), path)
            wait_for(lambda: first.orders)
            # The other server goes on with what nobody has in hand, though an older batch is not finished.
            other = start_batch(later.client(), path)
            assert wait_for_batch(later.client(), other.id).status == "completed"
            assert later.client().batches.retrieve(batch.id).status == "in_progress"
            assert (len(first.orders), len(second.orders)) == (1, 1)
        done = wait_for_batch(later.client(), batch.id)
        assert done.status == "completed", done.errors
        assert set(read_lines(later.client(), done.output_file_id)) == {"row-0", "row-1"}
        assert second.orders[1] == first.orders[0]
    assert not list((Path(own_settings.folder) / "claims").glob("*"))
