"""What the gate's decisions are worth: false alarms, power, coverage of intervals; on score tables, in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from dgate_core.evaluation.gate.bootstrap import adjust_p_values, draw_weights, resample_means
from dgate_core.evaluation.gate.gate import judge_run
from dgate_core.evaluation.gate.rules import GateRules, read_rules
from dgate_core.evaluation.gate.verdict import Verdict
from dgate_core.evaluation.results import EvaluationError, MetricValue
from tests.gate_lab import Table, make_run

ROWS = 500
CLIP, CHOICE = "clip_score:starter-clip", "caption_choice:starter-clip"
ACCURACY, SHARPNESS = "attribute_accuracy", "sharpness"


def no_corpus(pair: object, metric: MetricValue) -> np.ndarray:
    raise EvaluationError(f"{metric.name} was not expected here")


class Model:
    """Prompts of different difficulty, and noise that moves each picture."""

    def __init__(self, seed: int = 0, rows: int = ROWS) -> None:
        rng = np.random.default_rng(seed)
        self.rows = rows
        self.ease = rng.beta(1.2, 1.0, rows)
        self.affinity = rng.normal(30, 4, rows)

    def score(self, seed: int, harm: float = 0.0) -> dict[str, np.ndarray]:
        """Scores of a run; harm lowers the chance of a right picture and the CLIP score by this share."""
        rng = np.random.default_rng((seed, 1))
        luck = rng.random(self.rows)
        right = (luck < self.ease * (1 - harm)).astype(float)
        choice = (rng.random(self.rows) < 0.5 + 0.4 * right * (1 - harm)).astype(float)
        clip = self.affinity * (1 - harm) + 2 * right + rng.normal(0, 2, self.rows)
        detail = 12 + 0.1 * (self.affinity - 30) + rng.normal(0, 2, self.rows)
        return {CLIP: clip, CHOICE: choice, ACCURACY: right, SHARPNESS: detail}


@pytest.fixture(scope="module")
def regression() -> GateRules:
    return replace(read_rules("regression"), resamples=1000)


def judge(folder: Path, candidate: Table, baseline: Table, rules: GateRules) -> Verdict:
    ours, theirs = make_run(folder / "candidate", candidate), make_run(folder / "baseline", baseline)
    return judge_run(ours, theirs, rules, no_corpus)


def test_forty_reruns_with_other_seeds_raise_few_false_alarms(tmp_path: Path, regression: GateRules) -> None:
    """Three baselines, forty re-runs each: at most 5 % of the candidates, which are as good, do not pass."""
    alarms = []
    for world in range(3):
        model = Model(world)
        baseline = make_run(tmp_path / f"baseline-{world}", Table(model.score(1000), seeds=range(ROWS)))
        for seed in range(40):
            candidate = Table(model.score(seed), seeds=range(seed + 1, seed + 1 + ROWS), fingerprint=f"c{seed}")
            run = make_run(tmp_path / "candidate", candidate)
            alarms.append(not judge_run(run, baseline, regression, no_corpus).passed)
    assert len(alarms) == 120
    assert np.mean(alarms) <= 0.02, "the shipped significance is 1 %"
    assert max(sum(alarms[start : start + 40]) for start in range(0, 120, 40)) <= 2, "5 % of any forty"


@pytest.mark.parametrize("harm", [0.2, 0.35])
def test_harm_with_the_same_noise_is_caught(tmp_path: Path, regression: GateRules, harm: float) -> None:
    for world in range(5):
        model = Model(world)
        baseline, candidate = Table(model.score(3)), Table(model.score(3, harm), fingerprint="c")
        verdict = judge(tmp_path, candidate, baseline, regression)
        assert {check.metric for check in verdict.list_checks("fail")} >= {ACCURACY}


def test_harm_with_other_noise_is_caught(tmp_path: Path, regression: GateRules) -> None:
    model = Model(0)
    candidate = Table(model.score(4, 0.3), seeds=range(9, 9 + ROWS), fingerprint="c")
    assert judge(tmp_path, candidate, Table(model.score(3)), regression).decision == "fail"


def test_a_little_blur_is_seen_with_the_same_noise(tmp_path: Path, regression: GateRules) -> None:
    """Two percent of the detail, as half the steps take it: nothing that a caption would miss."""
    scores = Model(0).score(3)
    loss = np.random.default_rng(1).normal(0.02, 0.05, ROWS)
    blurred = {**scores, SHARPNESS: scores[SHARPNESS] * (1 - loss)}
    verdict = judge(tmp_path, Table(blurred, fingerprint="c"), Table(scores), regression)
    assert [check.metric for check in verdict.list_checks("fail")] == [SHARPNESS]


def test_harm_below_the_practical_bound_passes_however_sure_it_is(tmp_path: Path, regression: GateRules) -> None:
    scores = Model(0).score(3)
    lower = {**scores, CLIP: scores[CLIP] * 0.995}
    verdict = judge(tmp_path, Table(lower, fingerprint="c"), Table(scores), regression)
    check = next(check for check in verdict.checks if check.metric == CLIP)
    assert verdict.passed
    assert check.effect == pytest.approx(-0.005, abs=1e-6)
    assert check.p_value is not None
    assert check.p_value < 0.01


@pytest.mark.parametrize("rules", ["regression", "int8"])
def test_identical_runs_pass(tmp_path: Path, rules: str) -> None:
    scores = Model(1).score(7)
    lpips = {"lpips:alex": np.zeros(ROWS)} if rules == "int8" else {}
    verdict = judge(tmp_path, Table({**scores, **lpips}, fingerprint="c"), Table(scores), read_rules(rules))
    assert verdict.passed, verdict.checks
    assert all(check.effect == 0 for check in verdict.checks if check.metric and not check.reported_only)


def test_too_few_rows_to_see_harm_are_no_pass(tmp_path: Path, regression: GateRules) -> None:
    model = Model(0, rows=60)
    candidate = Table(model.score(4), seeds=range(9, 69), fingerprint="c")
    verdict = judge(tmp_path, candidate, Table(model.score(3)), replace(regression, minimum_rows=50))
    assert (verdict.decision, verdict.passed, verdict.exit_code) == ("undecided", None, 2)
    assert "rows would tell" in verdict.list_checks("undecided")[0].reason


@pytest.mark.parametrize(
    ("loss", "noise", "decision"), [(0.001, 0.5, "pass"), (0.04, 0.5, "fail"), (0.02, 0.5, "undecided")]
)
def test_int8_must_show_that_the_loss_is_small(tmp_path: Path, loss: float, noise: float, decision: str) -> None:
    scores = Model(2).score(5)
    clip = scores[CLIP] * (1 - loss) + np.random.default_rng(0).normal(0, noise, ROWS)
    candidate = Table({**scores, CLIP: clip, "lpips:alex": np.full(ROWS, 0.1)}, fingerprint="c")
    verdict = judge(tmp_path, candidate, Table(scores), read_rules("int8"))
    check = next(check for check in verdict.checks if check.metric == CLIP)
    assert (check.decision, verdict.decision) == (decision, decision)
    assert verdict.checks[-1].reported_only
    assert verdict.checks[-1].effect == pytest.approx(0.1)


def test_interval_agrees_with_scipy() -> None:
    scores = np.random.default_rng(0).gamma(2.0, size=300)
    drawn = resample_means(scores[:, None], 20_000, 0)[:, 0]
    ours = np.quantile(drawn, [0.025, 0.975])
    theirs = bootstrap((scores,), np.mean, n_resamples=20_000, method="percentile", random_state=1).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.0, 1.0, (200, 300))  # one column for each experiment
    drawn = resample_means(differences, 2000, 1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert 0.91 <= ((low <= 0) & (high >= 0)).mean() <= 0.98


def test_rows_without_a_score_are_left_out_of_that_column_alone() -> None:
    scores = np.array([[1.0, 5.0], [2.0, np.nan], [3.0, 7.0]])
    drawn = resample_means(scores, 5000, 0)
    assert drawn[:, 0].mean() == pytest.approx(2.0, abs=0.05)
    assert drawn[:, 1].mean() == pytest.approx(6.0, abs=0.3)


def test_weights_count_rows_and_do_not_depend_on_who_asks() -> None:
    pieces = [np.concatenate(list(draw_weights(40, 300, 5))) for _ in range(2)]
    assert (pieces[0] == pieces[1]).all()
    assert pieces[0].shape == (300, 40)
    assert (pieces[0].sum(1) == 40).all()


def test_holm_is_the_textbook_s() -> None:
    assert adjust_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_p_values([]) == []
    assert max(adjust_p_values([0.9, 0.8])) == 1.0
