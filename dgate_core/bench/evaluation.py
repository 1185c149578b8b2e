"""How fast pictures are measured, against pytorch-fid's command, torch-fidelity and torchmetrics on the same files.

Every contestant is a process of its own that gets two folders, imports what it needs, decodes every file and prints its
numbers; its time is the whole process's. Figures of agreement come with them.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from dgate_core.engine.describe import list_versions
from dgate_core.errors import MissingExtraError
from dgate_core.evaluation.results import EvaluationError
from dgate_core.evaluation.weights.store import check_weights
from dgate_core.postcards import render_scene, sample_scene, scene_to_caption

WEIGHTS: Final = ("inception", "lpips-alex")
CONTESTANTS: Final = (
    "D-Gate, FID",
    "D-Gate, FID again",
    "D-Gate, FID with TensorFlow's resize",
    "pytorch-fid, FID",
    "torch-fidelity, FID",
    "torchmetrics, FID",
    "D-Gate, FID + CLIP + LPIPS",
    "torchmetrics, FID + CLIP + LPIPS",
)
_RATIOS: Final = (
    ("D-Gate, FID", "pytorch-fid, FID", 1.0),
    ("D-Gate, FID", "torch-fidelity, FID", 1.0),
    ("D-Gate, FID", "torchmetrics, FID", 1.0),
    ("D-Gate, FID + CLIP + LPIPS", "torchmetrics, FID + CLIP + LPIPS", 1.0),
    ("D-Gate, FID again", "D-Gate, FID", 20.0),
)
_AGREEMENTS: Final = (
    ("D-Gate, FID", "pytorch-fid, FID", "fid"),
    ("D-Gate, FID with TensorFlow's resize", "torch-fidelity, FID", "fid"),
    ("D-Gate, FID + CLIP + LPIPS", "torchmetrics, FID + CLIP + LPIPS", "clip_score"),
    ("D-Gate, FID + CLIP + LPIPS", "torchmetrics, FID + CLIP + LPIPS", "lpips"),
)


@dataclass(frozen=True, slots=True)
class EvaluationBenchOptions:
    """What is measured."""

    pictures: int = 1000
    """Of each of the two sets."""
    size: int = 512
    """Pixels of a side."""
    rounds: int = 1
    """The figures are medians over these."""
    threads: int = 2
    """Threads of every contestant's arithmetic."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a contestant gets."""

    ours: str
    """Folder of the pictures that are measured."""
    theirs: str
    """Folder of the reference, which is also the partner of each picture for LPIPS."""
    captions: tuple[str, ...]
    """Of `ours`, in the order of the files' names."""
    cache: str
    """Folder for D-Gate's cached features."""


def measure_evaluation(options: EvaluationBenchOptions, tell: Callable[[str], object]) -> dict[str, Any]:
    """Runs every contestant on the same files.

    Args:
        options: Pictures, rounds, threads.
        tell: Takes progress lines.

    Raises:
        MissingWeightsError: weights are not fetched.
        MissingExtraError: a contestant is not installed.
        EvaluationError: a contestant failed.
    """
    from dgate_core.evaluation.features.torch_home import write_torch_home

    for name in WEIGHTS:
        check_weights(name)
    with tempfile.TemporaryDirectory(prefix="dgate-bench-") as name:
        folder = Path(name)
        write_torch_home(folder / "home", WEIGHTS)
        tell(f"rendering 2 x {options.pictures} postcards of {options.size} px")
        captions = write_postcards(folder / "ours", options, seed=1)
        write_postcards(folder / "theirs", options, seed=2)
        rounds = []
        for number in range(options.rounds):
            job = Job(str(folder / "ours"), str(folder / "theirs"), captions, str(folder / f"cache-{number}"))
            (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
            rounds.append({each: run_contestant(each, folder, options.threads, tell) for each in CONTESTANTS})
    return summarise(rounds, options)


def write_postcards(folder: Path, options: EvaluationBenchOptions, seed: int) -> tuple[str, ...]:
    """Writes PNG files and returns their captions."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(seed)
    captions = []
    for number in range(options.pictures):
        scene = sample_scene(rng)
        Image.fromarray(render_scene(scene, options.size)).save(folder / f"{number:06}.png")
        captions.append(scene_to_caption(scene, rng))
    return tuple(captions)


def run_contestant(name: str, folder: Path, threads: int, tell: Callable[[str], object]) -> dict[str, Any]:
    """Figures of one contestant: seconds of its process, its numbers, and its stages where it tells them."""
    environment = {**os.environ, "TORCH_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    if name.startswith("pytorch-fid"):
        command = ["-m", "pytorch_fid", str(folder / "ours"), str(folder / "theirs"), "--device", "cpu"]
    else:
        command = ["-m", "dgate_core.bench.evaluation_contestants", name, str(folder / "job.json")]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise explain_failure(name, done.stderr)
    found = {"seconds": seconds, **_read_numbers(done.stdout)}
    tell(f"{name}: {seconds:.1f} s, {found['values']}")
    return found


def explain_failure(name: str, stderr: str) -> Exception:
    """A contestant that is not installed, or the last line of what it said."""
    if missing := re.search(r"No module named '?([\w-]+)'?", stderr):
        return MissingExtraError(missing.group(1), "evaluation")
    return EvaluationError(f"{name} failed: {stderr.strip().rsplit(chr(10), 1)[-1]}", "a contestant that ends well")


def _read_numbers(stdout: str) -> dict[str, Any]:
    """Contestants of ours print JSON last; pytorch-fid prints `FID:  12.3`."""
    last = stdout.strip().rsplit("\n", 1)[-1]
    if last.startswith("FID:"):
        return {"values": {"fid": float(last.removeprefix("FID:"))}, "stages": {}}
    found: dict[str, Any] = json.loads(last)
    return found


def summarise(rounds: list[dict[str, Any]], options: EvaluationBenchOptions) -> dict[str, Any]:
    """Medians over the rounds, ratios beside their bars, and how far the numbers are apart."""
    seconds = {name: statistics.median(each[name]["seconds"] for each in rounds) for name in CONTESTANTS}
    ratios = {
        f"{ours} over {theirs}": {"median": seconds[theirs] / seconds[ours], "bar": bar}
        for ours, theirs, bar in _RATIOS
    }
    last = rounds[-1]
    differences = {
        f"{number}: {ours} - {theirs}": last[ours]["values"][number] - last[theirs]["values"][number]
        for ours, theirs, number in _AGREEMENTS
    }
    return {
        "options": asdict(options),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": list_versions(),
        "seconds": seconds,
        "pictures_per_second": {name: 2 * options.pictures / value for name, value in seconds.items()},
        "ratios": ratios,
        "differences": differences,
        "values": {name: last[name]["values"] for name in CONTESTANTS},
        "stages": {name: last[name]["stages"] for name in CONTESTANTS if last[name]["stages"]},
    }


def list_stages(found: Mapping[str, Any]) -> list[str]:
    """Lines of the stages' seconds for the terminal."""
    return [
        f"{name}: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items())
        for name, stages in found["stages"].items()
    ]
