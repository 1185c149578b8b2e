"""Accidents and tricks that would let a bad run through the gate, each with the check that stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgate_core.errors import ConfigError
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.gate.gate import judge_run
from dgate_core.evaluation.gate.rules import parse_rules, read_rules
from dgate_core.evaluation.gate.verdict import Check, Verdict
from dgate_core.evaluation.results import EVALUATION_FILE, SCORES_FILE, read_evaluation, write_evaluation
from dgate_core.runs.layout import RESULTS_FILE
from dgate_core.storage import Storage, open_storage
from tests.gate_lab import (
    CLIP,
    PICTURES,
    ROWS,
    RULES,
    SCORES,
    Table,
    corpus,
    draw_noise,
    hash_bytes,
    judge,
    make_picture_run,
    make_run,
    write_table,
)


def find_fail(verdict: Verdict) -> Check:
    """The only check that fails."""
    (fail,) = verdict.list_checks("fail")
    assert verdict.exit_code == 1
    return fail


def edit_value(run: Storage) -> None:
    found = json.loads(run.read_bytes(EVALUATION_FILE))
    found["metrics"][-1]["value"] = 8.0
    run.write_bytes(EVALUATION_FILE, json.dumps(found).encode())


def write_list(run: Storage) -> None:
    run.write_bytes(EVALUATION_FILE, b"[]")


def mix_evaluations(run: Storage) -> None:
    """Scores of a second evaluation that was killed before it wrote its numbers."""
    scores = pq.read_table(pa.BufferReader(run.read_bytes(SCORES_FILE)))
    column = scores.schema.get_field_index(CLIP)
    write_table(run, SCORES_FILE, scores.set_column(column, CLIP, pa.array(SCORES[CLIP] + 5)))


def swap_pictures(run: Storage) -> None:
    table = pq.read_table(pa.BufferReader(run.read_bytes(PICTURES)))
    write_table(run, PICTURES, table.slice(1).append_column("x", pa.array(range(ROWS - 1))))


def cut_pictures(run: Storage) -> None:
    run.write_bytes(PICTURES, run.read_bytes(PICTURES)[:50])


def repeat_results(run: Storage) -> None:
    results = pq.read_table(pa.BufferReader(run.read_bytes(RESULTS_FILE)))
    write_table(run, RESULTS_FILE, pa.concat_tables([results, results]))


def cut_results(run: Storage) -> None:
    run.write_bytes(RESULTS_FILE, run.read_bytes(RESULTS_FILE)[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_value, "was changed after the evaluation"),
        (write_list, "has version None"),
        (mix_evaluations, "not of the evaluation in evaluation.json"),
        (swap_pictures, "300 pictures of"),
        (cut_pictures, "damaged container"),
        (lambda run: run.delete(PICTURES), "is gone"),
        (repeat_results, "not those that were evaluated"),
        (cut_results, "results.parquet of"),
        (lambda run: run.delete(RESULTS_FILE), "results.parquet of"),
    ],
)
@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_what_was_touched_after_the_evaluation_fails(
    tmp_path: Path, damage: Callable[[Storage], None], message: str, side: str
) -> None:
    table = Table(SCORES, metrics=(corpus("fid", 9),))
    runs = {name: make_run(tmp_path / name, replace(table, fingerprint=name)) for name in ("candidate", "baseline")}
    damage(runs[side])
    fail = find_fail(judge_run(runs["candidate"], runs["baseline"], RULES, draw_noise))
    assert fail.rule == "evaluation"
    assert message in fail.reason


def test_pictures_that_were_replaced_before_the_evaluation_fail(tmp_path: Path) -> None:
    """The baseline's good pictures under the candidate's rows: the evaluation measures them, the gate does not."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 32, 32, 3)).astype(np.uint8)
    prompts = ["a red boat on grass at night"] * 40
    runs = [make_picture_run(tmp_path / name, side, prompts) for name, side in zip("ab", pictures, strict=True)]
    key = "shards/00000/images/00000007.png"
    runs[1].write_bytes(key, runs[0].read_bytes(key))
    for run in runs:
        evaluate_run(run.uri, EvaluateOptions(metrics=("sanity", "sharpness"), device="cpu", use_cache=False))
    assert read_evaluation(runs[1]).changed_files == 1
    rules = parse_rules({"rules": [{"metric": "sharpness"}], "minimum_rows": 30, "significance": 0.05})
    assert judge_run(runs[0], runs[0], rules, draw_noise).passed
    assert "1 pictures of" in find_fail(judge_run(runs[1], runs[0], rules, draw_noise)).reason
    runs[1].delete(key)
    evaluate_run(runs[1].uri, EvaluateOptions(metrics=("sanity", "sharpness"), device="cpu", use_cache=False))
    fail = find_fail(judge_run(runs[1], runs[0], rules, draw_noise))
    assert (fail.rule, fail.reason) == ("coverage", "1 of 40 pictures of the baseline are missing (1 without its file)")


