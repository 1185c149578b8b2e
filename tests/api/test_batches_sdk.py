"""Files and batches through OpenAI's own SDK."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from dgate_core.api.contract import Admission, RequestFacts
from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from tests.api.batch_lab import ThreadRunner, make_line, read_lines, start_batch, wait_for_batch, write_lines
from tests.api.conftest import Live, run_server


class NamedDoor:
    """Lets everybody in under the name that they give as their key."""

    is_open = False

    async def admit(self, facts: RequestFacts) -> Admission:
        return Admission(facts.authorization.removeprefix("Bearer "))


@pytest.fixture(scope="module")
def desk(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    own = replace(settings, folder=str(tmp_path_factory.mktemp("desk")))
    with run_server(own, Parts(runner=ThreadRunner(), gatekeeper=NamedDoor())) as live:
        yield live


def test_a_batch_gives_the_pictures_that_single_requests_give(desk: Live, tmp_path: Path) -> None:
    client = desk.client()
    lines = [
        make_line(0, seed=7),
        make_line(1, n=2, seed=9),
        make_line(2, size="33x33"),
        make_line(3, seed=8, response_format="url"),
    ]
    batch = start_batch(client, write_lines(tmp_path / "in.jsonl", lines))
    assert batch.status == "validating"
    assert batch.metadata == {"night": "1"}
    batch = wait_for_batch(client, batch.id)
    assert batch.status == "completed", batch.errors
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 4, "completed": 3, "failed": 1}
    output = read_lines(client, batch.output_file_id)
    assert set(output) == {"row-0", "row-1", "row-3"}
    alone = client.images.generate(prompt="a red boat 0", extra_body={"num_inference_steps": 1, "seed": 7})
    assert alone.data is not None
    entry = output["row-0"]["response"]["body"]["data"][0]
    assert entry["id"] == alone.data[0].id  # type: ignore[attr-defined]
    first, second = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)
        for text in (entry["b64_json"], alone.data[0].b64_json or "")
    )
    assert np.abs(first - second).max() <= 1
    assert len(output["row-1"]["response"]["body"]["data"]) == 2
    url = output["row-3"]["response"]["body"]["data"][0]["url"]
    assert httpx.get(url).headers["content-type"] == "image/png"
    assert httpx.get(url[:-4] + "0000").status_code == 404
    assert "path" not in entry
    assert read_lines(client, batch.error_file_id)["row-2"]["error"]["code"] == "bad_size"


def test_files_are_listed_paged_read_and_deleted(desk: Live, tmp_path: Path) -> None:
    client = desk.client(api_key="files")
    made = []
    for number in range(3):
        path = write_lines(tmp_path / f"{number}.jsonl", [make_line(number)])
        made.append(client.files.create(file=path, purpose="batch"))
    assert [file.id for file in client.files.list(limit=2)] == [file.id for file in reversed(made)]
    assert client.files.retrieve(made[0].id).filename == "0.jsonl"
    assert b"row-0" in client.files.content(made[0].id).content
    assert client.files.delete(made[0].id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[0].id)
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=b"{}", purpose="fine-tune")


def test_one_client_sees_nothing_of_another(desk: Live, tmp_path: Path) -> None:
    mine, theirs = desk.client(api_key="mine"), desk.client(api_key="theirs")
    batch = start_batch(mine, write_lines(tmp_path / "in.jsonl", [make_line(0)]))
    with pytest.raises(openai.NotFoundError):
        theirs.batches.retrieve(batch.id)
    with pytest.raises(openai.NotFoundError):
        theirs.files.content(batch.input_file_id)
    with pytest.raises(openai.NotFoundError):
        theirs.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/images/generations", completion_window="24h"
        )
    assert list(theirs.batches.list()) == []
    assert [each.id for each in mine.batches.list()] == [batch.id]
    wait_for_batch(mine, batch.id)


def test_a_file_that_names_a_model_that_is_not_served_fails_as_a_whole(desk: Live, tmp_path: Path) -> None:
    client = desk.client()
    lines = [make_line(0), make_line(1, model="/etc/passwd")]
    batch = wait_for_batch(client, start_batch(client, write_lines(tmp_path / "in.jsonl", lines)).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [("model_not_found", 2)]


def test_a_file_without_requests_fails(desk: Live, tmp_path: Path) -> None:
    client = desk.client()
    (tmp_path / "in.jsonl").write_bytes(b"\xff\xfe no json\n")
    batch = wait_for_batch(client, start_batch(client, tmp_path / "in.jsonl").id)
    assert batch.status == "failed"


def test_a_batch_can_be_cancelled(desk: Live, tmp_path: Path) -> None:
    client = desk.client()
    lines = [make_line(number, num_inference_steps=50) for number in range(200)]
    batch = start_batch(client, write_lines(tmp_path / "in.jsonl", lines))
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert wait_for_batch(client, batch.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_wrong_requests_are_refused(desk: Live, tmp_path: Path) -> None:
    client = desk.client()
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-0", endpoint="/v1/images/generations", completion_window="24h")
    path = write_lines(tmp_path / "in.jsonl", [make_line(0)])
    file = client.files.create(file=path, purpose="batch")
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
