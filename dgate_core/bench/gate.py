"""Does the gate see what it is there to see? Faults are planted into real runs, and the verdicts come as a table.

Every run and evaluation stays in one folder: the same command again goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dgate_core.bench.gate_plants import (
    Row,
    blacken_pictures,
    copy_run,
    lose_rows,
    read_prompts,
    restore_prompts,
    round_vae,
    shuffle_colours,
)
from dgate_core.config import build_settings
from dgate_core.engine.begin import open_run
from dgate_core.engine.lane import Lane, LaneOptions
from dgate_core.engine.local import finish_run
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import UsageError
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.gate.corpus_bootstrap import CorpusBootstrap
from dgate_core.evaluation.gate.gate import judge_run
from dgate_core.evaluation.gate.rules import GateRules, read_rules
from dgate_core.evaluation.gate.verdict import Verdict, write_verdict
from dgate_core.evaluation.results import EvaluationError, read_evaluation
from dgate_core.manifest.suites import locate_suite
from dgate_core.models.catalog import find_checkpoint
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage

logger = logging.getLogger(__name__)

ALARMS_ALLOWED: Final = 0.05
RERUNS_NEEDED: Final = 40
"""Runs with other seeds below which the share of false alarms is not shown."""
ABSENT_PACKAGE: Final = "lpips"
_EVALUATE_WITHOUT_PACKAGE: Final = f"""
import sys
sys.modules[{ABSENT_PACKAGE!r}] = None
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
metrics = tuple(sys.argv[5].split(","))
evaluate_run(sys.argv[1], EvaluateOptions(sys.argv[2] or None, sys.argv[3], (*metrics, "lpips"), sys.argv[4]))
"""


@dataclass(frozen=True, slots=True)
class GateBenchOptions:
    """What is tried."""

    folder: str
    """Local folder for all runs."""
    model: str = "starter-unet"
    """Catalogue name or folder."""
    rows: int = 500
    """Of the suite, for each run."""
    suite: str = "postcards-1k"
    """Prompts."""
    reference: str = "postcards-1k"
    """For the corpus metrics; empty measures none."""
    metrics: tuple[str, ...] = ("sanity", "sharpness", "clip_score", "caption_choice", "attribute_accuracy", "fd")
    """What every run is evaluated with."""
    rules: str = "regression"
    """Preset or file."""
    half_trained: str = ""
    """A checkpoint of the same recipe, trained half as long; without it that row is not tried."""
    reruns: int = 0
    """Runs with other seeds, which should pass."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    workers: int = 1
    """Processes that make and judge the runs with other seeds."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of RunSettings, for every run: a cheaper schedule or a profile, say."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One planted fault, or none."""

    name: str
    """What was planted."""
    wanted: str
    """`fail`, or `pass` where nothing is wrong."""
    found: str
    """The verdict's decision, or why it was not tried."""
    caught_by: tuple[str, ...] = ()
    """Checks that failed, with their effects."""
    seconds: float = 0.0
    """Of making, evaluating and judging, as far as it was not there already."""


def measure_gate(options: GateBenchOptions, tell: Callable[[str], None]) -> dict[str, Any]:
    """Plants every fault and lets the gate judge.

    Args:
        options: Model, rows, rules.
        tell: Takes progress lines.

    Returns:
        The table, false alarms, what was not tried, and whether everything that was came out as it should.
    """
    lab = GateLab(options, tell)
    trials = []
    for name, wanted, make in lab.list_plants():
        started = time.perf_counter()
        tell(f"{name} …")
        trials.append(replace(_try(lab, name, wanted, make), seconds=time.perf_counter() - started))
        tell(describe_trial(trials[-1]))
    reruns = list(_judge_reruns(lab, tell))
    alarms = sum(decision != "pass" for decision in reruns)
    tried = [trial for trial in trials if trial.found in {"pass", "fail", "undecided"}]
    return {
        "options": asdict(options),
        "trials": [asdict(trial) for trial in trials],
        "reruns": len(reruns),
        "false_alarms": alarms,
        "not_tried": [
            *(trial.name for trial in trials if trial not in tried),
            *(
                []
                if options.reruns >= RERUNS_NEEDED
                else [f"{options.reruns} of {RERUNS_NEEDED} runs with other seeds"]
            ),
        ],
        "as_wanted": all(trial.found == trial.wanted for trial in tried) and alarms <= ALARMS_ALLOWED * options.reruns,
    }


