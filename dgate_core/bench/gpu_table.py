"""The whole table of a GPU, most important case first, each in a process of its own with a time limit of its own.

Every figure is in the folder as soon as it is there: what was cut off keeps what it had, and what was not reached says
so. `python -m dgate_core.bench.gpu_table JOB.json` is one such process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from dgate_core.bench.generation import PLAIN_BEST, PLAIN_ONE, GenerationBenchOptions, measure_generation
from dgate_core.bench.machine import describe_machine, pick_device
from dgate_core.bench.whole_path import WholePathOptions, measure_whole_path
from dgate_core.errors import UsageError
from dgate_core.registry import explain_unknown

TABLE_FILE: Final = "table.json"
SHORTEST_SECONDS: Final = 20.0
"""With less left, no further case begins."""
_SPARE_SECONDS: Final = 15.0
"""Kept of a limit, so that a case ends by itself."""


@dataclass(frozen=True, slots=True)
class Job:
    """One case."""

    name: str
    """Also of its file."""
    options: GenerationBenchOptions | WholePathOptions
    """What is measured."""
    seconds: float
    """Limit of its process."""


TABLE: Final = (
    Job("sdxl", GenerationBenchOptions("sdxl-mlperf", ("fast", "turbo", "fast+fp8")), 280.0),
    Job("sd15", GenerationBenchOptions("sd15", ("fast", "fast+fp8")), 170.0),
    Job("flux-schnell", GenerationBenchOptions("flux-schnell", ("fast", "fast+fp8")), 110.0),
    Job("sd15-whole-path", WholePathOptions("sd15", "fast", rounds=1), 170.0),
    # Random weights decide nothing, so that a fixed pattern stands in for the threshold of the cache.
    Job("flux-dev", GenerationBenchOptions("flux-dev", ("fast+fp8", "turbo+first-block-5-of-8")), 150.0),
    Job("starter-whole-path", WholePathOptions("starter", "fast", batches=16), 90.0),
    Job("starter", GenerationBenchOptions("starter", ("fast", "exact")), 60.0),
)
"""In the order of their weight."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How the table is run."""

    out: str
    """Folder of the figures."""
    budget: float = 540.0
    """Seconds for all."""
    only: tuple[str, ...] = ()
    """Names of jobs; empty for all. Figures of others that the same GPU left in the folder stay in the table."""
    size: str = "full"
    """`full` or `toy`."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""
    cache: str = "runs/inductor-cache"
    """Folder of compiled kernels, shared by all cases; TORCHINDUCTOR_CACHE_DIR goes before it."""


def run_table(options: TableOptions, tell: Callable[[str], object], table: Sequence[Job] = TABLE) -> dict[str, Any]:
    """Runs the jobs one after another until the budget is spent, and writes table.json after each.

    Returns:
        Machine, and a row for every contestant of every job, measured or not.

    Raises:
        UsageError: no case has one of the names.
    """
    for name in options.only:
        if name not in {job.name for job in table}:
            raise explain_unknown("case", name, [job.name for job in table], UsageError)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + options.budget
    ends: dict[str, str] = {}
    chosen = [job for job in table if not options.only or job.name in options.only]
    found: dict[str, Any] = {}
    for job in chosen:
        left = until - time.monotonic()
        ends[job.name] = "the budget was spent" if left < SHORTEST_SECONDS else ""
        if left >= SHORTEST_SECONDS:
            tell(f"== {job.name}, at most {min(job.seconds, left):.0f} s")
            ends[job.name] = run_job(replace(job, seconds=min(job.seconds, left)), options, tell)
        head = describe_machine(pick_device(options.device))
        told = [each for each in table if each in chosen or has_figures(each, folder, options.size, head["machine"])]
        rows = [row for each in told for row in list_rows(each, folder, ends.get(each.name, "not reached"))]
        found = {"benchmark": "gpu-table", **head, "rows": rows}
        write_json(folder / TABLE_FILE, found)
    return found


def has_figures(job: Job, folder: Path, size: str, machine: Mapping[str, Any]) -> bool:
    """Whether an earlier run of this size on such a machine left some."""
    file = folder / f"{job.name}.json"
    if not file.is_file():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    return bool(found["machine"] == machine and found["options"]["size"] == size)


def run_job(job: Job, options: TableOptions, tell: Callable[[str], object]) -> str:
    """One process, with what it prints; why it did not end well, or nothing."""
    folder = Path(options.out)
    (folder / f"{job.name}.json").unlink(missing_ok=True)
    order = {"kind": type(job.options).__name__, "options": asdict(_fit(job, options)), "seconds": job.seconds}
    write_json(folder / f"{job.name}.job", {**order, "out": str(folder / f"{job.name}.json")})
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(Path(options.cache).absolute()), **os.environ}
    command = [sys.executable, "-m", "dgate_core.bench.gpu_table", str(folder / f"{job.name}.job")]
    with (folder / f"{job.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(job.seconds)
        except subprocess.TimeoutExpired:
            tell(f"   cut off after {job.seconds:.0f} s")
        finally:
            # Compilers are processes of the case's own group.
            _end_group(process)
    lines = (folder / f"{job.name}.log").read_text(encoding="utf-8").strip().splitlines()
    tell("\n".join(f"   {line}" for line in lines[-12:]))
    if code is None:
        return f"cut off after {job.seconds:.0f} s"
    return "" if code == 0 else f"failed with exit code {code}: {lines[-1] if lines else 'it said nothing'}"


def _fit(job: Job, options: TableOptions) -> GenerationBenchOptions | WholePathOptions:
    """A job's options at the table's size, on its device; a rehearsal at toy size takes the GPU's profiles anywhere."""
    fitted = replace(job.options, size=options.size, device=options.device)
    if isinstance(fitted, GenerationBenchOptions) and options.size == "toy":
        return replace(fitted, profiles_of="cuda")
    return fitted


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def list_rows(job: Job, folder: Path, end: str) -> Iterator[dict[str, Any]]:
    """A row for every contestant of a job; what has no figure says why."""
    file = folder / f"{job.name}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if isinstance(job.options, WholePathOptions):
        yield describe_whole_path(job, found, end)
        return
    measured, absent = found.get("contestants", {}), found.get("not_run", {})
    for name in (*job.options.profiles, *([PLAIN_ONE, PLAIN_BEST] if job.options.plain else ())):
        if name in measured:
            yield {"job": job.name, "contestant": name, **measured[name], **compare(found, name)}
        else:
            yield {"job": job.name, "contestant": name, "not_run": absent.get(name) or end or "not reached"}