def test_rows_that_only_the_candidate_has_fail(tmp_path: Path) -> None:
    """More pictures make every distance of the corpus smaller, and nobody has looked at them."""
    fail = find_fail(judge(tmp_path, Table(SCORES), Table(SCORES, left_out=frozenset(range(250, ROWS)))))
    assert fail.rule == "pairs"
    assert "50 rows of the candidate are not in the baseline, such as 'row-00250'" in fail.reason


def test_corpora_of_other_sizes_do_not_compare(tmp_path: Path) -> None:
    baseline = Table(SCORES, metrics=(corpus("fid", 9, 290),), statuses=dict.fromkeys(range(10), "error"))
    fail = find_fail(judge(tmp_path, Table(SCORES, metrics=(corpus("fid", 8.5),)), baseline))
    assert fail.reason == "fid of 300 pictures does not compare with that of 290"
    one = replace(baseline, metrics=(corpus("fid", 9, 299),), statuses={0: "error"})
    assert judge(tmp_path, Table(SCORES, metrics=(corpus("fid", 8.5),)), one).passed


@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_a_corpus_of_which_pictures_were_left_out_fails(tmp_path: Path, side: str) -> None:
    tables = {name: Table(SCORES, metrics=(corpus("fid", 9),)) for name in ("candidate", "baseline")}
    tables[side] = Table(SCORES, metrics=(corpus("fid", 9, 298),))
    fail = find_fail(judge(tmp_path, tables["candidate"], tables["baseline"]))
    assert fail.reason == "fid is of 298 pictures, and the run has 300"


def test_a_metric_that_only_the_candidate_has_is_no_metric_that_was_compared(tmp_path: Path) -> None:
    fail = find_fail(judge(tmp_path, Table(SCORES, metrics=(corpus("fid", 9),))))
    assert "the baseline's evaluation has no fid" in fail.reason


def test_copies_of_a_picture_count_once(tmp_path: Path) -> None:
    copies = dict.fromkeys(range(60, ROWS), "duplicate")
    verdict = judge(tmp_path, Table(SCORES, statuses=copies), Table(SCORES, statuses=copies))
    assert {check.reason for check in verdict.list_checks("fail")} == {"60 rows, and the rule needs 200"}
    assert "240 rows ask for the same picture as another row" in verdict.checks[0].reason
    window = parse_rules({"rules": [{"metric": CLIP, "test": "value", "bound": {"window": [0, 100]}}]})
    run = make_run(tmp_path / "run", Table(SCORES, statuses=copies))
    assert find_fail(judge_run(run, None, window, draw_noise)).reason == "60 rows, and the rule needs 100"


def test_rows_that_no_run_has_a_score_for_are_counted(tmp_path: Path) -> None:
    holes = SCORES[CLIP].copy()
    holes[:40] = np.nan
    verdict = judge(tmp_path, Table({**SCORES, CLIP: holes}), Table({**SCORES, CLIP: holes}))
    check = next(check for check in verdict.checks if check.metric == CLIP)
    assert (check.n_used, check.n_expected) == (ROWS - 40, ROWS)
    assert "40 rows have no score in either run and are left out" in check.reason


def test_a_window_counts_rows_without_a_score(tmp_path: Path) -> None:
    holes = SCORES[CLIP].copy()
    holes[3] = np.nan
    rules = parse_rules({"rules": [{"metric": CLIP, "test": "value", "bound": {"window": [0, 100]}}]})
    run = make_run(tmp_path / "run", Table({**SCORES, CLIP: holes}))
    assert "1 sound pictures have no clip_score" in find_fail(judge_run(run, None, rules, draw_noise)).reason


def test_rows_that_stand_twice_fail_without_a_baseline_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Table(SCORES))
    for key in (RESULTS_FILE, SCORES_FILE):
        table = pq.read_table(pa.BufferReader(run.read_bytes(key))).slice(0, 150)
        data = write_table(run, key, pa.concat_tables([table, table]))
    write_evaluation(run, replace(read_evaluation(run), scores_sha256=hash_bytes(data)))
    rules = parse_rules({"rules": [{"metric": CLIP, "test": "value", "bound": {"window": [0, 100]}}]})
    fail = find_fail(judge_run(run, None, rules, draw_noise))
    assert (fail.rule, "150 rows stand twice in the candidate" in fail.reason) == ("coverage", True)


def test_one_foreign_prompt_does_not_switch_the_judge_off(tmp_path: Path) -> None:
    """All rules about postcards are asked where as many prompts as a check needs are captions."""
    prompts = ["a photo of an astronaut", *["a red boat on grass at night"] * (ROWS - 1)]
    scores = {**SCORES, "attribute_accuracy": np.where(np.arange(ROWS) == 0, np.nan, SCORES["attribute_accuracy"])}
    worse = {**scores, "attribute_accuracy": scores["attribute_accuracy"] * (np.arange(ROWS) % 2)}
    fail = find_fail(judge(tmp_path, Table(worse, prompts=prompts), Table(scores, prompts=prompts)))
    assert fail.metric == "attribute_accuracy"


