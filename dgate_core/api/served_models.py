"""The models that the server serves, under which names, and what each name stands for now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from dgate_core.api.errors import ApiError, join_lines
from dgate_core.errors import DgateError
from dgate_core.manifest.item import ModelLimits
from dgate_core.models.limits import find_limits
from dgate_core.registry import explain_unknown

logger = logging.getLogger(__name__)


class ServedModels:
    """Names to models; a name that moves is followed once its new model is warm.

    A request is resolved when it comes: what waits while a name turns is made with the model that it was promised.

    Args:
        names: `NAME`, or `NAME=SOURCE` to serve something under another name; the first is the default.
        warm: Loads a model (by the name in its limits) beside those that serve; returns when it is warm.

    Raises:
        ModelError: a name is not known, or its model is not whole.
    """

    def __init__(self, names: Sequence[str], warm: Callable[[str], None]) -> None:
        self._sources = dict(map(split_name, names))
        self._limits: dict[str, ModelLimits] = {name: find_limits(source) for name, source in self._sources.items()}
        self._warm = warm
        self._since = dict.fromkeys(self._sources, int(time.time()))

    @property
    def default(self) -> str:
        """The name that a request without one means."""
        return next(iter(self._limits))

    def find(self, name: str) -> ModelLimits:
        """What a name stands for now; no other name is looked up anywhere.

        Raises:
            ApiError: 404, the name is not served.
        """
        if name not in self._limits:
            error = explain_unknown("model", name[:100], self._limits, DgateError)
            raise ApiError(404, join_lines(error), "model_not_found", "model")
        return self._limits[name]

    def find_source(self, name: str) -> str:
        """What a served name was given for: a catalogue name, an alias or a path."""
        return self._sources[name]

    def is_served(self, name: str) -> bool:
        """Whether a request may name it."""
        return name in self._limits

    def describe(self, name: str) -> dict[str, Any]:
        """As `GET /v1/models/{name}` shows it; raises ApiError 404."""
        limits = self.find(name)
        return {
            "id": name,
            "object": "model",
            "created": self._since[name],
            "owned_by": "d-gate",
            "weights_sha256": limits.weights_hash,
            "size": f"{limits.width}x{limits.height}",
            "size_range": [limits.size_min, limits.size_max],
            "size_multiple": limits.size_multiple,
            "num_inference_steps": limits.num_inference_steps,
            "guidance_scale": limits.guidance_scale,
            "schedulers": sorted(limits.schedulers),
            "adapters": sorted(limits.adapters),
            "styles": sorted(limits.styles),
        }

    def list_all(self) -> list[dict[str, Any]]:
        """Every served model, the default first."""
        return [self.describe(name) for name in self._limits]

    def warm_all(self) -> None:
        """Loads what is served, the default last so that it stays if not all have room."""
        for name in reversed(list(self._limits)):
            self._warm(self._limits[name].model)

    def follow(self) -> list[str]:
        """Looks where the names lead now; loads what is new and then turns to it.

        Returns:
            The names that turned. One that leads to nothing usable keeps what it has, with a warning.
        """
        turned = []
        for name, former in list(self._limits.items()):
            try:
                found = find_limits(self._sources[name])
                if (found.model, found.weights_hash) == (former.model, former.weights_hash):
                    continue
                self._warm(found.model)
            except DgateError as error:
                logger.warning("%s stays with %s: %s", name, former.model, join_lines(error))
                continue
            self._limits[name], self._since[name] = found, int(time.time())
            logger.info("%s is %s now, weights %s", name, found.model, found.weights_hash[:12])
            turned.append(name)
        return turned


def split_name(text: str) -> tuple[str, str]:
    """`boats=/models/boats-7` is served as boats; a name alone stands for itself."""
    name, equals, source = text.partition("=")
    return (name, source) if equals else (text, text)
