"""Names of corpus metrics: plain with the field's own extractor, `family:extractor` with any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dgate_core.evaluation.features.extractor import INCEPTION
from dgate_core.evaluation.results import Better, EvaluationError
from dgate_core.registry import explain_unknown

FIELD_EXTRACTORS: Final[Mapping[str, str]] = {
    "fid": INCEPTION,
    "kid": INCEPTION,
    "precision": INCEPTION,
    "recall": INCEPTION,
    "inception_score": INCEPTION,
    "cmmd": "openai/clip-vit-large-patch14-336",
}
"""The extractor that a metric's plain name stands for; with any other, the name says which."""
BETTER: Final[Mapping[str, Better]] = {
    "fid": "lower",
    "fd": "lower",
    "kid": "lower",
    "cmmd": "lower",
    "precision": "higher",
    "recall": "higher",
    "inception_score": "higher",
}


def parse_family(name: str) -> str:
    """The part of a corpus metric's name before its extractor; raises EvaluationError when there is no such metric."""
    family = name.partition(":")[0]
    if family not in BETTER:
        raise explain_unknown("corpus metric", name, BETTER, EvaluationError)
    return family


def name_metric(family: str, extractor: str) -> str:
    """The full name: plain only with the field's own extractor; FD with FID's Inception is `fid`."""
    if family in ("fid", "fd"):
        return "fid" if extractor == INCEPTION else f"fd:{extractor}"
    return family if FIELD_EXTRACTORS[family] == extractor else f"{family}:{extractor}"
