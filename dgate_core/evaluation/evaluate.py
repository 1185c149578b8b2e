"""From a run's folder to its numbers: every picture is read once, scored by every metric, and forgotten."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from dgate_core.evaluation.chunk_features import ChunkFeatures
from dgate_core.evaluation.expected import pair_expected, read_expected
from dgate_core.evaluation.metric_request import list_requests
from dgate_core.evaluation.metrics.sanity import EXTENT, note_defects
from dgate_core.evaluation.picture_metric import Tools
from dgate_core.evaluation.pictures import Chunk, ChunkReader, IsKnown, Pair, know_nothing
from dgate_core.evaluation.references import open_reference
from dgate_core.evaluation.results import Evaluation, MetricValue, hash_pictures, write_evaluation
from dgate_core.evaluation.run_corpus import CorpusScorer
from dgate_core.evaluation.scorer import PictureScorer
from dgate_core.evaluation.scores import ScoresWriter
from dgate_core.runs.store import RunStore
from dgate_core.storage import Storage, open_storage

Report = Callable[[str], None]
"""Takes one line of progress."""


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What is measured, and with what."""

    reference: str | None = None
    """Reference set: a card's name, or the address of pictures or statistics."""
    baseline: str | None = None
    """Run to compare with row by row."""
    metrics: tuple[str, ...] = ()
    """Names as in `parse_request`; none is the default set."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps` or `auto`."""
    use_cache: bool = True
    """Whether features are taken from, and put into, the cache on this machine."""


def ignore_report(line: str) -> None:
    """For callers that show nothing."""


def evaluate_run(run_uri: str, options: EvaluateOptions | None = None, report: Report = ignore_report) -> Evaluation:
    """Measures a finished run and writes evaluation.json and scores.parquet into its folder.

    Args:
        run_uri: The run's folder, a path or s3://.
        options: Reference, baseline, metrics, device.
        report: Shown a line of progress now and then.

    Raises:
        RunError: there is no run, or no baseline.
        EvaluationError: a run has no results, or the reference set cannot be had.
        UsageError: an unknown metric, or one that lacks its baseline or reference.
    """
    options = options or EvaluateOptions()
    run = open_storage(run_uri)
    evaluation = _Session(run, options, report).measure()
    write_evaluation(run, evaluation)
    return evaluation


class _Session:
    """One evaluation: opens everything, streams the pictures, sums up."""

    def __init__(self, run: Storage, options: EvaluateOptions, report: Report) -> None:
        from dgate_core.engine.lane import choose_device

        self.run, self.options, self.report = run, options, report
        self.record = RunStore(run).read_run()
        self.baseline = self._open_baseline()
        requests = list_requests(
            options.metrics, has_reference=options.reference is not None, has_baseline=options.baseline is not None
        )
        device = choose_device(options.device)
        self.tools = Tools(device, ChunkFeatures(device, use_cache=options.use_cache))
        self.pictures = PictureScorer([each for each in requests if each.scope != "corpus"], self.tools)
        corpus = [each for each in requests if each.scope == "corpus"]
        self.reference = open_reference(options.reference) if options.reference is not None else None
        self.corpus = CorpusScorer(corpus, self.tools, self.reference)
        self.defects: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.done = self.changed = 0

    def measure(self) -> Evaluation:
        """Everything, in the order of the pictures."""
        started = time.perf_counter()
        with ScoresWriter(self.pictures.columns) as writer:
            for chunk in ChunkReader(self.run, self.baseline, self._choose_known()).read(self._read_pairs()):
                note_defects(chunk, self.tools.features)
                writer.write(chunk, self.pictures.score(chunk))
                self.corpus.collect(chunk)
                self._note(chunk, started)
            self.tools.features.close()
            scores_sha256 = writer.finish(self.run)
        means = self.pictures.sum_up(self.baseline.uri if self.baseline else "")
        metrics = self._warn_of_changes([*means, *self.corpus.sum_up(self.done, self.report)])
        self._sum_seconds(time.perf_counter() - started)
        return self._describe(metrics, scores_sha256)

    def _open_baseline(self) -> Storage | None:
        if self.options.baseline is None:
            return None
        baseline = open_storage(self.options.baseline)
        RunStore(baseline).read_run()
        return baseline

    def _hash_baseline(self) -> str:
        """What the baseline's results name, so that a gate can tell whether they are the same now."""
        if self.baseline is None:
            return ""
        return hash_pictures((*row.key, row.sha256) for row in read_expected(self.baseline))

    def _choose_known(self) -> IsKnown:
        """Pictures of which every feature is cached are not decoded, unless a metric looks at the pixels themselves."""
        if self.pictures.looks_at_pixels:
            return know_nothing
        return self.tools.features.find_known([EXTENT, *self.pictures.extractors, *self.corpus.extractors])

    def _read_pairs(self) -> Iterator[Pair]:
        expected = read_expected(self.run)
        if self.baseline is None:
            return ((row, None) for row in expected)
        return pair_expected(expected, read_expected(self.baseline))

    def _note(self, chunk: Chunk, started: float) -> None:
        """Counts, and tells of the progress now and then."""
        self.done += len(chunk)
        self.defects.update(each.defect for each in chunk.pictures if each.defect)
        self.changed += sum(each.sha256 not in {"", each.expected.sha256} for each in chunk.pictures)
        for each in (*chunk.pictures, *(partner for partner in chunk.partners if partner)):
            self.seconds["read"] += each.seconds[0]
            self.seconds["decode"] += each.seconds[1]
        total = self.record["counts"].get("images", self.done)
        rate = self.done / (time.perf_counter() - started)
        self.report(f"{self.done:,} of {total:,} pictures, {rate:.1f} pictures/s")

    def _sum_seconds(self, total: float) -> None:
        """Reading and decoding are the threads' own time, beside the rest."""
        for extractor in {each.name: each for each in (*self.pictures.extractors, *self.corpus.extractors)}.values():
            for stage, seconds in extractor.seconds.items():
                self.seconds[stage] += seconds
        networks = self.seconds["resize"] + self.seconds["network"]
        self.seconds["scores"] = max(self.pictures.seconds + self.corpus.seconds - networks, 0.0)
        self.seconds["statistics"], self.seconds["total"] = self.corpus.statistics_seconds, total

    def _warn_of_changes(self, metrics: list[MetricValue]) -> list[MetricValue]:
        """Files that are not the bytes that the run recorded are measured as they are, and told."""
        if not self.changed:
            return metrics
        note = f"{self.changed:,} files are not the bytes that the run recorded: they were changed afterwards"
        return [replace(each, warnings=(*each.warnings, note)) if each.error is None else each for each in metrics]

    def _describe(self, metrics: list[MetricValue], scores_sha256: str) -> Evaluation:
        return Evaluation(
            run=self.run.uri,
            fingerprint=self.record["fingerprint"],
            metrics=tuple(metrics),
            n_expected=self.done,
            defects=dict(self.defects),
            changed_files=self.changed,
            scores_sha256=scores_sha256,
            by_attribute=self.pictures.tally_attributes(),
            reference=self.reference.label if self.reference else "",
            baseline=self.baseline.uri if self.baseline else "",
            baseline_pictures=self._hash_baseline(),
            seconds={name: round(seconds, 3) for name, seconds in self.seconds.items()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