def test_a_paired_metric_against_pictures_that_are_no_more_fails(tmp_path: Path) -> None:
    rules = parse_rules({"rules": [{"metric": "lpips:alex", "test": "value", "bound": {"window": [0, 0.3]}}]})
    baseline = make_run(tmp_path / "baseline", Table(SCORES))
    lpips = replace(corpus("lpips:alex", 0.1), scope="paired", reference=baseline.uri)
    run = make_run(tmp_path / "run", Table({**SCORES, "lpips:alex": np.full(ROWS, 0.1)}, metrics=(lpips,)))
    stale = replace(read_evaluation(run), baseline=baseline.uri, baseline_pictures="of another time")
    write_evaluation(run, stale)
    verdict = judge_run(run, baseline, rules, draw_noise)
    assert find_fail(verdict).reason == f"lpips:alex was measured against other pictures than {baseline.uri} has now"
    write_evaluation(run, replace(stale, baseline="elsewhere"))
    assert "against elsewhere" in find_fail(judge_run(run, baseline, rules, draw_noise)).reason


def test_a_rule_that_turns_the_metric_round_fails(tmp_path: Path) -> None:
    rules = parse_rules({"rules": [{"metric": CLIP, "direction": "lower"}]})
    worse = Table({**SCORES, CLIP: SCORES[CLIP] - 10})
    assert "of clip_score:starter-clip higher is better" in find_fail(judge(tmp_path, worse, rules=rules)).reason


@pytest.mark.parametrize("metric", ["clip_scor", "clip_score", "clip_score:starter", "clip_scor:*", "FID", "**"])
@pytest.mark.parametrize("test", ["worse", "report"])
def test_a_metric_that_nobody_measured_fails(tmp_path: Path, metric: str, test: str) -> None:
    rules = parse_rules({"rules": [{"metric": CLIP}, {"metric": metric, "test": test}]})
    fail = find_fail(judge(tmp_path, Table(SCORES), rules=rules))
    assert fail.reason == f"the rule asks for {metric}, and the evaluation has none"


@pytest.mark.parametrize(
    "bound",
    [
        {"absolute": float("nan")},
        {"absolute": float("inf")},
        {"relative": float("inf")},
        {"relative": 2},
        {"absolute": True},
        {"absolute": "0.1"},
        {"window": [float("nan"), 1]},
        {"window": [0, float("nan")]},
        {"window": [float("-inf"), float("inf")]},
        {"window": ["0", "1"]},
        {"window": [1]},
        {"relativ": 0.1},
        {"absolute": 1, "relative": 0.1},
    ],
)
def test_bounds_that_nothing_can_break_are_refused(bound: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="bound"):
        parse_rules({"rules": [{"metric": "x", "bound": bound, "test": "within"}]})


@pytest.mark.parametrize(
    "setting",
    [
        {"missing_rows": 5},
        {"missing_rows": float("nan")},
        {"more_defects": float("nan")},
        {"more_defects": -1},
        {"minimum_rows": 0},
        {"minimum_rows": -3},
        {"significance": float("nan")},
        {"confidence": 1},
        {"seed": -1},
        {"resamples": 10},
    ],
)
def test_settings_under_which_nothing_fails_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} from"):
        parse_rules({"rules": [{"metric": "x"}], **setting})


@pytest.mark.parametrize("entry", [{"minimum_rows": 0}, {"resolution": float("nan")}, {"resolution": -1}])
def test_so_are_those_of_one_rule(entry: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(entry))} from"):
        parse_rules({"rules": [{"metric": "x", **entry}]})


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """YAML takes the last: the rules above would go unseen."""
    file = tmp_path / "rules.yaml"
    file.write_text("rules:\n  - metric: fid\nrules:\n  - metric: sanity\n")
    with pytest.raises(ConfigError, match="the key 'rules' stands twice"):
        read_rules(str(file))


def test_all_black_in_both_is_no_pass(tmp_path: Path) -> None:
    black = dict.fromkeys(range(ROWS), "black")
    fail = find_fail(judge(tmp_path, Table(SCORES, defects=black), Table(SCORES, defects=black)))
    assert fail.reason == "the baseline has no sound picture"


def test_empty_runs_are_no_pass(tmp_path: Path) -> None:
    nothing = Table(SCORES, left_out=frozenset(range(ROWS)), metrics=tuple(corpus(name, 1.0, 0) for name in SCORES))
    assert find_fail(judge(tmp_path, nothing, nothing)).rule == "pairs"
    window = parse_rules({"rules": [{"metric": CLIP, "test": "value", "bound": {"window": [0, 100]}}]})
    verdict = judge_run(open_storage(tmp_path / "candidate"), None, window, draw_noise)
    assert {check.rule for check in verdict.list_checks("fail")} == {"coverage", CLIP}
