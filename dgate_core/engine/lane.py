"""A lane: one long-lived worker on one device. It loads a model once and claims shards until none are left."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dgate_core.engine.describe import RowDescriber
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.engine.levers import hold_to_levers
from dgate_core.engine.observer import open_observer
from dgate_core.engine.reports import LaneReport, Reporter
from dgate_core.engine.stopping import StopSignal
from dgate_core.engine.warm_models import open_pool
from dgate_core.engine.writer import BatchWriter, Target
from dgate_core.errors import ObjectNotFoundError, RunMismatchError, UsageError
from dgate_core.manifest.plan_files import read_shard_index, read_shard_rows
from dgate_core.manifest.shards import ShardInfo
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.memory_plan import plan_memory
from dgate_core.models.profiles import EXACT, find_profile
from dgate_core.models.spec import FAMILIES
from dgate_core.runs import layout
from dgate_core.runs.claims import LEASE_SECONDS, Claim, identify_holder, take_claim
from dgate_core.runs.recovery import keep_whole_parts
from dgate_core.runs.spec import RunSpec, spec_from_dict
from dgate_core.runs.store import RunStore
from dgate_core.safety.guard import open_guard

if TYPE_CHECKING:
    from dgate_core.models.families.contract import LoadedModel

logger = logging.getLogger(__name__)

SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 15.0
"""Between two looks at shards that are in other lanes' hands."""


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How a lane runs; nothing here determines pixels."""

    name: str = "lane-0"
    """Stands in the results; unique in a run."""
    number: int = 0
    """Lanes begin at different shards, so that they seldom meet."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps` or `auto`."""
    threads: int | None = None
    """CPU threads of torch; None leaves its own choice."""
    lease_seconds: float = LEASE_SECONDS
    """How long a claim lasts without a sign of life."""
    attempt: int | None = None
    """Only the shards of one attempt: a retry makes its rows and nothing else; None works on all shards."""
    generate: GenerateOptions = field(default_factory=GenerateOptions)
    """Batch sizes."""
    model_bytes: int | None = None
    """Memory for the weights of warm models; None is a share of the device's."""
    score: tuple[str, ...] = ()
    """Metrics to prepare from the pictures in hand; empty for none."""


