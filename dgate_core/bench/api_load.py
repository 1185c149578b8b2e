"""The API under load on loopback, beside what people write first: diffusers behind a lock, and diffusers alone.

Server and contestant are processes of their own, asked in turns within each round, so that a noisy machine hits both;
clients keep their connections and ask again as soon as they have an answer (a closed loop).
"""

from __future__ import annotations

import http.client
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from dgate_core.bench.machine import describe_machine
from dgate_core.bench.pipeline import make_prompts
from dgate_core.engine.lane import choose_device
from dgate_core.engine.precision import choose_precision
from dgate_core.errors import RunError
from dgate_core.models.catalog import find_checkpoint

if TYPE_CHECKING:
    from dgate_core.bench.locked_server import PlainPipeline

API, LOCK, DIRECT = "D-Gate API", "FastAPI with a lock", "diffusers called directly"
PATH: Final = "/v1/images/generations"
START_WITHIN_SECONDS: Final = 300.0
BATCHING_BAR, COST_BAR_MS = 1.5, 10.0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What is measured."""

    serve: tuple[str, ...]
    """Command that starts the API on a free port and prints its address; model, precision and folder are added."""
    model: str = "starter-unet"
    """Catalogue name or folder."""
    precision: str = "auto"
    """Of all contestants; `auto` is what the server would take."""
    num_inference_steps: int | None = None
    """None is the model's default."""
    concurrency: tuple[int, ...] = (1, 8, 32)
    """Clients at a time."""
    requests: int = 32
    """Per contestant, concurrency and round; at least two for each client."""
    rounds: int = 3
    """Ratios are medians over the rounds, percentiles are over all requests."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request, answered."""

    seconds: float
    """As its client felt them."""
    device_seconds: float | None = None
    """Of its batch on the device, as the server tells; None where it does not."""
    batch_size: int | None = None


@dataclass(slots=True)
class Cell:
    """A contestant at one concurrency."""

    rates: list[float] = field(default_factory=list)
    """Pictures per second, one per round."""
    answers: list[Answer] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """Throughput and percentiles in milliseconds."""
        told = [answer.batch_size for answer in self.answers if answer.batch_size is not None]
        seconds = [answer.seconds for answer in self.answers]
        return {
            "pictures_per_second": statistics.median(self.rates),
            **{f"p{share}_ms": 1000 * find_percentile(seconds, share / 100) for share in (50, 95, 99)},
            "requests": len(seconds),
            "mean_batch_size": statistics.mean(told) if told else None,
        }


def measure_api_load(options: LoadOptions, tell: Callable[[str], object]) -> dict[str, Any]:
    """All contestants at all concurrencies, round by round.

    Returns:
        Machine, options, figures of every cell, and the ratios that the project holds itself to.

    Raises:
        RunError: a server does not start, or an answer is an error.
    """
    from dgate_core.bench.locked_server import PlainPipeline

    device = choose_device("auto")
    precision = choose_precision(device) if options.precision == "auto" else options.precision
    steps = options.num_inference_steps or find_checkpoint(options.model).spec.num_inference_steps
    cells: dict[str, dict[int, Cell]] = {API: {}, LOCK: {}, DIRECT: {1: Cell()}}
    locked = [sys.executable, "-m", "dgate_core.bench.locked_server", options.model, precision, str(steps)]
    with tempfile.TemporaryDirectory(prefix="dgate-load-") as folder:
        added = ["--model", options.model, "--folder", folder, "--set", f"precision={precision}"]
        with start_server([*options.serve, *added]) as api, start_server(locked) as lock:
            tell(f"{options.model} on {device} in {precision}, {steps} steps")
            urls, direct = {API: api, LOCK: lock}, PlainPipeline(options.model, precision, steps)
            for url in urls.values():
                send_requests(url, make_bodies(2 * max(options.concurrency), steps, "warm"), max(options.concurrency))
            direct.make(make_prompts(1, "warm")[0], 0)
            for number in range(options.rounds):
                run_round(options, steps, number, urls, cells)
                run_direct(options, number, direct, cells[DIRECT][1])
                tell(f"round {number + 1}: {describe_round(cells)}")
    return {
        "benchmark": "api",
        **describe_machine(device),
        "options": {**asdict(options), "serve": None, "precision": precision, "num_inference_steps": steps},
        "cells": {name: {str(count): cell.describe() for count, cell in row.items()} for name, row in cells.items()},
        **compare(cells),
    }


def run_round(
    options: LoadOptions, steps: int, number: int, urls: Mapping[str, str], cells: dict[str, dict[int, Cell]]
) -> None:
    """Every concurrency, both servers next to each other; who begins changes from round to round."""
    names = list(urls) if number % 2 == 0 else [*reversed([*urls])]
    for count in options.concurrency:
        for name in names:
            bodies = make_bodies(max(options.requests, 2 * count), steps, f"{number} {count}")
            started = time.perf_counter()
            answers = send_requests(urls[name], bodies, count)
            cell = cells[name].setdefault(count, Cell())
            cell.rates.append(len(bodies) / (time.perf_counter() - started))
            cell.answers += answers