def _judge_reruns(lab: GateLab, tell: Callable[[str], None]) -> Iterator[str]:
    """Decisions on runs with other seeds, each in one of the worker processes."""
    options, spawn = lab.options, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, spawn, _open_lab, (options,)) as pool:
        for number, (decision, reasons) in enumerate(pool.map(_judge_rerun, range(options.reruns))):
            tell(f"rerun {number + 1:3} of {options.reruns}: {decision:10} {', '.join(reasons)}")
            yield decision


_labs: list[GateLab] = []
"""The lab of a worker process: its model and baseline are read once."""


def _open_lab(options: GateBenchOptions) -> None:
    _labs.append(GateLab(options, logger.info))


def _judge_rerun(number: int) -> tuple[str, list[str]]:
    return _labs[0].judge_rerun(number)


def _try(lab: GateLab, name: str, wanted: str, make: Callable[[], Path] | str) -> Trial:
    if isinstance(make, str):
        return Trial(name, wanted, make)
    verdict = lab.judge(make())
    caught = [
        f"{check.metric or check.rule}" + ("" if check.effect is None else f" {check.effect:+.3g}")
        for check in verdict.list_checks("fail")
    ]
    return Trial(name, wanted, verdict.decision, tuple(caught))


def describe_trial(trial: Trial) -> str:
    """One line of the table."""
    return f"{trial.name:34} {trial.found:10} {trial.seconds:7.1f} s  {', '.join(trial.caught_by)}"


