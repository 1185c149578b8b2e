"""Aesthetic and preference models of other people, by `module:attr`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from dgate_core.evaluation.picture_metric import MetricCard, Tools
from dgate_core.evaluation.pictures import Chunk
from dgate_core.evaluation.results import EvaluationError


class PictureModel(Protocol):
    """What a plug-in is: a function, or a class made with `device=` if it takes that, else without arguments.

    It may carry the attributes `better` ("higher" or "lower"), `extractor`, `weights_sha256` and `resize`.
    """

    def __call__(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Sequence[float]:
        """One number per picture uint8 (height, width, 3); NaN where there is none."""
        ...


class PluginMetric:
    """A picture model as a metric; its name is its address."""

    extractors = ()

    def __init__(self, address: str, model: Any) -> None:
        self._model = model
        self.card = MetricCard(
            address,
            better=getattr(model, "better", "higher"),
            extractor=getattr(model, "extractor", address),
            weights_sha256=getattr(model, "weights_sha256", ""),
            resize=getattr(model, "resize", ""),
        )

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        there = {index: each.pixels for index, each in enumerate(chunk.pictures) if each.is_there}
        scores = np.full(len(chunk), np.nan)
        if there:
            prompts = [chunk.pictures[index].expected.prompt or "" for index in there]
            given = np.asarray(self._model(list(there.values()), prompts), dtype=np.float64)
            if given.shape != (len(there),):
                raise EvaluationError(
                    f"{self.card.name} gave numbers of shape {given.shape} for {len(there)} pictures",
                    "one number per picture",
                    "see PictureModel in dgate_core/evaluation/plugin_metric.py",
                )
            scores[list(there)] = given
        return scores


def open_plugin(address: str, tools: Tools) -> PluginMetric:
    """Imports `module:attr`.

    Raises:
        EvaluationError: it cannot be imported or called.
    """
    module, _, attribute = address.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EvaluationError(
            f"the metric {address} cannot be imported: {error}",
            "module:attr of a Python module that can be imported here",
            "install it, or put its folder on PYTHONPATH",
        ) from error
    model = _make_model(found, tools.device) if inspect.isclass(found) else found
    if not callable(model):
        raise EvaluationError(f"the metric {address} is a {type(model).__name__}", "a function of (pictures, prompts)")
    return PluginMetric(address, model)


def _make_model(kind: Any, device: str) -> Any:
    return kind(device=device) if "device" in inspect.signature(kind).parameters else kind()
