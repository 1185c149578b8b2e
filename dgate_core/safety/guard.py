"""A picture, what a checker says of it, and what becomes of it: the verdict is data, the policy is the operator's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from dgate_core.errors import RowError
from dgate_core.safety.checkers import load_checker

if TYPE_CHECKING:
    import numpy as np

    from dgate_core.runs.spec import SafetyPolicy, SafetySpec

BLUR_CELLS = 8
"""Colours that a blurred picture keeps, along each side."""
WITHHELD_CODES = {"drop": "safety_dropped", "quarantine": "safety_quarantined"}
"""Error codes of rows without a picture, by what was done."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and done."""

    score: float
    """0 (harmless) to 1."""
    label: str
    """The checker's word."""
    action: SafetyPolicy
    """What was done; `keep` for every picture that is not flagged, too."""
    checker: str
    """Who looked."""

    @property
    def is_flagged(self) -> bool:
        """Whether the picture is not what it was any more."""
        return self.action != "keep"

    def to_dict(self) -> dict[str, Any]:
        """The `safety` of an answer."""
        return asdict(self)

    def to_columns(self) -> dict[str, Any]:
        """The columns of a row."""
        return {"safety_score": self.score, "safety_label": self.label, "safety_action": self.action}


@dataclass(frozen=True, slots=True)
class Looked:
    """A picture that was looked at."""

    pixels: np.ndarray | None
    """uint8 (height, width, 3), as it may be shown; None withholds it."""
    verdict: Verdict


class WithheldError(RowError):
    """A row whose picture was made and is not shown."""

    def __init__(self, verdict: Verdict) -> None:
        said = f"{verdict.checker} says {verdict.label} ({verdict.score:.3f}): {verdict.action}"
        super().__init__(WITHHELD_CODES[verdict.action], said)
        self.verdict = verdict


class SafetyGuard:
    """Applies a policy to what a checker says; may be called from any thread.

    Args:
        spec: Checker, policy, threshold.
    """

    def __init__(self, spec: SafetySpec) -> None:
        self.spec = spec
        self._checker = load_checker(spec.checker)

    def look(self, pixels: np.ndarray) -> Looked:
        """Verdict on one picture, uint8 (height, width, 3), and the picture as it may be shown.

        Raises:
            RowError: the checker failed; a picture that nobody has seen is not shown.
        """
        verdict = self._judge(self._rate(pixels))
        if verdict.action == "keep":
            return Looked(pixels, verdict)
        return Looked(blur_pixels(pixels) if verdict.action == "blur" else None, verdict)

    def _judge(self, score: float) -> Verdict:
        is_over = score >= self.spec.threshold
        action = self.spec.policy if is_over else "keep"
        return Verdict(round(score, 6), self._checker.labels[is_over], action, self.spec.checker)

    def _rate(self, pixels: np.ndarray) -> float:
        try:
            score = float(self._checker.rate(pixels))
        except Exception as error:
            raise _describe_failure(self.spec.checker, f"{type(error).__name__}: {error}") from error
        if not 0 <= score <= 1:
            raise _describe_failure(self.spec.checker, f"it gave the score {score}")
        return score


def open_guard(spec: SafetySpec | None) -> SafetyGuard | None:
    """None when nobody looks.

    Raises:
        UsageError: there is no such checker.
        MissingExtraError: its package is not installed.
    """
    return None if spec is None else SafetyGuard(spec)


def blur_pixels(pixels: np.ndarray) -> np.ndarray:
    """Averages of BLUR_CELLS by BLUR_CELLS fields, drawn softly: nothing of the picture can be had back from it."""
    import numpy as np

    picture = Image.fromarray(pixels)
    small = picture.resize((BLUR_CELLS, BLUR_CELLS), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC))


def _describe_failure(checker: str, why: str) -> RowError:
    return RowError("safety_failed", f"the safety checker {checker} failed: {why}", "a score from 0 to 1")
