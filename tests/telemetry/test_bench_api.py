"""The API's benchmark at toy size: real servers in processes of their own, and honest arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dgate_core.bench.api_load import (
    API,
    DIRECT,
    LOCK,
    Answer,
    Cell,
    compare,
    find_percentile,
    has_reached_bars,
    send_requests,
    start_server,
)
from dgate_core.errors import RunError
from flows.cli import command


def make_cell(rates: list[float], *answers: Answer) -> Cell:
    return Cell(rates, list(answers))


def test_ratios_are_of_one_round_and_bars_are_held() -> None:
    cells = {
        API: {1: make_cell([1.0], Answer(0.110, 0.100, 1), Answer(0.108, 0.100, 1)), 8: make_cell([4.0, 9.0, 6.0])},
        LOCK: {1: make_cell([1.0]), 8: make_cell([2.0, 3.0, 4.0])},
    }
    found = compare(cells)
    assert found["ratios"]["API over the lock at concurrency 8"] == {"median": 2.0, "bar": 1.5}
    assert found["own_cost_ms"]["p50"] == pytest.approx(9.0)
    assert has_reached_bars(found)
    cells[LOCK][8] = make_cell([4.0, 9.0, 6.0])
    assert not has_reached_bars(compare(cells))
    cells[LOCK][8], cells[API][1] = make_cell([1.0, 1.0, 1.0]), make_cell([1.0], Answer(0.120, 0.100, 1))
    assert not has_reached_bars(compare(cells))


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [find_percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert find_percentile([7.0], 0.99) == 7.0


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(RunError, match="no such thing"), start_server([sys.executable, "-c", "exit('no such thing')"]):
        pass


def test_a_wrong_answer_ends_the_measurement() -> None:
    with (
        start_server([sys.executable, "-u", "-c", _REFUSING]) as url,
        pytest.raises(RunError, match="503"),
    ):
        send_requests(url, [b"{}"] * 4, 2)


_REFUSING = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Refusing(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_error(503)
server = HTTPServer(("127.0.0.1", 0), Refusing)
print(f"http://127.0.0.1:{server.server_port}")
server.serve_forever()
"""


@pytest.mark.slow
def test_the_command_measures_all_contestants(checkpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "api.json"
    arguments = ["bench", "api", "--model", checkpoint, "--concurrency", "1,4", "--requests", "4", "--rounds", "1"]
    CliRunner().invoke(
        command, [*arguments, "--steps", "2", "--precision", "float32", "--out", str(file)], catch_exceptions=False
    )
    found = json.loads(file.read_text())
    assert set(found["cells"]) == {API, LOCK, DIRECT}
    assert found["cells"][API]["4"]["requests"] == 8
    assert found["cells"][API]["4"]["p50_ms"] > 0
    assert found["cells"][DIRECT]["1"]["mean_batch_size"] is None
    assert found["own_cost_ms"]["p50"] > 0
