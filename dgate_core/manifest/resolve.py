"""Fills in what rows leave unsaid: from the run's defaults, then from the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dgate_core.errors import ConfigError, ModelError
from dgate_core.manifest.item import ModelLimits, ModelLookup
from dgate_core.manifest.lora import NO_LORA, parse_lora
from dgate_core.manifest.problems import show_value
from dgate_core.manifest.rows import RowBatch
from dgate_core.manifest.values import Issue
from dgate_core.runs.spec import RunSpec

NUMBER_COLUMNS = ("num_images", "width", "height", "num_inference_steps", "guidance_scale")
TEXT_COLUMNS = ("negative_prompt", "scheduler", "lora", "style_preset")
_NO_LIMITS = ModelLimits("", "", frozenset(), 0, 0, 1, 0, 0, 0, 0.0, "", 0.0)


@dataclass(slots=True)
class ResolvedRows:
    """The rows of a batch with nothing left unsaid but id and seed; what is wrong with them stands in the batch."""

    limits: list[ModelLimits]
    """One for each distinct model name of the batch; of a model that is not known, one without content."""
    models: npt.NDArray[np.int64]
    """Index into limits, for each row."""
    numbers: dict[str, npt.NDArray[Any]]
    """NUMBER_COLUMNS: guidance_scale float64, the others int64."""
    texts: dict[str, pa.Array]
    """TEXT_COLUMNS: lora is canonical JSON, style_preset null for none, the others never null."""

    def select_model(self, field: str) -> npt.NDArray[Any]:
        """A field of its model's limits, for each row."""
        return np.array([getattr(limits, field) for limits in self.limits])[self.models]

    def select_known(self) -> npt.NDArray[np.bool_]:
        """Whether its model is known, for each row."""
        return np.array([limits is not _NO_LIMITS for limits in self.limits], np.bool_)[self.models]


class RowResolver:
    """Resolves batches of rows, and remembers the models that it met.

    Args:
        spec: Gives the defaults.
        lookup: Finds a model's limits by name.
    """

    def __init__(self, spec: RunSpec, lookup: ModelLookup) -> None:
        self.defaults = spec.defaults
        self.lookup = lookup
        self._models: dict[str, ModelLimits | ModelError] = {}
        self._text_defaults = {
            "negative_prompt": spec.defaults.negative_prompt,
            "scheduler": spec.defaults.scheduler,
            "lora": _parse_default_lora(spec.defaults.lora),
            "style_preset": spec.defaults.style_preset,
        }

    def resolve(self, batch: RowBatch) -> ResolvedRows:
        """Fill in a batch, and report the rows whose model is not known.

        Raises:
            ModelError: the run's default model is not known.
        """
        if batch.columns["model"].null_count and isinstance(unknown := self._find(self.defaults.model), ModelError):
            raise unknown
        names = batch.columns["model"].fill_null(self.defaults.model).dictionary_encode()
        codes = names.indices.to_numpy().astype(np.int64)
        found = [self._find(name) for name in names.dictionary.to_pylist()]
        self._report_unknown(batch, found, codes)
        rows = ResolvedRows([_NO_LIMITS if isinstance(item, ModelError) else item for item in found], codes, {}, {})
        rows.numbers = {name: self._fill_numbers(batch, rows, name) for name in NUMBER_COLUMNS}
        rows.texts = {name: self._fill_texts(batch, rows, name) for name in TEXT_COLUMNS}
        return rows

    def _find(self, name: str) -> ModelLimits | ModelError:
        if name not in self._models:
            try:
                self._models[name] = self.lookup(name)
            except ModelError as error:
                self._models[name] = error
        return self._models[name]

    def _report_unknown(
        self, batch: RowBatch, found: list[ModelLimits | ModelError], codes: npt.NDArray[np.int64]
    ) -> None:
        for code, item in enumerate(found):
            if isinstance(item, ModelError):
                expected = (
                    "; ".join(part for part in (item.expected, item.next_step) if part) or "a model that is known"
                )
                for index in np.flatnonzero(codes == code).tolist():
                    name = show_value(batch.columns["model"][index].as_py())
                    batch.report([Issue(index, "model", "unknown_model", name, expected)])

    def _fill_numbers(self, batch: RowBatch, rows: ResolvedRows, name: str) -> npt.NDArray[Any]:
        said, default = batch.columns[name], getattr(self.defaults, name)
        if not said.null_count:
            return said.to_numpy()
        fallback = rows.select_model(name) if default is None else default
        filled = said.fill_null(0).to_numpy()
        return np.where(said.is_null().to_numpy(zero_copy_only=False), fallback, filled).astype(filled.dtype)

    def _fill_texts(self, batch: RowBatch, rows: ResolvedRows, name: str) -> pa.Array:
        said, default = batch.columns[name], self._text_defaults[name]
        if name == "scheduler" and default is None:
            return pc.coalesce(said, pa.array(rows.select_model(name), pa.string()))
        filled = said if default is None else said.fill_null(default)
        return pc.if_else(pc.equal(filled, ""), None, filled) if name == "style_preset" else filled


def _parse_default_lora(text: str | None) -> str:
    try:
        return parse_lora(text) if text else NO_LORA
    except ValueError as error:
        raise ConfigError(f"defaults.lora is {text!r}", str(error), "mend it in the config or in --set") from error
