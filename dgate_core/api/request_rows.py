"""A request's body becomes rows of a plan, by the code that reads manifests: the same parameters, the same pixels."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgate_core.api.errors import ApiError
from dgate_core.api.served_models import ServedModels
from dgate_core.manifest.batch_lines import IMAGES_URL, request_to_row
from dgate_core.manifest.check import MAX_PROMPT_CHARACTERS, RowChecker
from dgate_core.manifest.columns import KNOWN_COLUMNS
from dgate_core.manifest.expand import ImageExpander
from dgate_core.manifest.groups import BatchGroups
from dgate_core.manifest.identity import RowSettings, make_row_id
from dgate_core.manifest.item import MAX_SEED, BatchKey
from dgate_core.manifest.problems import Problem
from dgate_core.manifest.resolve import RowResolver
from dgate_core.manifest.rows import RowBatch
from dgate_core.manifest.values import read_values
from dgate_core.runs.record import PLAN_SCHEMA
from dgate_core.runs.spec import RunSpec

SEED_BITS = 32
SHAPES_KEPT = 256
_PARAMS = {"width": "size", "height": "size", "num_images": "n", "": "body"}
"""Columns of a manifest by the names that a request uses."""

PlanRows = tuple[list[dict[str, Any]], BatchKey]


class RowMaker:
    """Checks requests and makes their rows.

    Args:
        spec: Gives the defaults of what a request leaves unsaid.
        models: Those that may be asked for.
        steps_limit: Most denoising steps.
    """

    def __init__(self, spec: RunSpec, models: ServedModels, steps_limit: int) -> None:
        self._spec, self._models, self._steps_limit = spec, models, steps_limit
        self._known: dict[str, PlanRows] = {}
        """Rows of requests that differ in prompt and seed only: what else they say is checked once."""

    def make_rows(self, request_id: str, body: Mapping[str, Any]) -> PlanRows:
        """Rows of PLAN_SCHEMA, one per picture, and the batch key that they share.

        Args:
            request_id: Becomes the rows' id.
            body: As /v1/images/generations takes it; without a seed it gets a random one of 32 bits.

        Raises:
            ApiError: 404 for a model that is not served, 400 with everything else that is wrong.
        """
        body = {**body, "model": body.get("model") or self._models.default}
        if body.get("seed") is None:
            body["seed"] = secrets.randbits(SEED_BITS)
        weights = self._models.find(body["model"]).weights_hash
        shape = repr((weights, sorted((name, each) for name, each in body.items() if name not in {"prompt", "seed"})))
        known = self._known.get(shape)
        if known is None or not _is_plain(body, len(known[0])):
            known = self._known[shape] = self._check(request_id, body)
            while len(self._known) > SHAPES_KEPT:
                del self._known[next(iter(self._known))]
        rows, key = known
        return [_fill_row(row, request_id, body, weights) for row in rows], key

    def _check(self, request_id: str, body: Mapping[str, Any]) -> PlanRows:
        """The same as a plan does, whole."""
        try:
            batch = _body_to_batch(request_id, body)
        except UnicodeEncodeError as error:
            raise ApiError(400, f"a text is no Unicode: {error.reason}", "bad_utf8") from error
        resolved = RowChecker(RowResolver(self._spec, self._models.find)).check(batch)
        if batch.problems:
            raise _refuse(batch.problems[0])
        groups = BatchGroups(self._spec.image)
        images = ImageExpander(self._spec.seed, groups, PLAN_SCHEMA).expand(batch, resolved)
        rows, key = [row for part in images for row in part.table.to_pylist()], groups.keys[0]
        if key.num_inference_steps > self._steps_limit:
            message = f"num_inference_steps: got {key.num_inference_steps}, expected at most {self._steps_limit} here"
            raise ApiError(400, message, "bad_steps", "num_inference_steps")
        return rows, key


def identify_row(row: Mapping[str, Any], weights_hash: str) -> str:
    """The row_id with these weights."""
    names = [name for name in RowSettings.__slots__ if name != "weights_hash"]
    return make_row_id(RowSettings(weights_hash, **{name: row[name] for name in names}), row["seed"], row["prompt"])


def _is_plain(body: Mapping[str, Any], images: int) -> bool:
    """Whether prompt and seed need no closer look."""
    prompt, seed = body["prompt"], body["seed"]
    return (
        isinstance(prompt, str)
        and bool(prompt.strip())
        and len(prompt) <= MAX_PROMPT_CHARACTERS
        and prompt.encode(errors="ignore").decode() == prompt
        and isinstance(seed, int)
        and 0 <= seed <= MAX_SEED - images
    )


def _fill_row(row: dict[str, Any], request_id: str, body: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """A checked row with another prompt and seed."""
    filled = {**row, "id": request_id, "prompt": body["prompt"], "seed": body["seed"] + row["image_index"]}
    return {**filled, "row_id": identify_row(filled, weights)}


def _body_to_batch(request_id: str, body: Mapping[str, Any]) -> RowBatch:
    request = {"custom_id": request_id, "method": "POST", "url": IMAGES_URL, "body": body}
    row, issues = request_to_row(0, request)
    cells = {name: read_values(name, [row.get(name)]) for name in KNOWN_COLUMNS}
    columns = {name: array for name, (array, _) in cells.items()}
    batch = RowBatch("request", 0, np.ones(1, np.int64), columns, [])
    batch.report(issues)
    for _, found in cells.values():
        batch.report(found)
    return batch


def _refuse(problems: list[Problem]) -> ApiError:
    """One error that says all that is wrong; its code and parameter are the first one's."""
    first = problems[0]
    said = [f"{_PARAMS.get(each.column, each.column)}: got {each.got}, expected {each.expected}" for each in problems]
    return ApiError(400, "; ".join(said), first.code, _PARAMS.get(first.column, first.column))
