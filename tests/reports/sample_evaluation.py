"""Evaluated runs for the tests of their report: real postcards, scores drawn at random around plausible values."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dgate_core.evaluation.gate.verdict import Check, Verdict, write_verdict
from dgate_core.evaluation.results import SCORE_KEYS, SCORES_FILE, Evaluation, MetricValue, write_evaluation
from dgate_core.postcards.caption import scene_to_caption
from dgate_core.postcards.render import render_scene
from dgate_core.postcards.scene import COLOURS, OBJECTS
from dgate_core.postcards.split import sample_scene
from dgate_core.storage import Storage, open_storage
from tests.reports.sample_run import BARE_RUN, NASTY_PROMPT

ROWS = 96
BLACK_ROW, MISSING_ROW, NASTY_ROW = 5, 11, 3
CLIP = {"extractor": "starter-clip", "weights_sha256": "3f" * 32, "resize": "bicubic, antialiased, 64"}
INCEPTION = {"extractor": "inception-v3-fid", "weights_sha256": "6d" * 32, "resize": "bilinear, antialiased, 299"}
SCORES = ("clip_score", "caption_choice", "lpips:alex")
INCEPTION_ERROR = "the file of inception-v3-fid has no final layer; next: give another file of weights"


@cache
def draw_scene(number: int, colour_shift: int, size: int) -> tuple[str, bytes]:
    """Caption of a scene, and a PNG of it with the first thing's colour moved on by `colour_shift`."""
    scene = sample_scene(np.random.default_rng(number))
    caption = scene_to_caption(scene)
    first = scene.objects[0]
    moved = replace(first, colour=COLOURS[(COLOURS.index(first.colour) + colour_shift) % len(COLOURS)])
    out = io.BytesIO()
    picture = render_scene(replace(scene, objects=(moved, *scene.objects[1:])), size)
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return caption, out.getvalue()


def write_pictures(run: Storage, *, is_candidate: bool, size: int = 96) -> list[dict[str, Any]]:
    """Pictures of `ROWS` scenes; the candidate has one in six in a wrong colour, one black, one missing."""
    rows = []
    for number in range(ROWS):
        wrong = is_candidate and number % 6 == 1
        caption, picture = draw_scene(number, 4 if wrong else 0, size)
        row: dict[str, Any] = {"row_id": f"{number:032x}", "id": f"row-{number:04d}", "image_index": 0, "status": "ok"}
        row |= {"prompt": NASTY_PROMPT if number == NASTY_ROW else caption, "seed": 1000 + number, "defect": None}
        row |= {"path": f"images/{number:04d}.png", "sha256": f"{number:064x}", "wrong": wrong}
        if is_candidate and number == BLACK_ROW:
            picture, row["defect"] = make_black(size), "black"
        if is_candidate and number == MISSING_ROW:
            row |= {"status": "error", "path": None, "defect": "missing"}
        else:
            run.write_bytes(row["path"], picture, durable=False)
        rows.append(row)
    return rows


def make_black(size: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size)).save(out, "PNG")
    return out.getvalue()


def write_scores(run: Storage, rows: list[dict[str, Any]], seed: int, *, is_candidate: bool) -> None:
    """scores.parquet; a wrong colour costs CLIP score, and the choice of the caption now and then."""
    chance = np.random.default_rng(7)
    other = np.random.default_rng(seed)
    names = SCORES if is_candidate else SCORES[:2]
    for row in rows:
        base = 29.0 + 1.6 * chance.standard_normal()
        wrong = row.pop("wrong")
        lost = 4.5 + other.random() if wrong else 0.0
        measured = row["defect"] != "missing"
        right = float(other.random() < (0.35 if wrong else 0.97))
        values = (base - lost + 0.25 * other.standard_normal(), right, 0.04 + 0.02 * other.random() + lost / 16)
        row.update(zip(names, values, strict=False) if measured else dict.fromkeys(names))
    schema = pa.schema([*SCORE_KEYS, *(pa.field(name, pa.float64()) for name in names)])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)
    run.write_bytes(SCORES_FILE, out.getvalue())


def make_metrics(shift: float, *, is_candidate: bool) -> tuple[MetricValue, ...]:
    """Five numbers, and one that could not be had."""
    clip, choice, distance, n = 28.9 - shift, 0.97 - shift / 9, 8.2 + shift * 3, ROWS - is_candidate
    warning = f"FID of {n} pictures is biased: below 2,048 KID and FD lead"
    metrics = [
        MetricValue("clip_score", "picture", "higher", clip, (clip - 0.41, clip + 0.4), n, ROWS, **CLIP),
        MetricValue("caption_choice", "picture", "higher", choice, (choice - 0.04, choice + 0.02), n, ROWS, **CLIP),
        MetricValue("fd:starter-clip", "corpus", "lower", distance, (distance - 0.6, distance + 0.7), n, ROWS, **CLIP),
        MetricValue("fid", "corpus", "lower", 61.4 + shift * 8, None, n, ROWS, warnings=(warning,), **INCEPTION),
        MetricValue("inception_score", "corpus", "higher", None, n_expected=ROWS, error=INCEPTION_ERROR),
    ]
    if is_candidate:
        paired = MetricValue("lpips:alex", "paired", "lower", 0.102, (0.081, 0.124), n, ROWS, "lpips-alex", "a1" * 32)
        metrics.insert(2, paired)
    return tuple(metrics)


