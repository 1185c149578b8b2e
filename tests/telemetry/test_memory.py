"""A server that is asked 5,000 times needs no more memory than before."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import psutil
import pytest

from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from dgate_core.bench.api_load import send_requests
from dgate_core.telemetry.api_metrics import ApiMetrics
from dgate_core.telemetry.server import ServerTelemetry
from tests.api.conftest import run_server

REQUESTS, ROUND, CLIENTS = 5000, 500, 8
ALLOWED_MIB = 24
"""Over the last 4,000 requests: 6 kB for each; a picture that stays somewhere would be more."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_5000_requests(checkpoint: str, tmp_path: Path) -> None:
    process, sizes = psutil.Process(), []
    settings = ApiSettings((f"tiny={checkpoint}",), port=0, folder=str(tmp_path), device="cpu", precision="float32")
    telemetry = ServerTelemetry(ApiMetrics())
    with run_server(settings, Parts(telemetry=telemetry)) as live:
        for first in range(0, REQUESTS, ROUND):
            bodies = [
                json.dumps({"prompt": f"a boat {number}", "num_inference_steps": 1, "seed": number}).encode()
                for number in range(first, first + ROUND)
            ]
            assert len(send_requests(live.url, bodies, CLIENTS)) == ROUND
            telemetry.metrics.render()
            gc.collect()
            sizes.append(process.memory_info().rss / 2**20)
    grown = max(sizes[-3:]) - min(sizes[1:4])
    print("\nMiB after every 500 requests: " + ", ".join(f"{size:.0f}" for size in sizes))
    assert grown < ALLOWED_MIB, f"grew by {grown:.0f} MiB"