class GateLab:
    """Makes runs with and without faults, evaluates and judges them.

    Args:
        options: What is tried.
        tell: Takes progress lines.
    """

    def __init__(self, options: GateBenchOptions, tell: Callable[[str], None]) -> None:
        self.options, self.tell = options, tell
        self.folder = Path(options.folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rules: GateRules = read_rules(options.rules)
        self.rows: list[Row] = read_prompts(locate_suite(options.suite), options.rows)
        if len(self.rows) < options.rows:
            raise UsageError(
                f"{options.rows} rows of {options.suite}", f"at most {len(self.rows)}", "give fewer --rows"
            )
        if options.rows < self.rules.minimum_rows:
            raise UsageError(
                f"{options.rows} rows", f"{self.rules.minimum_rows}, as the rules ask for", "give more --rows"
            )
        self.checkpoint = find_checkpoint(options.model)
        self.draw_corpus = CorpusBootstrap("cpu")
        self.baseline = self.generate("baseline")
        self.evaluate(self.baseline)

    def list_plants(self) -> Iterator[tuple[str, str, Callable[[], Path] | str]]:
        """Name, wanted decision, and how the run is made (or why it is not)."""
        steps = max(self._find_steps() // 2, 1)
        half = self.options.half_trained
        yield "identical", "pass", lambda: copy_run(self.baseline, self.folder / "identical")
        yield "half the steps", "fail", lambda: self.generate("half-steps", num_inference_steps=steps)
        yield "guidance 1", "fail", lambda: self.generate("guidance-1", guidance_scale=1.0)
        yield "colours shuffled in the batch", "fail", self._shuffle_colours
        yield "1 % black pictures", "fail", lambda: self._plant("black", lambda run: blacken_pictures(run, 0.01))
        yield "5 % of the rows missing", "fail", lambda: self._plant("missing", lambda run: lose_rows(run, 0.05))
        yield "VAE rounded to 4 bits", "fail", self._round_vae
        trained = (lambda: self._generate_with("half-trained", half)) if half else "not tried: give --half-trained"
        yield "trained half as long", "fail", trained
        yield "metric dependency absent", "fail", self._drop_dependency

    def judge_rerun(self, number: int) -> tuple[str, list[str]]:
        """Decision on the same prompts with other noise, and the metrics that failed."""
        verdict = self.judge(self.generate(f"rerun-{number:03d}", seed=1 + number))
        return verdict.decision, [check.metric or check.rule for check in verdict.list_checks("fail")]

    def generate(self, name: str, rows: Sequence[Row] = (), **settings: Any) -> Path:
        """Makes a run of the suite's rows, or goes on with it."""
        manifest, out = self.folder / f"{name}.jsonl", self.folder / name
        text = "".join(json.dumps({"id": row["id"], "prompt": row["prompt"]}) + "\n" for row in rows or self.rows)
        manifest.write_text(text, encoding="utf-8")
        common = {"model": self.options.model, "device": self.options.device, **self.options.settings}
        chosen = build_settings(RunSettings, {**common, **settings})
        store = open_run([str(manifest)], str(out), chosen).store
        if not store.read_run()["state"].startswith("completed"):
            Lane(store, LaneOptions(device=self.options.device), StopSignal()).work()
            finish_run(store)
        return out

    def evaluate(self, run: Path) -> None:
        """Scores a run that has no evaluation yet, or one of an older version."""
        try:
            read_evaluation(open_storage(run))
        except EvaluationError:
            options = EvaluateOptions(self.options.reference or None, None, self._list_metrics(), self.options.device)
            evaluate_run(str(run), options)

    def judge(self, run: Path) -> Verdict:
        """Evaluates and judges a run; the verdict stays in its folder."""
        self.evaluate(run)
        storage = open_storage(run)
        verdict = judge_run(storage, open_storage(self.baseline), self.rules, self.draw_corpus)
        write_verdict(storage, verdict)
        return verdict

    def _find_steps(self) -> int:
        """Denoising steps of the baseline."""
        return int(self.options.settings.get("num_inference_steps") or self.checkpoint.spec.num_inference_steps)

    def _list_metrics(self) -> tuple[str, ...]:
        corpus = {"fd", "fid", "kid", "cmmd"}
        kept = [name for name in self.options.metrics if self.options.reference or name.partition(":")[0] not in corpus]
        return tuple(kept)

    def _plant(self, name: str, plant: Callable[[Path], None]) -> Path:
        """A copy of the baseline with a fault; planted once."""
        run = self.folder / name
        if not RunStore(open_storage(run)).exists():
            draft = copy_run(self.baseline, self.folder / f"{name}.draft")
            plant(draft)
            draft.rename(run)
        return run

    def _generate_with(self, name: str, model: str) -> Path:
        """With another checkpoint; a folder has no defaults of its own, so it takes those of the model."""
        spec = self.checkpoint.spec
        return self.generate(
            name,
            model=model,
            num_inference_steps=self._find_steps(),
            guidance_scale=self.options.settings.get("guidance_scale") or spec.guidance_scale,
        )

    def _shuffle_colours(self) -> Path:
        prompts = [row["prompt"] for row in self.rows]
        shuffled = shuffle_colours(prompts)
        rows = [{**row, "prompt": prompt} for row, prompt in zip(self.rows, shuffled, strict=True)]
        run = self.generate("shuffled-colours", rows)
        restore_prompts(run, {row["id"]: row["prompt"] for row in self.rows})
        return run

    def _round_vae(self) -> Path:
        model = round_vae(Path(self.checkpoint.folder), self.folder / "vae-4-bits-model")
        return self._generate_with("vae-4-bits", str(model))

    def _drop_dependency(self) -> Path:
        """Evaluated in a process that cannot import a metric's package."""
        run = copy_run(self.baseline, self.folder / "dependency-absent")
        options, metrics = self.options, ",".join(self._list_metrics())
        arguments = [str(run), options.reference, str(self.baseline), options.device, metrics]
        subprocess.run([sys.executable, "-c", _EVALUATE_WITHOUT_PACKAGE, *arguments], check=True)
        return run
