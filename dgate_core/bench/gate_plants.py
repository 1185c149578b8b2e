"""Faults planted into runs and checkpoints, for the gate to find."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.postcards.scene import COLOURS
from dgate_core.runs.layout import RESULTS_FILE

SHUFFLED_TOGETHER: Final = 8
"""Rows whose colours change places: a batch."""
VAE_BITS: Final = 4
_COLOUR: Final = re.compile(rf"\b({'|'.join(COLOURS)})\b")

Row = dict[str, Any]


def shuffle_colours(prompts: Sequence[str], seed: int = 0) -> list[str]:
    """Prompts whose colour words have changed places within each batch: what mixed-up embeddings do."""
    rng, shuffled = np.random.default_rng(seed), []
    for start in range(0, len(prompts), SHUFFLED_TOGETHER):
        batch = prompts[start : start + SHUFFLED_TOGETHER]
        colours = rng.permutation([word for prompt in batch for word in _COLOUR.findall(prompt)]).tolist()
        shuffled += [_COLOUR.sub(lambda _: str(colours.pop()), prompt) for prompt in batch]  # noqa: B023 - used at once
    return shuffled


def copy_run(source: Path, target: Path) -> Path:
    """A run's folder without what an evaluation has left in it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("evaluation"), dirs_exist_ok=True)
    return target


def change_results(run: Path, change: Callable[[list[Row]], None]) -> None:
    """Rewrites results.parquet after its rows were changed in place."""
    table = pq.read_table(run / RESULTS_FILE)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), run / RESULTS_FILE)


def restore_prompts(run: Path, prompts: dict[str, str]) -> None:
    """Lets the results say the prompt that was meant, by id; the pictures stay those of another one."""

    def restore(rows: list[Row]) -> None:
        for row in rows:
            row["prompt"] = prompts[row["id"]]

    change_results(run, restore)


def blacken_pictures(run: Path, share: float, seed: int = 0) -> None:
    """Makes this share of the pictures black, at least one; the results know their bytes and nothing else."""
    from PIL import Image

    def blacken(rows: list[Row]) -> None:
        for row in _choose(rows, share, seed):
            sink = io.BytesIO()
            Image.new("RGB", (row["width"], row["height"])).save(sink, "PNG")
            (run / row["path"]).write_bytes(sink.getvalue())
            row["sha256"] = hashlib.sha256(sink.getvalue()).hexdigest()

    change_results(run, blacken)


def lose_rows(run: Path, share: float, seed: int = 0) -> None:
    """Takes this share of the rows out of the results, as a lost shard would."""

    def lose(rows: list[Row]) -> None:
        lost = {id(row) for row in _choose(rows, share, seed)}
        rows[:] = [row for row in rows if id(row) not in lost]

    change_results(run, lose)


def round_vae(checkpoint: Path, target: Path, bits: int = VAE_BITS) -> Path:
    """A copy of a diffusers folder whose VAE has weights of so many bits, one scale per tensor."""
    from safetensors.numpy import load_file, save_file

    if target.exists():
        return target
    draft = target.with_name(f"{target.name}.draft")
    shutil.copytree(checkpoint, draft, dirs_exist_ok=True)
    path = next((draft / "vae").glob("*.safetensors"))
    levels = 2 ** (bits - 1) - 1
    weights = {}
    for name, values in load_file(path).items():
        step = max(float(np.abs(values).max()) / levels, 1e-12)
        rounded = np.round(values.astype(np.float32) / step) * step
        weights[name] = rounded.astype(values.dtype) if values.ndim > 1 else values
    save_file(weights, path, metadata={"format": "pt"})
    return draft.rename(target)


def read_prompts(manifest: Path, rows: int) -> list[Row]:
    """The first rows of a suite."""
    with manifest.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(rows), strict=False)]


def _choose(rows: list[Row], share: float, seed: int) -> list[Row]:
    count = max(round(share * len(rows)), 1)
    return [rows[index] for index in np.random.default_rng(seed).choice(len(rows), count, replace=False)]
