"""Checks about the runs themselves, before any metric: are they the same rows, are pictures missing or defective."""

from __future__ import annotations

from collections import Counter

from dgate_core.evaluation.gate.pairs import Pairing, describe_repeats
from dgate_core.evaluation.gate.rules import GateRules
from dgate_core.evaluation.gate.scored_run import PICTURE_STATUSES, ScoredRun
from dgate_core.evaluation.gate.verdict import Check


def check_pairs(pairing: Pairing, rules: GateRules, is_same_run: bool = False) -> Check:
    """Fails when rows of the same name were asked for with another prompt, or seed."""
    paired = int((pairing.candidate >= 0).sum())
    by = "prompt and noise" if rules.pairing == "noise" else "prompt"
    reason = f"{paired:,} of {len(pairing):,} rows paired by {by}"
    if rules.pairing == "prompt" and pairing.other_seeds:
        reason += f"; {pairing.other_seeds:,} have other noise"
    if pairing.baseline_unsound:
        reason += f"; {pairing.baseline_unsound:,} rows are not compared, the baseline has no sound picture there"
    if pairing.repeats:
        reason += f"; {pairing.repeats:,} rows ask for the same picture as another row and count once"
    if is_same_run:
        reason += "; the candidate is the baseline itself"
    if pairing.problems:
        reason = "; ".join(pairing.problems)
    return Check("pairs", "", "fail" if pairing.problems else "pass", reason, n_used=paired, n_expected=len(pairing))


def check_coverage(candidate: ScoredRun, pairing: Pairing, rules: GateRules) -> Check:
    """Fails when pictures that the baseline has are not there in the candidate."""
    states = _name_states(candidate)
    found = Counter("not in the run" if row < 0 else states[row] for row in pairing.candidate)
    missing = {state: count for state, count in found.items() if state not in PICTURE_STATUSES}
    number, share = sum(missing.values()), rules.missing_rows
    reason = "every picture of the baseline has its counterpart"
    if number:
        kinds = ", ".join(f"{count:,} {status}" for status, count in sorted(missing.items()))
        reason = f"{number:,} of {len(pairing):,} pictures of the baseline are missing ({kinds})"
    return Check(
        "coverage",
        "",
        "fail" if number > share * len(pairing) else "pass",
        reason,
        better="lower",
        baseline=0.0,
        candidate=number / max(len(pairing), 1),
        effect=number / max(len(pairing), 1),
        bound=(None, share),
        n_used=len(pairing) - number,
        n_expected=len(pairing),
    )


def _name_states(run: ScoredRun) -> list[str]:
    """The status of each row, or that its picture is gone although the run says it is there."""
    pairs = zip(run.list_values("status"), run.list_values("defect"), strict=True)
    return [
        "without its file" if status in PICTURE_STATUSES and defect == "missing" else str(status)
        for status, defect in pairs
    ]


def check_defects(candidate: ScoredRun, baseline: ScoredRun, rules: GateRules) -> Check:
    """Fails when a larger share of the pictures is black, constant, unreadable … than in the baseline."""
    ours, theirs = _count_defects(candidate), _count_defects(baseline)
    n_ours, n_theirs = len(candidate.scores), len(baseline.scores)
    mine, other = sum(ours.values()) / max(n_ours, 1), sum(theirs.values()) / max(n_theirs, 1)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(ours.items()))
    reason = f"{sum(ours.values()):,} of {n_ours:,} pictures are defective" + (f" ({kinds})" if kinds else "")
    reason += f", in the baseline {sum(theirs.values()):,} of {n_theirs:,}"
    return Check(
        "defects",
        "",
        "fail" if mine - other > rules.more_defects else "pass",
        reason,
        better="lower",
        baseline=other,
        candidate=mine,
        effect=mine - other,
        bound=(None, rules.more_defects),
        n_used=n_ours,
        n_expected=n_ours,
    )


def _count_defects(run: ScoredRun) -> Counter[str]:
    """Pictures by defect; `missing` belongs to the coverage."""
    return Counter(defect for defect in run.list_values("defect") if defect not in {None, "missing"})


def check_wholeness(candidate: ScoredRun, rules: GateRules) -> Check:
    """Without a baseline: fails when any more than the allowed pictures are missing or defective, or rows repeat."""
    lost = Counter(defect for defect in candidate.list_values("defect") if defect is not None)
    number, expected = sum(lost.values()), len(candidate.scores)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(lost.items()))
    allowed = rules.missing_rows + rules.more_defects
    problems = describe_repeats("candidate", candidate.list_keys())
    reason = f"{number:,} of {expected:,} pictures are missing or defective" + (f" ({kinds})" if kinds else "")
    return Check(
        "coverage",
        "",
        "fail" if number > allowed * expected or not expected or problems else "pass",
        "; ".join([*problems, reason]),
        better="lower",
        candidate=number / max(expected, 1),
        effect=number / max(expected, 1),
        bound=(None, allowed),
        n_used=expected - number,
        n_expected=expected,
    )