def run_direct(options: LoadOptions, number: int, pipeline: PlainPipeline, cell: Cell) -> None:
    """One picture after another, in this process, encoded as the servers do."""
    started = time.perf_counter()
    for seed, prompt in enumerate(make_prompts(options.requests, f"{number} 1")):
        began = time.perf_counter()
        pipeline.make(prompt, seed)
        cell.answers.append(Answer(time.perf_counter() - began))
    cell.rates.append(options.requests / (time.perf_counter() - started))


def compare(cells: Mapping[str, Mapping[int, Cell]]) -> dict[str, Any]:
    """Ratios of one round each, their medians, and what the API adds to the time on the device."""
    bars = {8: BATCHING_BAR}
    ratios = {
        f"API over the lock at concurrency {count}": {
            "median": take_median_ratio(cell, cells[LOCK][count]),
            "bar": bars.get(count),
        }
        for count, cell in cells[API].items()
    }
    alone = [answer for answer in cells[API][1].answers if answer.device_seconds is not None] if 1 in cells[API] else []
    costs = [1000 * (answer.seconds - (answer.device_seconds or 0.0)) for answer in alone]
    return {
        "ratios": ratios,
        "own_cost_ms": _describe_costs(costs) if costs else None,
    }


def _describe_costs(costs: Sequence[float]) -> dict[str, float]:
    """p5 beside p50: far apart, the machine was busy with other things."""
    return {"p5": find_percentile(costs, 0.05), "p50": statistics.median(costs), "bar": COST_BAR_MS}


def take_median_ratio(ours: Cell, theirs: Cell) -> float:
    """Of the rounds' throughputs."""
    return statistics.median(mine / other for mine, other in zip(ours.rates, theirs.rates, strict=True))


def make_bodies(count: int, steps: int, label: str) -> list[bytes]:
    """Requests of one batch key, each with a prompt and a seed of its own."""
    prompts = make_prompts(count, label)
    return [
        json.dumps({"prompt": prompt, "seed": seed, "num_inference_steps": steps}).encode()
        for seed, prompt in enumerate(prompts)
    ]


def send_requests(url: str, bodies: Sequence[bytes], concurrency: int) -> list[Answer]:
    """Sends all, `concurrency` at a time, each client on one connection.

    Raises:
        RunError: an answer is not 200.
    """
    left, answers, failures, lock = iter(bodies), list[Answer](), list[Exception](), threading.Lock()

    def take() -> bytes | None:
        with lock:
            return None if failures else next(left, None)

    def work() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
        try:
            while (body := take()) is not None:
                answers.append(_ask(connection, body))
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(min(concurrency, len(bodies)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return answers


def _ask(connection: http.client.HTTPConnection, body: bytes) -> Answer:
    started = time.perf_counter()
    connection.request("POST", PATH, body, {"content-type": "application/json"})
    response = connection.getresponse()
    data = response.read()
    seconds = time.perf_counter() - started
    if response.status != 200:
        raise RunError(f"the server answered {response.status}: {data[:500].decode(errors='replace')}", "200")
    usage = json.loads(data).get("usage", {})
    device_ms = usage.get("device_ms")
    return Answer(seconds, None if device_ms is None else device_ms / 1000, usage.get("batch_size"))


@contextmanager
def start_server(command: Sequence[str]) -> Iterator[str]:
    """The address of a server that is ended with the block.

    Raises:
        RunError: it ends, or prints no address in time.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        watchdog = threading.Timer(START_WITHIN_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            url = next((word for line in process.stdout for word in line.split() if word.startswith("http://")), None)
            if url is None:
                errors.seek(0)
                raise RunError(f"a server did not start: {errors.read()[-2000:].decode(errors='replace')}")
            watchdog.cancel()
            # Whatever else it prints must not fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield url
        finally:
            watchdog.cancel()
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def find_percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as `share` of all (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def describe_round(cells: Mapping[str, Mapping[int, Cell]]) -> str:
    """The rates of the last round on one line."""
    return ", ".join(
        f"{name} at {count}: {cell.rates[-1]:.2f}/s" for name, row in cells.items() for count, cell in row.items()
    )


def list_load_lines(found: Mapping[str, Any]) -> list[str]:
    """A line for every cell, then the ratios beside their bars."""
    lines = [
        f"{name:28} {count:>3} at a time {cell['pictures_per_second']:8.2f} pictures/s   "
        f"p50 {cell['p50_ms']:8.1f}  p95 {cell['p95_ms']:8.1f}  p99 {cell['p99_ms']:8.1f} ms"
        for name, row in found["cells"].items()
        for count, cell in row.items()
    ]
    for name, ratio in found["ratios"].items():
        bar = f"   (bar {ratio['bar']}x)" if ratio["bar"] else ""
        lines.append(f"{name:44} {ratio['median']:6.2f}x{bar}")
    if (cost := found["own_cost_ms"]) is not None:
        name = "own cost of the API at concurrency 1, p50"
        lines.append(f"{name:44} {cost['p50']:6.1f} ms  (bar {cost['bar']} ms; p5 {cost['p5']:.1f} ms)")
    return lines


def has_reached_bars(found: Mapping[str, Any]) -> bool:
    """Whether nothing that was measured misses its bar."""
    cost = found["own_cost_ms"]
    has_batched = all(ratio["bar"] is None or ratio["median"] >= ratio["bar"] for ratio in found["ratios"].values())
    return has_batched and (cost is None or cost["p50"] <= cost["bar"])
