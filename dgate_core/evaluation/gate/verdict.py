"""What the gate says, and gate.json: every check with its effect, its uncertainty and how many pictures it saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dgate_core.evaluation.results import GATE_FILE, EvaluationError
from dgate_core.storage import Storage

VERDICT_VERSION = 1

Decision = Literal["pass", "fail", "undecided"]

EXIT_CODES: dict[Decision, int] = {"pass": 0, "fail": 1, "undecided": 2}
"""Of `dgate gate`: could not decide is not a pass."""


@dataclass(frozen=True, slots=True)
class Check:
    """One rule, held against two runs."""

    rule: str
    """The rule's name, such as `clip_score`, `coverage`, `defects`, `evaluation`."""
    metric: str
    """Metric that was compared; empty for rules about the runs themselves."""
    decision: Decision
    """`undecided`: the interval holds both what would pass and what would fail."""
    reason: str
    """One sentence: why."""
    better: Literal["higher", "lower"] = "higher"
    """Which direction of the metric is good."""
    baseline: float | None = None
    """The metric of the baseline, over the rows that were compared."""
    candidate: float | None = None
    """The metric of the candidate, over the rows that were compared."""
    effect: float | None = None
    """Candidate less baseline (relative bounds: divided by the baseline; windows: the candidate's value)."""
    interval: tuple[float, float] | None = None
    """Confidence interval of the effect, at the level `confidence`."""
    confidence: float | None = None
    """Level of the interval after the correction for many checks, 0 to 1."""
    bound: tuple[float | None, float | None] | None = None
    """Least and greatest effect that is allowed; None where there is no limit."""
    p_value: float | None = None
    """Chance of an effect this bad without a difference, after the correction for many checks."""
    n_used: int = 0
    """Rows (or pairs) in the numbers."""
    n_expected: int = 0
    """Rows that should be in the numbers."""
    n_worst: int = 0
    """Rows in the numbers whose candidate has no sound picture: they count with the worst score seen."""
    reported_only: bool = False
    """Shown, never a reason to fail."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer about one candidate."""

    decision: Decision
    """fail when any check fails; else undecided when any is; else pass."""
    checks: tuple[Check, ...]
    """In the order of the rules, those about the runs themselves first."""
    candidate: str
    """Candidate run."""
    baseline: str
    """Baseline run; empty when the rules compare with fixed windows only."""
    rules: str
    """Name of the preset, or path of the rules."""
    created: str = ""
    """ISO 8601, UTC."""
    version: int = VERDICT_VERSION
    """Of this record."""

    @property
    def passed(self) -> bool | None:
        """True, False, or None when it could not be decided."""
        return {"pass": True, "fail": False, "undecided": None}[self.decision]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 could not decide."""
        return EXIT_CODES[self.decision]

    def list_checks(self, decision: Decision) -> list[Check]:
        """Checks that ended so and count."""
        return [check for check in self.checks if check.decision == decision and not check.reported_only]


def join_decisions(checks: Sequence[Check]) -> Decision:
    """The decision of a verdict: one fail fails it; without a check that counts nothing was decided."""
    decisions = {check.decision for check in checks if not check.reported_only}
    if "fail" in decisions:
        return "fail"
    return "pass" if decisions == {"pass"} else "undecided"


def verdict_to_record(verdict: Verdict) -> dict[str, Any]:
    """The verdict as gate.json holds it, with `passed` and `exit_code`."""
    return {**asdict(verdict), "passed": verdict.passed, "exit_code": verdict.exit_code}


def record_to_verdict(record: dict[str, Any]) -> Verdict:
    """The inverse of `verdict_to_record`.

    Raises:
        EvaluationError: the record is of another version.
    """
    if record.get("version") != VERDICT_VERSION:
        raise EvaluationError(
            f"the gate's record has version {record.get('version')}", f"version {VERDICT_VERSION}", "run the gate again"
        )
    found = {key: value for key, value in record.items() if key not in {"passed", "exit_code", "checks"}}
    return Verdict(checks=tuple(_read_check(each) for each in record["checks"]), **found)


def write_verdict(storage: Storage, verdict: Verdict) -> None:
    """Writes gate.json into the candidate's folder, whole or not at all."""
    storage.write_bytes(GATE_FILE, (json.dumps(verdict_to_record(verdict), indent=2) + "\n").encode())


def read_verdict(storage: Storage) -> Verdict:
    """Reads gate.json of a run's folder.

    Raises:
        EvaluationError: there is none, or it is of another version.
    """
    if not storage.exists(GATE_FILE):
        raise EvaluationError(
            f"{storage.uri} has no {GATE_FILE}",
            "a run that went through the gate",
            f"run: dgate gate {storage.uri} --baseline RUN --rules regression",
        )
    return record_to_verdict(json.loads(storage.read_bytes(GATE_FILE)))


def _read_check(found: dict[str, Any]) -> Check:
    pairs = {name: tuple(found[name]) if found[name] else None for name in ("interval", "bound")}
    return Check(**{**found, **pairs})