def make_attributes(lost: float) -> dict[str, dict[str, dict[str, float]]]:
    """Shares by colour, object and count."""
    chance = np.random.default_rng(3)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for attribute, values in {"colour": COLOURS, "object": OBJECTS, "count": ("1", "2", "3")}.items():
        cost = lost if attribute == "colour" else lost / 6
        n = ROWS // len(values)
        shares = {value: min(1.0, max(0.0, 0.95 - cost * chance.random() * 2)) for value in values}
        table[attribute] = {value: {"n": n, "right": round(n * share)} for value, share in shares.items()}
    return table


def write_record(run: Storage, manifest: str = "5e" * 32, **changes: Any) -> None:
    """run.json of a run that is done."""
    record = {
        **BARE_RUN,
        "name": run.uri.rpartition("/")[2],
        "state": "completed",
        "spec": {"defaults": {"model": "starter-unet", "guidance_scale": 3.0}, "precision": "float32"},
        "versions": {"torch": "2.15.0", "diffusers": "0.42.1"},
        "manifest": {"files": ["postcards-smoke.jsonl"], "rows": ROWS, "sha256": manifest},
        "started_at": "2031-05-04T12:00:00+00:00",
        **changes,
    }
    run.write_bytes("run.json", json.dumps(record).encode(), durable=False)


def make_evaluation(run: Storage, shift: float, created: str, *, is_candidate: bool) -> Evaluation:
    return Evaluation(
        run=run.uri,
        fingerprint="v1-7a1e5c0d",
        metrics=make_metrics(shift, is_candidate=is_candidate),
        n_expected=ROWS,
        defects={"black": 1, "missing": 1} if is_candidate else {},
        by_attribute=make_attributes(0.25 if is_candidate else 0.03),
        seconds={"read": 0.4, "decode": 1.1, "resize": 0.6, "network": 14.2, "statistics": 2.4, "total": 18.9},
        created=created,
    )


def make_verdict(candidate: str, baseline: str) -> Verdict:
    n, lost = ROWS - 1, "1 picture is black and 1 is missing; the baseline has none"
    below, both = "the whole interval lies below what is allowed", "the interval holds both what would pass and fail"
    clip = (28.92, 28.11, -0.81, (-1.17, -0.46), 0.99, (-0.1, None), 0.0004, n, ROWS)
    choice = (0.97, 0.93, -0.04, (-0.09, 0.01), 0.99, (-0.05, None), 0.08, n, ROWS)
    distance = (8.2, 8.5, 0.03, (-0.08, 0.13), 0.99, (None, 0.2), 0.4, n, ROWS)
    checks = (
        Check("coverage", "", "pass", "every row of the baseline is there", n_used=ROWS, n_expected=ROWS),
        Check("defects", "", "fail", lost, n_used=ROWS, n_expected=ROWS),
        Check("clip_score", "clip_score", "fail", below, "higher", *clip),
        Check("caption_choice", "caption_choice", "undecided", both, "higher", *choice),
        Check("fd:starter-clip", "fd:starter-clip", "pass", "no change beyond noise", "lower", *distance),
        Check("fid", "fid", "pass", "its noise is not known", "lower", 61.4, 67.9, 6.5, reported_only=True),
    )
    return Verdict("fail", checks, candidate, baseline, "regression", "2031-05-04T12:40:00+00:00")


def write_evaluated_runs(folder: Path, earlier: int = 6) -> tuple[Storage, Storage]:
    """A candidate that became worse, its baseline, and earlier evaluations beside them."""
    candidate, baseline = open_storage(folder / "candidate"), open_storage(folder / "night-12")
    for run, is_candidate in ((candidate, True), (baseline, False)):
        write_record(run)
        rows = write_pictures(run, is_candidate=is_candidate)
        write_scores(run, rows, 1 + is_candidate, is_candidate=is_candidate)
    write_evaluation(baseline, make_evaluation(baseline, 0.0, "2031-05-03T12:30:00+00:00", is_candidate=False))
    found = make_evaluation(candidate, 0.81, "2031-05-04T12:30:00+00:00", is_candidate=True)
    write_evaluation(candidate, replace(found, baseline=baseline.uri))
    write_verdict(candidate, make_verdict(candidate.uri, baseline.uri))
    for number in range(earlier):
        run = open_storage(folder / f"night-{number:02d}")
        write_record(run)
        shift = 0.2 * np.sin(number) - 0.03 * number
        write_evaluation(
            run, make_evaluation(run, float(shift), f"2031-04-{20 + number}T12:30:00+00:00", is_candidate=False)
        )
    return candidate, baseline
