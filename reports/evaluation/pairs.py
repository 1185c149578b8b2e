"""Pictures to look at: where a run became worst, beside the baseline's picture of the same request."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dgate_core.errors import StorageError
from dgate_core.evaluation.results import Evaluation, MetricValue
from dgate_core.runs.pictures import PictureReader
from dgate_core.storage import Storage
from reports.evaluation.numbers import format_number
from reports.evaluation.scores import BASELINE, Comparison, find_defects, find_worst, list_picture_metrics
from reports.thumbnails import make_thumbnail

DEFECTS = "defects"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """A reason to look at pictures, and which."""

    key: str
    """Metric, or `defects`."""
    label: str
    """For people."""
    rows: tuple[int, ...]
    """Rows of the comparison, the worst first."""


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """One metric of one picture."""

    metric: str
    """Its name."""
    candidate: str
    """Written number; empty when there is none."""
    baseline: str
    """Written number; empty when there is none."""
    change: str
    """Written difference; empty when there is none."""
    verdict: str
    """better, worse, or empty."""


@dataclass(frozen=True, slots=True)
class PicturePair:
    """A picture and its baseline's, for the page."""

    id: str
    """Of the manifest's row."""
    prompt: str
    """What was asked for."""
    seed: str
    """Text, since a browser would round it."""
    candidate: str | None
    """Picture as a data address; None when there is none."""
    baseline: str | None
    """Picture as a data address; None when there is none."""
    candidate_note: str
    """Defect, or why there is no picture."""
    baseline_note: str
    """The same for the baseline."""
    scores: tuple[ScoreLine, ...]
    """Every metric that has a number for each picture."""


@dataclass(frozen=True, slots=True)
class WorstPictures:
    """What the page's viewer shows."""

    orders: tuple[Order, ...]
    """Reasons to look; the first is shown first."""
    pairs: dict[int, PicturePair]
    """Row → pictures, for every row of an order."""
    unreadable: int
    """Pictures that are named and could not be read."""


def list_orders(evaluation: Evaluation, comparison: Comparison, first: str, count: int) -> tuple[Order, ...]:
    """Orders that have rows; `first`, a metric's name, leads if there is such an order.

    A metric whose scores are all the same gives no order.
    """
    orders = [order_metric(metric, comparison, count) for metric in list_picture_metrics(evaluation, comparison)]
    if defects := find_defects(comparison, count):
        orders.append(Order(DEFECTS, "Missing and defective pictures", tuple(defects)))
    return tuple(sorted((order for order in orders if order.rows), key=lambda order: order.key != first))


def order_metric(metric: MetricValue, comparison: Comparison, count: int) -> Order:
    """The rows that lost most; where nothing is to be lost, or was, those with the worst scores."""
    changes = comparison.measure_change(metric)
    if changes is not None and metric.scope != "paired" and np.any(changes < 0):
        return Order(
            metric.name, f"{metric.name}, most lost", tuple(find_worst(np.where(changes < 0, changes, np.nan), count))
        )
    scores = comparison.read_scores(metric.name)
    if scores is None or len(np.unique(scores[np.isfinite(scores)])) < 2:
        return Order(metric.name, "", ())
    oriented = scores if metric.better == "higher" else -scores
    return Order(metric.name, f"{metric.name}, worst", tuple(find_worst(oriented, count)))


def read_pairs(
    orders: Iterable[Order], evaluation: Evaluation, comparison: Comparison, runs: PictureSource
) -> WorstPictures:
    """Reads the pictures of all orders, each once."""
    orders = tuple(orders)
    wanted = sorted({row for order in orders for row in order.rows})
    metrics = list_picture_metrics(evaluation, comparison)
    pairs = {}
    for row in wanted:
        found = comparison.rows.slice(row, 1).to_pylist()[0]
        pairs[row] = PicturePair(
            id=found["id"] or "",
            prompt=found["prompt"] or "",
            seed=str(found["seed"]),
            candidate=runs.read(runs.candidate, found["path"]),
            baseline=runs.read(runs.baseline, found.get("path" + BASELINE)),
            candidate_note=found["defect"] or "",
            baseline_note=found.get("defect" + BASELINE) or "",
            scores=tuple(compare_row(metric, found) for metric in metrics),
        )
    return WorstPictures(orders, pairs, runs.unreadable)


def compare_row(metric: MetricValue, row: dict[str, Any]) -> ScoreLine:
    """One metric of one row, written."""
    now, before = row.get(metric.name), row.get(metric.name + BASELINE)
    change, verdict = "", ""
    if now is not None and before is not None:
        difference = now - before
        change = format_number(
            difference, None if abs(difference) in (0.0, 1.0) else abs(now) / 100 or None, signed=True
        )
        better = difference > 0 if metric.better == "higher" else difference < 0
        verdict = "" if difference == 0 else "better" if better else "worse"
    return ScoreLine(metric.name, _write(now), _write(before), change, verdict)


class PictureSource:
    """Reads pictures of two runs as data addresses, small enough for a page.

    Args:
        candidate: The run.
        baseline: Its baseline; None when there is none.
        size: Longest side in pixels; smaller pictures keep their size.
    """

    def __init__(self, candidate: Storage, baseline: Storage | None, size: int) -> None:
        self.candidate = PictureReader(candidate)
        self.baseline = PictureReader(baseline) if baseline is not None else None
        self.unreadable = 0
        self._size = size

    def read(self, reader: PictureReader | None, path: str | None) -> str | None:
        """One picture; None when there is none or it cannot be read."""
        if reader is None or not path:
            return None
        try:
            data = make_thumbnail(reader.read(path), self._size)
        except (OSError, ValueError, SyntaxError, StorageError, Image.DecompressionBombError) as error:
            logger.warning("%s cannot be shown: %s", path, error)
            self.unreadable += 1
            return None
        return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")


def _write(value: float | None) -> str:
    return "" if value is None else format_number(value)
