"""What the report of an evaluation reads, and how it writes it: pairs, history, numbers, markdown."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dgate_core.evaluation.results import write_evaluation
from dgate_core.storage import Storage, open_storage
from dgate_core.tracking.local_json import LocalLog
from dgate_core.tracking.sending import TrackerOutcome
from reports.evaluation.collect import collect_evaluation, list_gaps
from reports.evaluation.history import collect_history
from reports.evaluation.markdown import summarise_evaluation
from reports.evaluation.numbers import find_share_interval, format_interval, format_number
from reports.evaluation.plots import choose_edges, choose_ticks
from reports.evaluation.scores import drop_strangers, find_worst, join_rows
from reports.publish import publish_evaluation, publish_run
from tests.reports.sample_evaluation import ROWS, make_evaluation, write_evaluated_runs, write_record
from tests.tracker_samples import read_notes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, Storage]:
    """A run that failed the gate, and its baseline."""
    return write_evaluated_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (28.0914, 0.41, "28.09"),
        (28.0914, 4.1, "28.1"),
        (28.0914, None, "28.09"),
        (0.000123456, None, "0.0001235"),
        (12345.6, 200.0, "12,346"),
        (-0.0213, 0.007, "−0.0213"),
        (-0.00001, 0.01, "0.000"),
        (1.0, None, "1"),
        (math.inf, None, "inf"),
    ],
)
def test_a_number_has_the_digits_that_its_interval_bears(value: float, spread: float | None, text: str) -> None:
    assert format_number(value, spread) == text


def test_signs_and_intervals() -> None:
    assert format_number(0.5, 0.1, signed=True) == "+0.50"
    assert format_interval((-0.09, 0.01), signed=True) == "−0.090 to +0.010"


def test_a_share_s_interval_is_wilson_s() -> None:
    low, high = find_share_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert find_share_interval(0, 10)[0] == 0.0
    assert find_share_interval(0, 0) == (0.0, 1.0)


def test_pairs_are_of_the_same_prompt_and_seed() -> None:
    columns = {"id": ["c", "a", "b"], "image_index": pa.array([0, 0, 0], pa.int32()), "prompt": ["x", "y", "z"]}
    scores = pa.table({**columns, "seed": [1, 2, 3], "clip_score": [0.1, 0.2, 0.3]})
    before = pa.table({**columns, "seed": [1, 2, 4], "clip_score": [0.4, 0.5, 0.6], "other": [1.0, 1.0, 1.0]})
    rows, unpaired = drop_strangers(join_rows(scores, before.take([2, 0, 1])))
    assert rows["id"].to_pylist() == ["c", "a", "b"]
    assert rows["clip_score.baseline"].to_pylist() == [0.4, 0.5, None]
    assert unpaired == 1


def test_the_worst_leave_out_what_was_not_measured() -> None:
    assert find_worst(np.array([0.5, np.nan, -2.0, 0.1]), 2) == [2, 3]


def test_bins_of_few_and_of_many_values() -> None:
    assert choose_edges(np.array([0.0, 1.0, 1.0])).tolist() == [-0.5, 0.5, 1.5]
    assert choose_ticks(np.array([0.0, 1.0, 1.0])) == [0.0, 1.0]
    assert choose_edges(np.array([2.0, 2.0])).tolist() == [1.8, 2.2]
    many = np.linspace(0, 28, 100)
    assert len(choose_edges(many)) == 29
    assert choose_ticks(many) == [0.0, 14.0, 28.0]


def test_history_compares_only_what_was_measured_in_the_same_way(tmp_path: Path) -> None:
    run = open_storage(tmp_path / "now")
    others = {"same": "5e" * 32, "other-prompts": "77" * 32}
    for day, (name, manifest) in enumerate(others.items(), start=1):
        beside = open_storage(tmp_path / name)
        write_record(beside, manifest)
        created = f"2031-04-0{day}T12:00:00+00:00"
        write_evaluation(beside, make_evaluation(beside, 0.5, created, is_candidate=False))
    write_record(run)
    evaluation = make_evaluation(run, 0.0, "2031-05-04T12:30:00+00:00", is_candidate=False)
    points = collect_history(run, evaluation)["clip_score"]
    assert [(point.run, point.is_current) for point in points] == [("same", False), ("now", True)]
    assert "inception_score" not in collect_history(run, evaluation)


def test_an_evaluation_that_was_made_again_stays_in_the_history(tmp_path: Path) -> None:
    candidate, _ = write_evaluated_runs(tmp_path, earlier=0)
    publish_evaluation(candidate.uri).wait()
    again = make_evaluation(candidate, 0.2, "2031-05-06T12:30:00+00:00", is_candidate=True)
    write_evaluation(candidate, again)
    points = collect_history(candidate, again)["clip_score"]
    assert [(point.run, round(point.value, 2)) for point in points] == [
        ("night-12", 28.9),
        ("candidate", 28.09),
        ("candidate", 28.7),
    ]


def test_markdown_says_what_the_page_says(runs: tuple[Storage, Storage]) -> None:
    text = summarise_evaluation(collect_evaluation(runs[0], None))
    lines = text.splitlines()
    assert lines[:3] == ["# Fail: candidate", "", "2 of 5 checks failed: defects, clip_score."]
    assert "- defects: 1 black, 1 missing" in lines
    failed = next(line for line in lines if line.startswith("| Fail | clip"))
    assert failed.startswith(
        "| Fail | clip\\_score | −0.81 (−1.17 to −0.46) | 95 of 96 | the whole interval lies below"
    )
    assert "| clip\\_score ↑ | 28.09 | 27.68 to 28.49 | 28.90 | −0.81 | 95 of 96 |" in lines
    assert "| inception\\_score ↑ | not measured | | | | 0 of 96 |" in lines
    assert "| colour | yellow | 55.6 % | 88.9 % | 9 |" in lines
    assert lines[-1].startswith("- clip\\_score, caption\\_choice")
    columns = {len(line.replace("\\|", "").split("|")) for line in lines if line.startswith("| clip")}
    assert columns == {8}


def test_a_tracker_that_missed_something_is_named(runs: tuple[Storage, Storage]) -> None:
    found = collect_evaluation(runs[0], None)
    outcomes = [TrackerOutcome("mlflow", 1, 2, "not within 20 s"), TrackerOutcome("wandb", 3, 0, "")]
    gaps = list(list_gaps(found.evaluation, found.verdict, found.comparison, outcomes))
    assert gaps[-1].what == "tracker mlflow"
    assert gaps[-1].why == "2 of its records were not sent: not within 20 s"
    assert not [gap for gap in gaps if "wandb" in gap.what]


def test_what_is_published_is_in_the_run_s_own_lines_once(tmp_path: Path) -> None:
    candidate, _ = write_evaluated_runs(tmp_path, earlier=0)
    tracker = "tests.tracker_samples:deliver_well"
    write_record(candidate, trackers=[tracker], models={"starter-unet": {"weights_hash": "ab"}}, finished_at=10.0)
    for publish in (publish_run, publish_evaluation, publish_evaluation):
        (outcome,) = publish(candidate.uri).wait()
        assert outcome.missing == 0
    assert read_notes(tmp_path / "candidate") == ["1", "2"]
    run, evaluation = LocalLog(candidate).read_records()
    assert run.parameters["spec.precision"] == "float32"
    assert run.labels["model.starter-unet"] == "ab"
    assert evaluation.metrics["clip_score"] == pytest.approx(28.09)
    assert evaluation.metrics["clip_score/low"] == pytest.approx(27.68)
    assert evaluation.metrics["defects/black"] == 1.0
    assert "inception_score" not in evaluation.metrics
    assert evaluation.labels["verdict"] == "fail"
    assert evaluation.documents["verdict"]["decision"] == "fail"
    assert evaluation.documents["evaluation"]["n_expected"] == ROWS
    (table,) = evaluation.tables
    assert table.pictures == ("picture", "baseline_picture")
    assert all(candidate.exists(cell) for row in table.rows for cell in row[2:4])
