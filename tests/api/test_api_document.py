"""Cases drawn from the OpenAPI document: the server answers all of them, never with a 5xx, always with the envelope."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from dgate_core.api.settings import ApiSettings
from tests.api.batch_lab import ThreadRunner
from tests.api.conftest import Live, Parts, run_server

schemathesis = pytest.importorskip("schemathesis")

FEW, MANY = 18, 800
"""Cases of an operation."""
OUTSIDE_THE_ENVELOPE = ("/readyz", "/healthz", "/", "/docs")


@pytest.fixture(scope="module")
def live(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("cases")
    own = replace(settings, folder=str(folder / "api"), steps_limit=2)
    with run_server(own, Parts(runner=ThreadRunner())) as live:
        yield live


def send_cases(live: Live, count: int) -> Counter[int]:
    """Sends so many cases of every operation; returns how many were answered how."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    statuses: Counter[int] = Counter()
    for found in document.get_all_operations():
        for mode in schemathesis.GenerationMode:
            _send_operation(found.ok(), mode, max(1, count // 2), statuses)
    return statuses


def _send_operation(operation: Any, mode: Any, count: int, statuses: Counter[int]) -> None:
    phases = (Phase.explicit, Phase.generate)

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        answer = case.call(timeout=30, headers={"origin": "http://localhost"})
        statuses[answer.status_code] += 1
        check_answer(case, answer)

    try:
        send()
    except Exception as error:
        # An operation without parameters has no case that breaks its rules.
        if type(error).__name__ not in {"Unsatisfiable"}:
            raise


def check_answer(case: Any, answer: Any) -> None:
    """Raises AssertionError with the request that does it again."""
    told = f"{case.as_curl_command()}\n{answer.status_code} {answer.text[:500]}"
    assert answer.status_code < 500, told
    assert answer.headers["x-request-id"], told
    if answer.status_code >= 400 and case.path not in OUTSIDE_THE_ENVELOPE:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, told


def test_a_few_cases_of_every_operation(live: Live) -> None:
    statuses = send_cases(live, FEW)
    print(f"{statuses.total()} cases: {dict(sorted(statuses.items()))}")
    assert statuses.total() >= 140
    assert statuses[200]
    assert statuses[400]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_cases(live: Live) -> None:
    statuses = send_cases(live, MANY)
    print(f"{statuses.total()} cases: {dict(sorted(statuses.items()))}")
    assert statuses.total() >= 5000
