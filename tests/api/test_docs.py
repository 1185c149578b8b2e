"""/docs and the OpenAPI document; every example is run as it stands on the page."""

from __future__ import annotations

import os
import subprocess
import sys
from html import unescape
from pathlib import Path
from re import findall

import httpx
import pytest

from dgate_core.api.examples import EXAMPLES
from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from tests.api.batch_lab import ThreadRunner
from tests.api.conftest import Live, run_server


def test_every_example_works_when_pasted(own_settings: ApiSettings, tmp_path: Path) -> None:
    environment = {**os.environ, "OPENAI_API_KEY": ""}
    with run_server(own_settings, Parts(runner=ThreadRunner())) as live:
        page = httpx.get(f"{live.url}/docs").text
        found = findall(r"<pre tabindex=0 class=(bash|python)><code>(.*?)</code>", page.replace("\n", "\0"))
        assert len(found) == len(EXAMPLES)
        for language, text in found:
            command = ["bash", "-ec"] if language == "bash" else [sys.executable, "-c"]
            pasted = unescape(text.replace("\0", "\n"))
            done = subprocess.run(
                [*command, pasted],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{pasted}\n{done.stderr}"
            assert done.stdout, pasted
            assert '"error"' not in done.stdout, done.stdout
    assert {path.suffix for path in tmp_path.iterdir()} >= {".png", ".jsonl"}


def test_the_document_names_the_errors_as_they_are_sent(live: Live) -> None:
    document = httpx.get(f"{live.url}/openapi.json").json()
    operation = document["paths"]["/v1/images/generations"]["post"]
    assert "422" not in operation["responses"]
    assert operation["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorEnvelope")
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert {"/v1/files", "/v1/batches", "/v1/models", "/healthz", "/readyz"} <= set(document["paths"])


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(live: Live, path: str) -> None:
    answer = httpx.get(f"{live.url}{path}")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not findall(r"""(?:src|href)=["']?(?:https?:)?//""", answer.text)
