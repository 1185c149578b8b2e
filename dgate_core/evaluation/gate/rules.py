"""What a candidate must fulfil: rules as people write them in YAML, and the presets that ship in datasets/gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from dgate_core.config import build_settings, read_config
from dgate_core.data_files import find_data_file, list_data_files
from dgate_core.errors import ConfigError
from dgate_core.registry import explain_unknown

PRESETS_FOLDER = "gates"
ANY_METRIC = "*"

Test = Literal["worse", "within", "value", "report"]
Direction = Literal["higher", "lower", "both"]
BoundKind = Literal["absolute", "relative", "window"]


LARGEST: Final = 1e12
"""No bound is wider: one that nothing can break is a mistake."""
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "minimum_rows": (2, math.inf),
    "significance": (1e-6, 0.5),
    "confidence": (0.5, 0.9999),
    "resamples": (200, 1e6),
    "seed": (0, 2**63),
    "missing_rows": (0, 0.5),
    "more_defects": (0, 0.5),
}
"""Least and greatest that a setting of the rules may be."""


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError for a number outside, or one that is none."""
    if not low <= value <= high:
        raise ConfigError(f"{name}={value}", f"{name} from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class Bound:
    """How far is too far."""

    kind: BoundKind
    """`absolute`: of candidate less baseline; `relative`: of that divided by the baseline; `window`: of the value."""
    low: float
    """Least allowed; `-high` for absolute and relative bounds."""
    high: float
    """Greatest allowed."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked of one metric."""

    metric: str
    """Name; `clip_score:*` is clip_score with any extractor; `*` is every other metric that the baseline has."""
    test: Test = "worse"
    """`worse` fails on harm beyond noise and bound; `within` passes only when the whole interval lies inside the bound;
    `value` holds the number itself against the bound, as benchmarks do; `report` only shows it."""
    direction: Direction | None = None
    """Which direction is good, or `both` sides of the bound; None is the metric's own."""
    bound: Bound = Bound("absolute", 0.0, 0.0)
    """With `worse` the least harm worth a fail, else what is allowed."""
    minimum_rows: int | None = None
    """Fewer rows fail; None is the minimum of the rules."""
    resolution: float | None = None
    """With `worse`: undecided when noise could hide a harm of this size (unit of the bound)."""
    prompts: Literal["any", "postcards"] = "any"
    """`postcards`: asked only where all prompts, or as many as the rule needs rows, are captions of postcards."""
    extractor: tuple[str, ...] = ()
    """Feature extractors that the number may be of; empty takes any, as long as both runs have the same."""
    reference: str | None = None
    """Reference set that the number must be against; None takes any, as long as both runs have the same."""

    def __post_init__(self) -> None:
        if self.minimum_rows is not None:
            check_range("minimum_rows", self.minimum_rows, 2, math.inf)
        if self.resolution is not None:
            check_range("resolution", self.resolution, 1e-9, LARGEST)

    @property
    def needs_baseline(self) -> bool:
        """Whether it compares two runs."""
        return self.bound.kind != "window" and self.test != "report"


@dataclass(frozen=True, slots=True)
class GateRules:
    """All that is asked of a candidate."""

    rules: tuple[Rule, ...] = ()
    """About metrics, in the order of the verdict."""
    name: str = ""
    """Of the preset, or the file's path."""
    description: str = ""
    """One sentence for people."""
    pairing: Literal["noise", "prompt"] = "noise"
    """What must be equal in paired rows: prompt and seed, or the prompt alone."""
    minimum_rows: int = 100
    """Pairs (or pictures) that a check needs."""
    significance: float = 0.01
    """Chance that any of the `worse` rules fails a candidate that is as good as the baseline."""
    confidence: float = 0.95
    """Level of the intervals of `within` and `report`."""
    resamples: int = 10_000
    """Of the bootstrap over rows."""
    seed: int = 0
    """Of the bootstrap."""
    missing_rows: float = 0.0
    """Share of the baseline's pictures that the candidate may lack, 0 to 1."""
    more_defects: float = 0.0
    """Share of pictures that may be black, constant, unreadable … beyond those of the baseline, 0 to 1."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            check_range(name, getattr(self, name), low, high)

    @property
    def needs_baseline(self) -> bool:
        """Whether any rule compares two runs."""
        return any(rule.needs_baseline for rule in self.rules)


def list_presets() -> list[str]:
    """Names of the rules that ship."""
    return [path.stem for path in list_data_files(PRESETS_FOLDER, ".yaml")]


def read_rules(name: str) -> GateRules:
    """A preset by its name, or a YAML file by its path.

    Raises:
        ConfigError: no such preset or file, an unknown key, or an impossible value.
    """
    if name in list_presets():
        return parse_rules({"name": name, **read_config(str(find_data_file(f"{PRESETS_FOLDER}/{name}.yaml")))})
    if not Path(name).suffix and not Path(name).exists():
        raise explain_unknown("rules", name, [*list_presets(), "a YAML file"], ConfigError)
    return parse_rules({"name": name, **read_config(name)})


def parse_rules(written: Mapping[str, Any]) -> GateRules:
    """Rules from what YAML holds; raises ConfigError, see `read_rules`."""
    entries = written.get("rules")
    if not isinstance(entries, list) or not entries or not all(isinstance(each, dict) for each in entries):
        raise ConfigError(f"rules: {entries}", "rules: [{metric: …}, …], at least one", "see datasets/gates")
    settings = {key: value for key, value in written.items() if key != "rules"}
    return replace(build_settings(GateRules, settings), rules=tuple(map(_parse_rule, entries)))


def _parse_rule(entry: dict[str, Any]) -> Rule:
    if "metric" not in entry:
        raise ConfigError(f"a rule without a metric: {entry}", "metric: NAME")
    settings = {key: value for key, value in entry.items() if key != "bound"}
    rule = replace(build_settings(Rule, settings), bound=_parse_bound(entry))
    if rule.test in {"within", "value"} and "bound" not in entry:
        raise ConfigError(f"the rule about {rule.metric} has no bound", f"a bound, for the test {rule.test!r}")
    if rule.test == "worse" and rule.bound.kind == "window":
        raise ConfigError(f"the rule about {rule.metric} has a window", "the test `within` or `value` with a window")
    return rule


def _parse_bound(entry: dict[str, Any]) -> Bound:
    written = entry.get("bound", {"absolute": 0.0})
    if not isinstance(written, dict) or len(written) != 1:
        raise ConfigError(f"bound: {written}", "one of absolute: X, relative: X, window: [LOW, HIGH]")
    kind, value = next(iter(written.items()))
    if kind == "window" and isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        low, high = map(float, value)
        if low <= high and (math.isfinite(low) or math.isfinite(high)):
            return Bound("window", low, high)
    # Half of the baseline is far beyond any harm that a gate lets pass: who writes 2 means 2 %.
    most = {"absolute": LARGEST, "relative": 0.5}.get(kind, -1.0)
    if _is_number(value) and 0 <= value <= most:
        return Bound(kind, -float(value), float(value))
    raise ConfigError(
        f"bound: {written}",
        "absolute: a number of 0 or more, relative: a share from 0 to 0.5 (0.02 is 2 %), or window: [LOW, HIGH]",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
