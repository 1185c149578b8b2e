"""Every way in which a gate could pass silently, and what it says instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgate_core.errors import ConfigError, RunError
from dgate_core.evaluation.gate.comparison import RunPair
from dgate_core.evaluation.gate.gate import judge_run
from dgate_core.evaluation.gate.rules import list_presets, parse_rules, read_rules
from dgate_core.evaluation.gate.verdict import Verdict, read_verdict, verdict_to_record, write_verdict
from dgate_core.evaluation.results import EVALUATION_FILE, SCORES_FILE, EvaluationError, MetricValue
from dgate_core.runs.layout import RESULTS_FILE
from dgate_core.storage import Storage, open_storage
from flows.cli import main
from tests.gate_lab import (
    CLIP,
    PICTURES,
    ROWS,
    RULES,
    SCORES,
    Table,
    broken,
    corpus,
    draw_noise,
    judge,
    make_run,
    measure,
)


def find_fails(verdict: Verdict) -> list[str]:
    assert verdict.exit_code == (1 if verdict.decision == "fail" else 0)
    return [check.rule for check in verdict.list_checks("fail")]


def test_pictures_that_are_missing_fail(tmp_path: Path) -> None:
    left_out = judge(tmp_path, Table(SCORES, left_out=frozenset(range(15))))
    assert "coverage" in find_fails(left_out)
    check = next(check for check in left_out.checks if check.rule == "coverage")
    assert (check.n_used, check.n_expected) == (285, 300)
    assert "15 not in the run" in check.reason
    failed = judge(tmp_path, Table(SCORES, statuses={3: "error", 4: "skipped"}))
    assert "1 error, 1 skipped" in next(check.reason for check in failed.checks if check.rule == "coverage")
    assert find_fails(failed) == ["coverage"]


def test_one_percent_of_black_pictures_fails_and_they_count_as_worst(tmp_path: Path) -> None:
    verdict = judge(tmp_path, Table(SCORES, defects=dict.fromkeys(range(3), "black")))
    assert find_fails(verdict) == ["defects"]
    clip = next(check for check in verdict.checks if check.metric == CLIP)
    assert (clip.n_used, clip.n_expected, clip.n_worst) == (300, 300, 3)
    assert clip.candidate is not None
    assert clip.candidate == pytest.approx((SCORES[CLIP][3:].sum() + 3 * SCORES[CLIP].min()) / ROWS)


def test_defects_of_the_baseline_are_no_excuse_and_no_alarm(tmp_path: Path) -> None:
    black = dict.fromkeys(range(3), "black")
    same = judge(tmp_path, Table(SCORES, defects=black), Table(SCORES, defects=black))
    assert same.passed
    assert "3 rows are not compared" in next(check.reason for check in same.checks if check.rule == "pairs")
    more = judge(tmp_path, Table(SCORES, defects={**black, 7: "constant"}), Table(SCORES, defects=black))
    assert find_fails(more) == ["defects"]


def test_a_metric_that_is_missing_fails_by_its_name(tmp_path: Path) -> None:
    without = {name: values for name, values in SCORES.items() if name != "attribute_accuracy"}
    verdict = judge(tmp_path, Table(without))
    assert find_fails(verdict) == ["attribute_accuracy"]
    neither = judge(tmp_path, Table(without), Table(without))
    assert find_fails(neither) == ["attribute_accuracy"]


def test_a_metric_that_could_not_be_measured_fails_with_its_reason(tmp_path: Path) -> None:
    error = "the package 'lpips' is not installed"
    verdict = judge(
        tmp_path, Table(SCORES, metrics=(broken("fid", error),)), Table(SCORES, metrics=(corpus("fid", 9),))
    )
    assert error in verdict.list_checks("fail")[0].reason
    both = Table(SCORES, metrics=(broken("fid", error),))
    assert find_fails(judge(tmp_path, both, both)) == ["*"]


def test_a_paired_metric_that_failed_in_the_candidate_alone_fails(tmp_path: Path) -> None:
    failed = replace(broken("lpips:alex", "the package 'lpips' is not installed"), scope="paired")
    verdict = judge(tmp_path, Table(SCORES, metrics=(failed,)))
    assert [check.metric for check in verdict.list_checks("fail")] == ["lpips:alex"]
    assert "not installed" in verdict.list_checks("fail")[0].reason


def test_corpus_metrics_are_held_against_their_noise(tmp_path: Path) -> None:
    def judge_fid(value: float) -> Verdict:
        return judge(
            tmp_path, Table(SCORES, metrics=(corpus("fid", value),)), Table(SCORES, metrics=(corpus("fid", 9),))
        )

    assert judge_fid(9.2).passed
    assert judge_fid(7.0).passed
    assert find_fails(judge_fid(9.9)) == ["*"]
    unlike = replace(corpus("fid", 9), weights_sha256="others")
    other = judge(tmp_path, Table(SCORES, metrics=(unlike,)), Table(SCORES, metrics=(corpus("fid", 9),)))
    assert "different weights_sha256" in other.list_checks("fail")[0].reason


def test_corpus_metrics_without_known_noise_are_only_reported(tmp_path: Path) -> None:
    table = Table(SCORES, metrics=(corpus("recall", 0.3),))
    verdict = judge(tmp_path, table, table)
    assert verdict.passed
    assert verdict.checks[-1].reported_only


def test_rows_that_were_excluded_without_a_count_fail(tmp_path: Path) -> None:
    holes = SCORES[CLIP].copy()
    holes[:4] = np.nan
    verdict = judge(tmp_path, Table({**SCORES, CLIP: holes}))
    assert "4 sound pictures have no clip_score" in verdict.list_checks("fail")[0].reason
    both = judge(tmp_path, Table({**SCORES, CLIP: holes}), Table({**SCORES, CLIP: holes}))
    assert next(check for check in both.checks if check.metric == CLIP).n_used == ROWS - 4


def test_too_few_rows_fail(tmp_path: Path) -> None:
    few = {name: values[:150] for name, values in SCORES.items()}
    verdict = judge(tmp_path, Table(few), Table(few))
    assert {check.reason for check in verdict.list_checks("fail")} == {"150 rows, and the rule needs 200"}


def delete_evaluation(run: Storage) -> None:
    run.delete(EVALUATION_FILE)


def delete_scores(run: Storage) -> None:
    run.delete(SCORES_FILE)


def cut_evaluation(run: Storage) -> None:
    run.write_bytes(EVALUATION_FILE, run.read_bytes(EVALUATION_FILE)[:100])


def cut_scores(run: Storage) -> None:
    run.write_bytes(SCORES_FILE, run.read_bytes(SCORES_FILE)[:100])


def count_other_rows(run: Storage) -> None:
    found = json.loads(run.read_bytes(EVALUATION_FILE))
    run.write_bytes(EVALUATION_FILE, json.dumps({**found, "n_expected": 299}).encode())


@pytest.mark.parametrize("damage", [delete_evaluation, delete_scores, cut_evaluation, cut_scores, count_other_rows])
@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_an_evaluation_that_crashed_fails(tmp_path: Path, damage: Callable[[Storage], None], side: str) -> None:
    runs = {name: make_run(tmp_path / name, Table(SCORES, fingerprint=name)) for name in ("candidate", "baseline")}
    damage(runs[side])
    verdict = judge_run(runs["candidate"], runs["baseline"], RULES, draw_noise)
    assert find_fails(verdict) == ["evaluation"]
    assert f"the {side} cannot be judged" in verdict.checks[0].reason
    assert "dgate evaluate" in verdict.checks[0].reason


def test_an_evaluation_of_other_pictures_fails(tmp_path: Path) -> None:
    baseline = make_run(tmp_path / "baseline", Table(SCORES))
    run = make_run(tmp_path / "candidate", Table(SCORES, fingerprint="c"))
    retried = make_run(tmp_path / "retried", Table(SCORES, fingerprint="c", statuses={5: "error"}))
    run.write_bytes(RESULTS_FILE, retried.read_bytes(RESULTS_FILE))
    verdict = judge_run(run, baseline, RULES, draw_noise)
    assert "not those that were evaluated, such as 'row-00005'" in verdict.checks[0].reason


def test_other_prompts_and_other_noise_fail(tmp_path: Path) -> None:
    prompts = ["a blue fish on the sea at night"] * ROWS
    other = judge(tmp_path, Table(SCORES, prompts=prompts))
    assert find_fails(other) == ["pairs"]
    assert "300 rows have another prompt" in other.checks[0].reason
    seeds = range(1, ROWS + 1)
    assert judge(tmp_path, Table(SCORES, seeds=seeds)).passed
    strict = judge(tmp_path, Table(SCORES, seeds=seeds), rules=replace(RULES, pairing="noise"))
    assert find_fails(strict) == ["pairs"]
    assert "another seed" in strict.checks[0].reason


def test_rules_of_the_postcard_world_are_not_asked_elsewhere(tmp_path: Path) -> None:
    table = Table({CLIP: SCORES[CLIP], "sharpness": SCORES["sharpness"]}, prompts=["a photo of an astronaut"] * ROWS)
    verdict = judge(tmp_path, table, table)
    assert verdict.passed
    assert [check.rule for check in verdict.checks if check.reported_only] == [
        "caption_choice:*",
        "attribute_accuracy",
    ]


def make_mlperf(folder: Path, fid: MetricValue, **changes: Any) -> Storage:
    clip = SCORES[CLIP] - SCORES[CLIP].mean() + 31.75
    name = "clip_score:ViT-B-32"
    measured = replace(measure(name, clip), extractor="ViT-B-32")
    return make_run(folder, Table({name: clip}, metrics=(fid, measured), **changes))


def test_windows_need_no_baseline(tmp_path: Path) -> None:
    rules = replace(read_rules("mlperf-sdxl"), minimum_rows=ROWS)
    fid = replace(corpus("fid", 23.5), extractor="inception-v3-fid", reference="coco-2014-val@1 sha256:0123")
    good = make_mlperf(tmp_path / "good", fid)
    assert judge_run(good, None, rules, draw_noise).passed
    bad = make_mlperf(tmp_path / "bad", replace(fid, value=22.9))
    assert find_fails(judge_run(bad, None, rules, draw_noise)) == ["fid"]
    black = make_mlperf(tmp_path / "black", fid, defects={1: "black"})
    assert find_fails(judge_run(black, None, rules, draw_noise)) == ["coverage"]
    few = judge_run(good, None, read_rules("mlperf-sdxl"), draw_noise)
    assert find_fails(few) == ["fid", "clip_score:*"]
    assert find_fails(judge_run(good, None, RULES, draw_noise)) == ["baseline"]


def test_a_number_against_another_reference_or_of_another_network_is_not_in_the_window(tmp_path: Path) -> None:
    rules = replace(read_rules("mlperf-sdxl"), minimum_rows=ROWS)
    fid = replace(corpus("fid", 23.5), extractor="inception-v3-fid", reference="postcards-1k@1 sha256:0123")
    verdict = judge_run(make_mlperf(tmp_path / "postcards", fid), None, rules, draw_noise)
    assert "measured against postcards-1k@1" in verdict.list_checks("fail")[0].reason
    fid = replace(fid, extractor="inception-v3-fid@tensorflow1", reference="coco-2014-val@1 sha256:0123")
    verdict = judge_run(make_mlperf(tmp_path / "resize", fid), None, rules, draw_noise)
    assert "the rule asks for inception-v3-fid" in verdict.list_checks("fail")[0].reason


def test_a_corpus_metric_that_cannot_be_drawn_again_fails(tmp_path: Path) -> None:
    def refuse(pair: RunPair, metric: MetricValue) -> np.ndarray:
        raise EvaluationError("the weights of inception-v3-fid are not on this machine")

    runs = [make_run(tmp_path / name, Table(SCORES, metrics=(corpus("fid", 9),))) for name in ("a", "b")]
    assert "not on this machine" in judge_run(*runs, RULES, refuse).list_checks("fail")[0].reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_fail(tmp_path: Path, value: float) -> None:
    table = Table(SCORES, metrics=(corpus("fid", value),))
    assert "no number to compare" in judge(tmp_path, table, table).list_checks("fail")[0].reason


def test_infinite_scores_fail(tmp_path: Path) -> None:
    scores = {**SCORES, CLIP: np.where(np.arange(ROWS) == 5, np.inf, SCORES[CLIP])}
    metrics = (measure(CLIP, SCORES[CLIP]),)
    assert (
        "infinite" in judge(tmp_path, Table(scores, metrics=metrics), Table(scores, metrics=metrics)).checks[3].reason
    )


def test_draws_that_are_no_numbers_fail(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, Table(SCORES, metrics=(corpus("fid", 9),))) for name in ("a", "b")]
    verdict = judge_run(*runs, RULES, lambda *_: np.full(100, np.nan))
    assert "not always a number" in verdict.list_checks("fail")[0].reason


def test_a_metric_that_shall_only_be_reported_must_still_be_there(tmp_path: Path) -> None:
    rules = parse_rules({"rules": [{"metric": CLIP}, {"metric": "lpips:*", "test": "report"}]})
    assert find_fails(judge(tmp_path, Table(SCORES), rules=rules)) == ["lpips:*"]


def test_nothing_judged_is_nothing_passed(tmp_path: Path) -> None:
    rules = parse_rules({"rules": [{"metric": CLIP, "test": "report"}]})
    verdict = judge(tmp_path, Table(SCORES), rules=rules)
    assert (verdict.decision, verdict.exit_code) == ("undecided", 2)


def test_too_few_resamples_to_ever_fail_are_no_pass(tmp_path: Path) -> None:
    verdict = judge(tmp_path, Table(SCORES), rules=replace(RULES, resamples=200))
    assert verdict.decision == "undecided"
    assert "200 resamples cannot tell 0.01" in verdict.list_checks("undecided")[0].reason


def test_a_run_against_itself_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Table(SCORES))
    assert "the candidate is the baseline itself" in judge_run(run, run, RULES, draw_noise).checks[0].reason


def test_the_command_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = make_run(tmp_path / "baseline", Table(SCORES)).uri
    make_run(tmp_path / "same", Table(SCORES, fingerprint="c"))
    make_run(tmp_path / "black", Table(SCORES, fingerprint="c", defects={1: "black"}))
    codes = {}
    make_run(tmp_path / "gone", Table(SCORES, fingerprint="c")).delete(PICTURES)
    for name in ("same", "black", "gone"):
        with pytest.raises(SystemExit) as ended:
            main(["gate", str(tmp_path / name), "--baseline", baseline, "--json"])
        said = capsys.readouterr()
        assert ("its page is not drawn: there is no file" in said.err) == (name == "gone")
        record = json.loads(said.out)
        assert record == json.loads((tmp_path / name / "evaluation" / "gate.json").read_text())
        codes[name] = ended.value.code
    assert codes == {"same": 0, "black": 1, "gone": 1}
    with pytest.raises(SystemExit) as ended:
        main(["gate", str(tmp_path / "black"), "--baseline", baseline])
    said = capsys.readouterr().out
    assert said.startswith("FAIL")
    assert "1 of 300 pictures are defective" in said
    with pytest.raises(SystemExit) as ended:
        main(["gate", str(tmp_path / "black"), "--baseline", baseline, "--rules", "regresion"])
    assert ended.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["gate", str(tmp_path / "none"), "--baseline", baseline, "--json"])
    assert ended.value.code == 1
    assert "no run" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run"):
        judge_run(open_storage(tmp_path / "none"), make_run(tmp_path / "b", Table(SCORES)), RULES, draw_noise)


def test_verdict_comes_back_from_its_file(tmp_path: Path) -> None:
    verdict = judge(tmp_path, Table(SCORES, defects={1: "black"}))
    write_verdict(open_storage(tmp_path / "candidate"), verdict)
    assert read_verdict(open_storage(tmp_path / "candidate")) == verdict
    record = verdict_to_record(verdict)
    assert (record["passed"], record["exit_code"], record["decision"]) == (False, 1, "fail")
    with pytest.raises(EvaluationError, match="dgate gate"):
        read_verdict(open_storage(tmp_path / "baseline"))


@pytest.mark.parametrize("preset", ["regression", "int8", "mlperf-sdxl"])
def test_presets_can_be_read(preset: str) -> None:
    rules = read_rules(preset)
    assert preset in list_presets()
    assert rules.description
    assert rules.needs_baseline == (preset != "mlperf-sdxl")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"metrik": "x"}, "without a metric"),
        ({"metric": "x", "bount": {"relative": 0.1}}, "did you mean 'bound'"),
        ({"metric": "x", "bound": {"relative": -0.1}}, "0 or more"),
        ({"metric": "x", "bound": {"window": [3, 1]}}, "LOW, HIGH"),
        ({"metric": "x", "test": "within"}, "has no bound"),
        ({"metric": "x", "test": "better"}, "one of worse"),
        ({"metric": "x", "bound": {"window": [1, 3]}}, "has a window"),
    ],
)
def test_mistakes_in_rules_are_told(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rules({"rules": [entry]})


def test_unknown_rules_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'regression'"):
        read_rules("regresion")
    with pytest.raises(ConfigError, match="at least one"):
        parse_rules({"rules": []})
    with pytest.raises(ConfigError, match="significance from"):
        parse_rules({"rules": [{"metric": "x"}], "significance": 2})
