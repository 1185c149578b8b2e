"""Reading a run's pictures: from every container, each expected one exactly once, and what is wrong with it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgate_core.errors import RunError
from dgate_core.evaluation.chunk_features import ChunkFeatures
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.expected import ExpectedPicture, pair_expected, read_expected
from dgate_core.evaluation.metrics.sanity import note_defects
from dgate_core.evaluation.pictures import Chunk, ChunkReader, LoadedPicture, Pair, choose_chunk_size, decode_picture
from dgate_core.evaluation.results import EvaluationError
from dgate_core.runs.spec import Container
from dgate_core.storage import Storage, open_storage
from tests.postcard_run import draw_postcards, encode, write_results, write_run
from tests.run_lab import Driver, Order, list_prompts, write_manifest

POSTCARDS = draw_postcards(12)


def load_run(run: Storage) -> list[LoadedPicture]:
    pairs = ((expected, None) for expected in read_expected(run))
    chunks = list(ChunkReader(run).read(pairs))
    for chunk in chunks:
        note_defects(chunk, ChunkFeatures("cpu", use_cache=False))
    return [picture for chunk in chunks for picture in chunk.pictures]


@pytest.mark.parametrize("container", ["files", "webdataset", "parquet"])
def test_pictures_come_from_every_container(tmp_path: Path, container: Container) -> None:
    run = open_storage(tmp_path)
    rows = write_run(run, POSTCARDS, container)
    loaded = load_run(run)
    assert [each.expected.id for each in loaded] == [row["id"] for row in rows]
    assert [each.sha256 for each in loaded] == [row["sha256"] for row in rows]
    for picture, postcard in zip(loaded, POSTCARDS, strict=True):
        assert postcard.pixels is not None
        assert np.array_equal(picture.to_picture().read(), postcard.pixels)
        assert picture.defect is None


@pytest.mark.parametrize("container", ["files", "parquet"])
def test_pictures_come_from_a_bucket(s3_uri: str, container: Container) -> None:
    run = open_storage(f"{s3_uri}/{container}")
    write_run(run, POSTCARDS[:3], container)
    assert [encode(each.pixels) for each in load_run(run)] == [encode(card.pixels) for card in POSTCARDS[:3]]


def test_every_defect_is_named(tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    black, grey = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 128, np.uint8)
    dark = black.copy()
    dark[10] = 40
    pixels = [black, grey, dark, np.zeros((32, 64, 3), np.uint8), *(card.pixels for card in POSTCARDS[4:9]), None, None]
    cards = [replace(POSTCARDS[index], pixels=each) for index, each in enumerate(pixels)]
    cards[9:] = [replace(cards[9], error_code="nan_picture"), replace(cards[10], error_code="out_of_memory")]
    rows = write_run(run, [*cards, replace(POSTCARDS[11], pixels=None, status="skipped")])
    run.delete(rows[4]["path"])
    run.write_bytes(rows[5]["path"], encode(POSTCARDS[5].pixels)[:-40])
    run.write_bytes(rows[6]["path"], b"<html>no picture</html>")
    run.write_bytes(rows[7]["path"], b"")
    found = [picture.defect for picture in load_run(run)]
    assert found == [
        *("black", "constant", None, "wrong_size", "missing", "unreadable", "unreadable", "unreadable", None),
        *("nan", "missing", "missing"),
    ]
    evaluation = evaluate_run(str(tmp_path), EvaluateOptions(metrics=("sanity",)))
    counts = {"black": 1, "constant": 1, "wrong_size": 1, "missing": 3, "unreadable": 3, "nan": 1}
    assert evaluation.defects == counts
    assert evaluation.metrics[0].value == pytest.approx(2 / 12)
    assert (evaluation.metrics[0].n_used, evaluation.n_expected) == (12, 12)
    assert "3 files are not the bytes that the run recorded" in evaluation.metrics[0].warnings[0]
    scores = pq.read_table(tmp_path / "evaluation" / "scores.parquet")
    assert scores.column("defect").to_pylist() == found
    assert scores.column("status").to_pylist() == [row["status"] for row in rows]


def test_a_damaged_container_is_unreadable_not_a_crash(tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    rows = write_run(run, POSTCARDS[:3], "webdataset")
    run.write_bytes(rows[0]["path"].partition("#")[0], b"\x01" * 700)
    assert [each.defect for each in load_run(run)] == ["unreadable"] * 3
    run.delete(rows[0]["path"].partition("#")[0])
    assert [each.defect for each in load_run(run)] == ["missing"] * 3


def test_a_duplicate_counts_as_a_picture(tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    rows = write_run(run, POSTCARDS[:3])
    rows[2] |= {"status": "duplicate", "path": rows[0]["path"], "sha256": rows[0]["sha256"]}
    write_results(run, rows)
    loaded = load_run(run)
    assert [each.defect for each in loaded] == [None] * 3
    assert loaded[2].sha256 == loaded[0].sha256


def test_rows_that_the_results_lost_are_missing(checkpoint: str, tmp_path: Path) -> None:
    """The plan knows what was to be made."""
    manifest = write_manifest(tmp_path / "m.jsonl", [*list_prompts(6), {"prompt": ""}])
    answer = Driver(Order(str(tmp_path / "run"), manifest, {"model": checkpoint, "precision": "float32"})).wait()
    assert not answer.error, answer.message
    run = open_storage(tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "results.parquet")
    pq.write_table(rows.take([0, 2, 3, 6]), tmp_path / "run" / "results.parquet")
    loaded = load_run(run)
    assert [each.expected.id for each in loaded] == [f"{number:08d}" for number in range(7)]
    assert [each.defect == "missing" for each in loaded] == [False, True, False, False, True, True, True]
    assert loaded[1].expected.prompt == "a red boat 1"
    pq.write_table(rows.take([2, 0]), tmp_path / "run" / "results.parquet")
    with pytest.raises(EvaluationError, match="the plan does not have there"):
        list(read_expected(run))


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at"):
        evaluate_run(str(tmp_path))
    run = open_storage(tmp_path)
    write_run(run, POSTCARDS[:1])
    run.delete("results.parquet")
    with pytest.raises(EvaluationError, match=r"no results\.parquet"):
        evaluate_run(str(tmp_path))


def make_expected(name: str, prompt: str = "a", seed: int = 0) -> ExpectedPicture:
    return ExpectedPicture("r", name, 0, prompt, seed, 64, 64)


def test_rows_pair_by_id_and_only_with_the_same_prompt_and_seed() -> None:
    ours = [make_expected(name) for name in "abcdef"]
    theirs = [make_expected("c"), make_expected("a"), make_expected("b", prompt="other"), make_expected("e", seed=7)]
    paired = list(pair_expected(ours, [*theirs, make_expected("d"), make_expected("z")]))
    assert [candidate.id for candidate, _ in paired] == list("abcdef")
    assert [partner.id if partner else None for _, partner in paired] == ["a", None, "c", "d", None, None]


def test_chunks_hold_no_more_than_their_bytes() -> None:
    small, large = make_expected("a"), replace(make_expected("b"), width=2048, height=2048)
    assert choose_chunk_size(small, has_baseline=False) == 128
    assert choose_chunk_size(large, has_baseline=False) == 8
    assert choose_chunk_size(large, has_baseline=True) == 4
    assert choose_chunk_size(replace(large, width=40_000, height=40_000), has_baseline=True) == 1


def test_chunks_come_in_order_and_one_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_storage(tmp_path)
    write_run(run, POSTCARDS)
    monkeypatch.setattr("dgate_core.evaluation.pictures.LARGEST_CHUNK", 5)
    asked: list[str] = []

    def pairs() -> Iterator[Pair]:
        for expected in read_expected(run):
            asked.append(expected.id)
            yield expected, None

    chunks: list[Chunk] = []
    for chunk in ChunkReader(run).read(pairs()):
        chunks.append(chunk)
        assert len(asked) <= sum(map(len, chunks)) + 5
    assert [len(chunk) for chunk in chunks] == [5, 5, 2]
    assert [each.expected.id for chunk in chunks for each in chunk.pictures] == asked


def test_sixteen_bits_are_refused_and_transparency_falls_away() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, "PNG")
    with pytest.raises(ValueError, match="more than 8 bits"):
        decode_picture(file.getvalue())
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(file, "PNG")
    assert decode_picture(file.getvalue())[0, 0].tolist() == [1, 2, 3]