def compare(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A contestant's ratios to plain diffusers, and its target."""
    ratios = found.get("ratios", {})
    return {
        "over_batch_1": ratios.get(f"{name} over {PLAIN_ONE}"),
        "over_best_batch": ratios.get(f"{name} over {PLAIN_BEST}"),
        "target": found.get("targets", {}).get(name),
    }


def describe_whole_path(job: Job, found: Mapping[str, Any], end: str) -> dict[str, Any]:
    """The lane's row."""
    row = {"job": job.name, "contestant": "lane over the bare loop"}
    if "ratio" not in found:
        return {**row, "not_run": end or "not reached"}
    return {**row, "pictures_per_second": found["pictures_per_second"]["lane"], "whole_path": found["ratio"]}


def write_json(file: Path, found: Mapping[str, Any]) -> None:
    """Whole or not at all: a reader may come at any time."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    draft.replace(file)


def main(job_file: str) -> None:
    """One case, in its own process."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    out = Path(job["out"])

    def tell(line: str) -> None:
        print(line, flush=True)

    def keep(found: dict[str, Any]) -> None:
        write_json(out, found)

    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in job["options"].items()
    }
    if job["kind"] == WholePathOptions.__name__:
        measure_whole_path(WholePathOptions(**options), tell, keep)
        return
    measure_generation(GenerationBenchOptions(**{**options, "seconds": job["seconds"] - _SPARE_SECONDS}), tell, keep)


if __name__ == "__main__":
    main(sys.argv[1])