class Lane:
    """Works through a run's shards.

    Args:
        store: The run, planned.
        options: Name, device, batch sizes.
        stop: Asked between batches.
        generator: With a model that is warm already; None loads one when the first shard is claimed.
    """

    def __init__(
        self, store: RunStore, options: LaneOptions, stop: StopSignal, generator: Generator | None = None
    ) -> None:
        self.store, self.options, self.stop = store, options, stop
        self.run_record = store.read_run()
        self.spec: RunSpec = spec_from_dict(self.run_record["spec"])
        self.device = choose_device(options.device)
        self.report = LaneReport(options.name, device=self.device)
        self.reporter = Reporter(store.storage, self.report)
        self._started = time.monotonic()
        self._generator = generator
        self._model = generator.model.checkpoint.spec.name if generator is not None else ""
        self.pool = open_pool(self._open_generator, self.device, self.spec.precision, options.model_bytes)
        self._lease = ExitStack()
        self._next_models: dict[int, str] = {}
        self._guard = open_guard(self.spec.safety)
        self._observer = open_observer(options.score, self.device) if options.score else None

    def work(self) -> LaneReport:
        """Claims shards until all are committed or the stop is set.

        Raises:
            RunMismatchError: the model's files are not those that the run was planned with.
            StorageError: storage does not answer, or is full.
        """
        self._limit_threads()
        self.reporter.tell(now=True)
        try:
            self.report.state = "finished" if self._work_through(self._list_shards()) else "stopped"
        except BaseException as error:
            self.report.state, self.report.error = "failed", str(error)
            raise
        finally:
            if self._observer is not None:
                self._observer.close(at_once=self.report.state != "finished")
            self._lease.close()
            self.report.shard = None
            self.reporter.tell(now=True)
        return self.report

    def _list_shards(self) -> list[ShardInfo]:
        shards = read_shard_index(self.store.storage)
        wanted = [shard for shard in shards if self.options.attempt in {None, shard.attempt}]
        ordered = _rotate(wanted, self.options.number)
        for shard, after in pairwise(ordered):
            if after.batch_key.model != shard.batch_key.model:
                self._next_models[shard.shard] = after.batch_key.model
        return ordered

    def _work_through(self, waiting: list[ShardInfo]) -> bool:
        """True when all shards are committed, False when the stop came first."""
        idle_since = time.monotonic()
        while waiting and not self.stop.is_set():
            left = [shard for shard in waiting if not self._try_shard(shard)]
            if len(left) < len(waiting):
                idle_since = time.monotonic()
            else:
                # All that is left is in other lanes' hands; stay to take over from one that dies.
                self.report.state = "waiting"
                self.reporter.tell()
                pause = (time.monotonic() - idle_since) / 10
                self.stop.wait(min(max(pause, SHORTEST_WAIT_SECONDS), LONGEST_WAIT_SECONDS))
            waiting = left
        return not waiting

    def _try_shard(self, shard: ShardInfo) -> bool:
        """True when the shard needs no more work: it is committed now, by this lane or another."""
        if self.stop.is_set():
            return False
        if self.store.read_progress(shard.shard).committed:
            return True
        holder = identify_holder(self.options.name)
        prefix = layout.name_claim_prefix(shard.shard)
        claim = take_claim(self.store.storage, prefix, holder, self.options.lease_seconds)
        if claim is None:
            return False
        with claim:
            try:
                return self._work_on(shard, claim)
            except ObjectNotFoundError:
                # A lane that was given up and woke up late has just folded the parts into rows.parquet.
                if not self.store.is_decided(shard.shard):
                    raise
                return False

    def _work_on(self, shard: ShardInfo, claim: Claim) -> bool:
        progress = self.store.read_progress(shard.shard)
        if progress.committed:
            return True
        if self.store.is_decided(shard.shard):
            self.store.conclude_commit(shard.shard, self._describe_commit({}))
            return True
        self.report.state, self.report.shard = "working", shard.shard
        self.reporter.tell(now=True)
        recorded = self.store.read_parts(keep_whole_parts(self.store, progress.parts))
        finished = set(recorded.column("ordinal").to_pylist())
        rows = read_shard_rows(self.store.storage, shard).to_pylist()
        left = [row for row in rows if row["ordinal"] not in finished]
        if finished:
            logger.info("shard %d: %d of %d rows were made before and are kept", shard.shard, len(finished), len(rows))
        writer = self._make_rows(shard, left, claim)
        self.report.add_stages(writer.stages)
        if not claim.is_valid():
            return self._leave(shard)
        return not self.stop.is_set() and self._commit(shard, claim, writer, len(rows))

    def _leave(self, shard: ShardInfo) -> bool:
        """Another lane took the shard over; what this one wrote after the commit is removed again."""
        logger.warning("shard %d: another lane has taken it over", shard.shard)
        if not self.store.is_decided(shard.shard):
            return False
        self.store.sweep_shard(shard.shard)
        return self.store.read_progress(shard.shard).committed

    def _make_rows(self, shard: ShardInfo, rows: Sequence[dict[str, Any]], claim: Claim) -> BatchWriter:
        generator = self._load_generator(shard.batch_key.model) if rows else self._generator
        backend = generator.model.serving.label if generator is not None else ""
        target = Target(self.store, shard.shard, claim.token, self.options.name, backend)
        describe = RowDescriber(self.run_record, self.spec, shard.batch_key.model)
        with BatchWriter(target, self.spec, describe, self._observer, self._guard) as writer:
            if generator is not None and rows:
                self._prepare_next(shard)
                self._run_batches(generator, rows, shard, writer, claim)
        self._note_written(writer, shard)
        if generator is not None:
            memory = {"memory": list(generator.model.memory.steps)}
            self.report.serving[self._model] = asdict(generator.model.serving) | memory
        return writer

    def _run_batches(
        self, generator: Generator, rows: Sequence[dict[str, Any]], shard: ShardInfo, writer: BatchWriter, claim: Claim
    ) -> None:
        generator.embeddings.forget_prompts()
        batches = generator.generate(rows, shard.batch_key)
        while not self.stop.is_set() and claim.is_valid():
            batch = next(batches, None)
            if batch is None:
                return
            writer.submit(batch)
            self._note_written(writer, shard)

    def _note_written(self, writer: BatchWriter, shard: ShardInfo) -> None:
        """Learns batch sizes from what is written, and tells."""
        is_first = not self.report.ok + self.report.failed
        for batch in writer.take_written():
            self.report.ok += batch.rows - batch.failed
            self.report.failed += batch.failed
            self.report.batch_size = batch.batch_size
            if self._generator is not None and batch.seconds > 0:
                sizer = self._generator.find_sizer(shard.batch_key)
                sizer.record(batch.rows, batch.seconds, measure_memory_share(self.device))
        self.report.seconds = time.monotonic() - self._started
        # The first rows are told at once: a lane that dies after making some is not in a crash loop.
        self.reporter.tell(now=is_first and bool(self.report.ok + self.report.failed))

    def _commit(self, shard: ShardInfo, claim: Claim, writer: BatchWriter, expected: int) -> bool:
        rows = self.store.read_parts(self.store.read_progress(shard.shard).parts)
        if rows.num_rows != expected:
            logger.warning("shard %d: %d of %d rows are recorded, another look", shard.shard, rows.num_rows, expected)
            return self._leave(shard)
        rows = writer.sink.finish(rows.sort_by("ordinal"))
        if not claim.is_valid():
            return self._leave(shard)
        self.store.commit_shard(shard.shard, rows, self._describe_commit(writer.stages))
        self.report.shards_done += 1
        self.reporter.tell(now=True)
        return True

    def _describe_commit(self, stages: Mapping[str, float]) -> dict[str, Any]:
        return {"lane": self.options.name, "device": self.device, "stages": dict(stages)}

    def _load_generator(self, model: str) -> Generator:
        """The model in hand, or another one from the pool, where models stay warm while they fit."""
        if self._generator is None or self._model != model:
            self._generator = None
            self._lease.close()
            started = time.perf_counter()
            self._generator = self._lease.enter_context(self.pool.use(model))
            self._model = model
            self.report.add_stages({"load": time.perf_counter() - started})
            self.reporter.tell(now=True)
        return self._generator

    def _open_generator(self, model: str) -> Generator:
        planned = self.run_record["models"]
        if model not in planned:
            raise RunMismatchError(
                f"an alias of this run has moved away from {model}",
                "the models that the run was planned with",
                "move the alias back, or give another --out",
            )
        loaded = load_model(model, self.device, self.spec, planned)
        hold_to_levers(self.store, planned[model]["weights_hash"], loaded.serving)
        return Generator(loaded, self.spec, self.options.generate)

    def _prepare_next(self, shard: ShardInfo) -> None:
        """Loads the next shard's model while this one is made, where there is room for both."""
        following = self._next_models.get(shard.shard)
        if following is not None and self.pool.has_room_for(following) and not self.pool.is_warm(following):
            self.pool.prepare(following)

    def _limit_threads(self) -> None:
        if self.options.threads is not None:
            import torch

            torch.set_num_threads(self.options.threads)


