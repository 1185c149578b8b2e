"""Checks every row before anything is made; whole columns at a time, cell by cell only for what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dgate_core.errors import ConfigError
from dgate_core.manifest.columns import KNOWN_COLUMNS, RANGE_CODES
from dgate_core.manifest.item import MAX_IMAGES, MAX_SEED, MAX_STEPS, ModelLimits
from dgate_core.manifest.lora import list_adapters
from dgate_core.manifest.problems import show_value
from dgate_core.manifest.resolve import ResolvedRows, RowResolver
from dgate_core.manifest.rows import RowBatch
from dgate_core.manifest.values import Issue

MAX_PROMPT_CHARACTERS = 20_000
MAX_GUIDANCE = 100.0
_NAME_CODES = {"scheduler": "unknown_scheduler", "style_preset": "unknown_style"}

Mask = npt.NDArray[np.bool_]


class RowChecker:
    """Resolves and checks batches of rows.

    Args:
        resolver: Fills in what rows leave unsaid.
    """

    def __init__(self, resolver: RowResolver) -> None:
        self.resolver = resolver
        self._defaults_checked = False

    def check(self, batch: RowBatch) -> ResolvedRows:
        """Resolve a batch and report everything that is wrong with its rows.

        Raises:
            ConfigError: the run's defaults are wrong for its default model.
            ModelError: the run's default model is not known.
        """
        if not self._defaults_checked and batch.columns["model"].null_count:
            self._defaults_checked = True
            self._check_defaults()
        rows = self.resolver.resolve(batch)
        _check_prompts(batch)
        _check_ranges(batch, rows)
        for code, limits in enumerate(rows.limits):
            if limits.model:
                _check_model(batch, rows, limits, rows.models == code)
        return rows

    def _check_defaults(self) -> None:
        """Try the defaults on a row that says nothing but a prompt: better one error now than one for each row."""
        columns = {name: pa.nulls(1, kind.arrow_type) for name, kind in KNOWN_COLUMNS.items()}
        row = RowBatch("defaults", 0, np.ones(1, np.int64), columns | {"prompt": pa.array(["a prompt"])}, [])
        self.check(row)
        if row.problems:
            wrong = [f"defaults.{problem.column} is {problem.got}" for problem in row.problems[0]]
            expected = "\n    ".join(f"{problem.column}: {problem.expected}" for problem in row.problems[0])
            raise ConfigError("; ".join(wrong), expected, "mend the config, --set or --model")


def _check_prompts(batch: RowBatch) -> None:
    # A row whose prompt could not be read has been told so already.
    told = {index for index, found in batch.problems.items() if any(p.column in ("", "prompt", "body") for p in found)}
    prompts = batch.columns["prompt"]
    missing = pc.equal(pc.utf8_trim_whitespace(prompts), "").fill_null(True)
    for index in _list_true(missing):
        if index not in told:
            got = show_value(prompts[index].as_py() or None)
            batch.report([Issue(index, "prompt", "missing_prompt", "nothing" if got == "None" else got, "a text")])
    for name in ("prompt", "negative_prompt"):
        lengths = pc.utf8_length(batch.columns[name]).fill_null(0)
        for index in _list_true(pc.greater(lengths, MAX_PROMPT_CHARACTERS)):
            got, expected = f"{lengths[index].as_py():,} characters", f"at most {MAX_PROMPT_CHARACTERS:,}"
            batch.report([Issue(index, name, "prompt_too_long", got, expected)])


def _check_ranges(batch: RowBatch, rows: ResolvedRows) -> None:
    images, steps, guidance = (rows.numbers[name] for name in ("num_images", "num_inference_steps", "guidance_scale"))
    seeds, known = batch.columns["seed"].fill_null(0).to_numpy(), rows.select_known()
    bad_images = (images < 1) | (images > MAX_IMAGES)
    # Image k has seed + k, so the last one must fit as well.
    last = MAX_SEED - np.where(bad_images, 0, images - 1)
    _report(batch, "num_images", bad_images, images, f"a whole number from 1 to {MAX_IMAGES:,}")
    _report(batch, "seed", (seeds < 0) | (seeds > last), seeds, f"0 to {MAX_SEED}, also for the row's last image")
    _report(batch, "num_inference_steps", known & ((steps < 1) | (steps > MAX_STEPS)), steps, f"1 to {MAX_STEPS:,}")
    fine = np.isfinite(guidance) & (guidance >= 0) & (guidance <= MAX_GUIDANCE)
    _report(batch, "guidance_scale", ~fine, guidance, f"a number from 0 to {MAX_GUIDANCE:g}")


def _check_model(batch: RowBatch, rows: ResolvedRows, limits: ModelLimits, of_model: Mask) -> None:
    for name in ("width", "height"):
        sizes = rows.numbers[name]
        fits = (sizes >= limits.size_min) & (sizes <= limits.size_max) & (sizes % limits.size_multiple == 0)
        for index in np.flatnonzero(of_model & ~fits).tolist():
            _report(batch, name, [index], sizes, _explain_size(limits, int(sizes[index])))
    _check_names(batch, rows.texts["scheduler"], of_model, limits.schedulers, "scheduler")
    _check_names(batch, rows.texts["style_preset"], of_model, limits.styles, "style_preset")
    _check_adapters(batch, rows.texts["lora"], of_model, limits.adapters)


def _explain_size(limits: ModelLimits, size: int) -> str:
    multiple = limits.size_multiple
    low, high = -(-limits.size_min // multiple), limits.size_max // multiple
    nearest = min(max(round(size / multiple), low), high) * multiple
    return f"a multiple of {multiple} from {limits.size_min} to {limits.size_max} for {limits.model}, such as {nearest}"


def _check_names(batch: RowBatch, names: pa.Array, of_model: Mask, known: frozenset[str], column: str) -> None:
    """Report the rows of a mask whose name is not among the known ones."""
    for name, indices in _find_rows(names, of_model, lambda text: text not in known):
        issue = Issue(0, column, _NAME_CODES[column], show_value(name), _explain_names(name, known))
        batch.report(issue._replace(row=index) for index in indices)


def _check_adapters(batch: RowBatch, loras: pa.Array, of_model: Mask, known: frozenset[str]) -> None:
    for lora, indices in _find_rows(loras, of_model, lambda text: not known.issuperset(list_adapters(text))):
        for name in sorted(set(list_adapters(lora)) - known):
            issue = Issue(0, "lora", "unknown_adapter", show_value(name), _explain_names(name, known))
            batch.report(issue._replace(row=index) for index in indices)


def _find_rows(texts: pa.Array, of_model: Mask, is_bad: Callable[[str], bool]) -> Iterator[tuple[str, list[int]]]:
    """Each distinct bad text of the masked rows, with its rows."""
    encoded = texts.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy()
    for code, text in enumerate(encoded.dictionary.to_pylist()):
        if is_bad(text) and (indices := np.flatnonzero(of_model & (codes == code)).tolist()):
            yield text, indices


def _explain_names(name: str, known: frozenset[str]) -> str:
    if not known:
        return "none, for the model has none"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = sorted(known)
    return f"one of {', '.join(listed[:12])}{', …' if len(listed) > 12 else ''}{hint}"


def _report(batch: RowBatch, column: str, bad: Mask | list[int], values: npt.NDArray[Any], expected: str) -> None:
    indices = bad if isinstance(bad, list) else np.flatnonzero(bad).tolist()
    for index in indices:
        unsaid = "" if batch.columns[column][index].is_valid else " (unsaid, from the defaults)"
        got = f"{values[index].item()}{unsaid}"
        batch.report([Issue(index, column, RANGE_CODES[column], got, expected)])


def _list_true(mask: pa.Array) -> list[int]:
    return list(pc.indices_nonzero(mask).to_pylist())
