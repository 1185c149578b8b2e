"""From the metrics that a person asks for to what is measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dgate_core.errors import UsageError
from dgate_core.evaluation.picture_metric import PAIRED_METRICS, PICTURE_METRICS
from dgate_core.evaluation.results import Better, Scope
from dgate_core.registry import explain_unknown

CORPUS_METRICS: Final = ("fid", "kid", "cmmd", "fd", "precision", "recall", "inception_score")
"""What `measure_corpus` knows; those with an extractor of their own choice are written `fd:starter-clip`."""
DEFAULT_PICTURE: Final = ("sanity", "sharpness", "clip_score", "caption_choice", "attribute_accuracy")
DEFAULT_PAIRED: Final = ("lpips", "psnr", "ssim", "clip_similarity")
DEFAULT_CORPUS: Final = ("fid", "kid", "fd:starter-clip", "precision", "recall")
DEFAULT_VARIANTS: Final = {
    "lpips": "alex",
    "fd": "starter-clip",
    "cmmd": "starter-clip",
    "clip_score": "starter-clip",
    "caption_choice": "starter-clip",
    "clip_similarity": "starter-clip",
}
"""What a name without a colon stands for; the result always carries the whole name."""

_DISTANCES: Final = frozenset({"lpips", "fid", "kid", "cmmd", "fd"})
"""Metrics of which less is better."""
_PLUGIN: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class MetricRequest:
    """One metric that was asked for."""

    family: str
    """Name before the colon, or the whole `module:attr` of a plug-in."""
    variant: str = ""
    """What stands after the colon: a backbone, an extractor, a CLIP's folder; empty when there is none."""
    scope: Scope = "picture"
    """What it is a number of."""
    is_plugin: bool = False
    """Whether `family` is a `module:attr`."""

    @property
    def better(self) -> Better:
        """Which direction is good."""
        return "lower" if self.family in _DISTANCES else "higher"

    @property
    def name(self) -> str:
        """Name in the results when it cannot be opened, and so cannot name itself."""
        if not self.variant:
            return self.family
        variant = self.variant.removeprefix("hf://")
        return f"{self.family}:{variant if variant != self.variant else Path(variant).name}"


def list_requests(names: Sequence[str], *, has_reference: bool, has_baseline: bool) -> list[MetricRequest]:
    """The metrics that were asked for, or the default set; each once.

    Raises:
        UsageError: an unknown metric, or a paired one without a baseline, or a corpus metric without a reference.
    """
    if not names:
        names = [
            *DEFAULT_PICTURE,
            *(DEFAULT_PAIRED if has_baseline else ()),
            *(DEFAULT_CORPUS if has_reference else ()),
        ]
    requests = list(dict.fromkeys(parse_request(name) for name in names))
    for request in requests:
        if request.scope == "paired" and not has_baseline:
            raise UsageError(f"{request.name} compares with a baseline, and there is none", "", "give --baseline RUN")
        if request.scope == "corpus" and not has_reference and request.family != "inception_score":
            raise UsageError(
                f"{request.name} compares with a reference set, and there is none", "", "give --reference SET"
            )
    return requests


def parse_request(text: str) -> MetricRequest:
    """One metric by its name: `clip_score`, `lpips:vgg`, `fd:starter-clip`, `clip_score:FOLDER`, `module:attr`.

    Raises:
        UsageError: there is no such metric.
    """
    family, _, variant = text.strip().partition(":")
    scopes: dict[str, Scope] = {
        **dict.fromkeys(PICTURE_METRICS.names(), "picture"),
        **dict.fromkeys(PAIRED_METRICS.names(), "paired"),
        **dict.fromkeys(CORPUS_METRICS, "corpus"),
    }
    if family in scopes:
        return MetricRequest(family, variant or DEFAULT_VARIANTS.get(family, ""), scopes[family])
    if _PLUGIN.fullmatch(text.strip()):
        return MetricRequest(text.strip(), is_plugin=True)
    raise explain_unknown("metric", text.strip(), [*scopes, "module:attr"], UsageError)
