"""GenEval (Ghosh et al. 2023): `00000/metadata.jsonl`, what a detector shall find, and `00000/samples/00000.png`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from dgate_core.evaluation.exporters.export import ExportError, ExportOptions, Layout, Placement, Sample
from dgate_core.postcards import CaptionError, Scene, parse_caption

_COLUMNS: Final = ("tag", "include", "exclude")


def place_samples(samples: Sequence[Sample], options: ExportOptions) -> Placement:  # noqa: ARG001 - as of every layout
    """One folder a prompt, numbered as the prompts are in the run.

    Raises:
        ExportError: a prompt says nowhere what must be seen: GenEval would count all of its pictures as right.
    """
    pictures: dict[str, Sample] = {}
    texts: dict[str, str] = {}
    for position, group in groupby(samples, lambda sample: sample.position):
        of_prompt = list(group)
        texts[f"{position:05d}/metadata.jsonl"] = json.dumps(describe_prompt(of_prompt[0]), ensure_ascii=False)
        pictures |= {f"{position:05d}/samples/{number:05d}.png": sample for number, sample in enumerate(of_prompt)}
    return Placement(pictures, texts)


def describe_prompt(sample: Sample) -> dict[str, Any]:
    """GenEval's metadata: the manifest's columns `tag`, `include` and `exclude`, else what a postcard caption tells."""
    own = {name: drop_nulls(read_json(sample.columns.get(name))) for name in _COLUMNS}
    if own["include"]:
        found = {name: value for name, value in own.items() if value}
        return {"tag": "", **found, "prompt": sample.prompt}
    try:
        return {**describe_scene(parse_caption(sample.prompt)), "prompt": sample.prompt}
    except CaptionError as error:
        raise ExportError(
            f"the row {sample.id!r} does not say what must be seen in {sample.prompt!r}",
            "a column `include`, such as [{'class': 'dog', 'count': 1, 'color': 'red'}], and a column `tag`",
            "generate from GenEval's own evaluation_metadata.jsonl, whose columns travel through the run",
        ) from error


def describe_scene(scene: Scene) -> dict[str, Any]:
    """What GenEval's metadata says of a postcard: every kind with its count and colour."""
    include = [{"class": thing.kind, "count": thing.count, "color": thing.colour} for thing in scene.objects]
    tag = (
        "counting"
        if any(thing.count > 1 for thing in scene.objects)
        else "color_attr"
        if len(include) > 1
        else "colors"
    )
    return {"tag": tag, "include": include}


def read_json(value: Any) -> Any:
    """A column's value; columns whose rows have no type in common travel as JSON text."""
    return json.loads(value) if isinstance(value, str) and value[:1] in {"[", "{"} else value


def drop_nulls(value: Any) -> Any:
    """Without the nulls that a table adds: to GenEval the mere key `color` means that a colour is asked for."""
    if isinstance(value, dict):
        return {key: drop_nulls(inner) for key, inner in value.items() if inner is not None}
    return [drop_nulls(inner) for inner in value] if isinstance(value, list) else value


LAYOUT: Final = Layout(
    "geneval",
    columns=_COLUMNS,
    place=place_samples,
    tolerates_missing=True,
    command="python evaluation/evaluate_images.py {out} --outfile results.jsonl --model-path DETECTOR",
)
