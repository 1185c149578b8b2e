"""What is asked for only when somebody scrapes: GPUs, model pools, the engine cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from dgate_core.telemetry.counts import read_engine_lookups
from dgate_core.telemetry.gpus import GpuReading

if TYPE_CHECKING:
    from prometheus_client.core import Metric

ReadPools = Callable[[], Mapping[str, Mapping[str, Any]]]
"""`ModelPool.describe()` of each device, by the device's name."""

_POOL_COUNTERS: Final = {
    "loads": ("dgate_model_loads", "Models loaded from disk."),
    "load_seconds": ("dgate_model_load_seconds", "Seconds spent on loading models."),
    "returns": ("dgate_model_returns", "Models that came back from the host's memory."),
    "evictions": ("dgate_model_evictions", "Models put out to make room."),
    "swaps": ("dgate_model_swaps", "Names that turned to another model while serving."),
    "failures": ("dgate_model_failures", "Models that could not be loaded."),
}


class GpuCollector:
    """Memory and utilisation; a machine without GPUs has no such lines.

    Args:
        read: See `read_gpus`.
    """

    def __init__(self, read: Callable[[], Sequence[GpuReading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        from prometheus_client.core import GaugeMetricFamily

        labels = ["gpu", "name"]
        used = GaugeMetricFamily("dgate_gpu_memory_used_bytes", "Memory in use by all processes.", labels=labels)
        total = GaugeMetricFamily("dgate_gpu_memory_total_bytes", "Memory of the GPU.", labels=labels)
        busy = GaugeMetricFamily("dgate_gpu_utilisation_ratio", "Share of time in which a kernel ran.", labels=labels)
        for gpu in self._read():
            values = [str(gpu.index), gpu.name]
            used.add_metric(values, gpu.used_bytes)
            total.add_metric(values, gpu.total_bytes)
            if gpu.utilisation is not None:
                busy.add_metric(values, gpu.utilisation)
        yield from (family for family in (used, total, busy) if family.samples)


class PoolCollector:
    """Loads, swaps and evictions, and which models are where.

    Args:
        read: Asked at each scrape.
    """

    def __init__(self, read: ReadPools) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        pools = self._read()
        for field, (name, text) in _POOL_COUNTERS.items():
            family = CounterMetricFamily(name, text, labels=["device"])
            for device, pool in pools.items():
                family.add_metric([device], pool[field])
            yield family
        budget = GaugeMetricFamily("dgate_model_budget_bytes", "Memory for warm models.", labels=["device"])
        here = GaugeMetricFamily("dgate_model_bytes", "Memory of a model.", labels=["device", "model", "state"])
        for device, pool in pools.items():
            budget.add_metric([device], pool["budget_bytes"])
            for model in pool["models"]:
                if model["names"]:  # a model that its name has left is on its way out
                    here.add_metric([device, model["names"][0], model["state"]], model["bytes"])
        yield budget
        yield here


class EngineCacheCollector:
    """Hits and misses of the cache of exports and engines."""

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        from prometheus_client.core import CounterMetricFamily

        text = "Looks into the cache of exports and engines, by what came of them."
        family = CounterMetricFamily("dgate_engine_cache_lookups", text, labels=["result"])
        for result, count in read_engine_lookups().items():
            family.add_metric([result], count)
        yield family