def load_model(name: str, device: str, spec: RunSpec, planned: dict[str, Any]) -> LoadedModel:
    """Puts a checkpoint on the device after seeing that it is the one that the run was planned with.

    Raises:
        RunMismatchError: its hash is another.
    """
    from dgate_core.models.families.contract import LoadOptions

    checkpoint = find_checkpoint(name)
    if planned[name]["weights_hash"] != checkpoint.weights_hash:
        raise RunMismatchError(
            f"the files of {name} are not those that the run was planned with",
            f"weights hash {planned[name]['weights_hash'][:16]}…, got {checkpoint.weights_hash[:16]}…",
            "bring the old checkpoint back, or give another --out",
        )
    if device == "cpu" and spec.determinism == "strict":
        # How work is cut for threads decides the order of sums, so strict computes on one thread per lane.
        import torch

        torch.set_num_threads(1)
    profile, is_strict = find_profile(spec.profile, device), spec.determinism == "strict"
    quantization = profile.quantization
    memory = plan_memory(checkpoint, spec.precision, device, is_strict=is_strict, quantization=quantization)
    logger.info("loading %s on %s in %s", name, device, spec.precision)
    options = LoadOptions(device, spec.precision, memory, denoiser_waits=quantization == "nf4")
    model = FAMILIES.load(checkpoint.family)().load(checkpoint, options)
    if profile.name == EXACT:
        return model
    from dgate_core.backends.opening import serve_model

    return serve_model(model, profile, is_strict=is_strict)


def choose_device(wanted: str) -> str:
    """`auto` becomes cuda, mps or cpu, in this order.

    Raises:
        UsageError: the machine has no such device.
    """
    if wanted == "cpu":
        return wanted
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found.get(wanted, True):
        raise UsageError(
            f"device={wanted}, which PyTorch finds none of here",
            "cpu, or auto",
            "leave the device out; where the lanes run elsewhere, name the precision too",
        )
    return next((name for name, is_here in found.items() if is_here), "cpu") if wanted == "auto" else wanted


def measure_memory_share(device: str) -> float:
    """Peak share of the GPU's memory since the last call, 0 to 1; 0 where nothing is known."""
    if device != "cuda":
        return 0.0
    import torch

    share = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.reset_peak_memory_stats()
    return share


def _rotate(shards: Sequence[ShardInfo], by: int) -> list[ShardInfo]:
    """Shards of one model stay together, each lane begins at another place."""
    ordered = sorted(shards, key=lambda shard: (shard.batch_key.model, shard.shard))
    start = by % len(ordered) if ordered else 0
    return [*ordered[start:], *ordered[:start]]
