"""The model pool: warm, swapped while it serves, never mixed up; real tiny models and real threads."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dgate_core.bench.swap import SwapBenchOptions, count_mixed, list_figures, measure_swap
from dgate_core.engine.begin import open_run
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.engine.lane import Lane, LaneOptions
from dgate_core.engine.stopping import StopSignal
from dgate_core.engine.warm_models import GeneratorLoader
from dgate_core.errors import ModelError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.aliases import REGISTRY_VARIABLE, Promotion, promote_model, roll_back
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.model_loading import Candidate
from dgate_core.models.pool import ModelPool, PoolOptions
from dgate_core.models.promotion import promote_checkpoint
from dgate_core.models.spec import FAMILIES
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.spec import RunSpec
from tests.tiny import make_sd
from tests.tiny_dit import make_sd3

ROOMY = 1 << 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two UNets with other weights and a transformer, by short names."""
    made = {"red": (make_sd, 1), "blue": (make_sd, 2), "green": (make_sd3, 3)}
    return {name: str(make(tmp_path_factory.mktemp(name), seed=seed)) for name, (make, seed) in made.items()}


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "models.json"))
    return tmp_path / "models.json"


def open_generator(name: str) -> Generator:
    checkpoint = find_checkpoint(name)
    model = FAMILIES.load(checkpoint.family)().load(checkpoint, LoadOptions("cpu", "float32"))
    return Generator(model, RunSpec(), GenerateOptions(batch_size=2))


class HostLoader(GeneratorLoader):
    """A real loader that also keeps what is put out: on the CPU, leaving the device is a copy too."""

    def send_to_host(self, held: Generator) -> bool:
        return held.model.leave_device()


def make_pool(**options: float) -> ModelPool[Generator]:
    loader = HostLoader(open_generator, "cpu", "float32") if options.get("host_bytes") else None
    settings = {"budget_bytes": ROOMY, "wait_seconds": 20.0, **options}
    return ModelPool(loader or GeneratorLoader(open_generator, "cpu", "float32"), PoolOptions(**settings))


def make_pixels(generator: Generator, seed: int = 0) -> bytes:
    key = BatchKey("any", 32, 32, 2, "default", 2.0)
    rows = [{"prompt": f"a boat {n}", "negative_prompt": "", "seed": seed + n} for n in range(2)]
    (batch,) = generator.generate(rows, key)
    assert batch.pictures is not None
    return batch.pictures.pixels.numpy().tobytes()


@pytest.fixture(scope="module")
def expected(folders: dict[str, str]) -> dict[str, bytes]:
    """What each model makes when nothing else goes on."""
    return {name: make_pixels(open_generator(folder)) for name, folder in folders.items()}


def promote(name: str, folder: str) -> None:
    promote_checkpoint(name, folder)


def test_models_stay_warm_while_they_fit(folders: dict[str, str], expected: dict[str, bytes]) -> None:
    pool = make_pool()
    for _ in range(3):
        for name, folder in folders.items():
            with pool.use(folder) as generator:
                assert make_pixels(generator) == expected[name]
    assert (pool.figures.loads, pool.figures.evictions) == (3, 0)


def test_two_names_of_the_same_weights_are_loaded_once(folders: dict[str, str]) -> None:
    promote("production", folders["red"])
    pool = make_pool()
    with pool.use("production") as first:
        pass
    with pool.use(folders["red"]) as second:
        assert first is second
    assert pool.describe()["models"][0]["names"] == sorted(["production", folders["red"]])


def test_embeddings_and_batch_sizes_belong_to_the_model(folders: dict[str, str]) -> None:
    pool = make_pool()
    key = BatchKey("any", 32, 32, 2, "default", 2.0)
    with pool.use(folders["red"]) as red:
        make_pixels(red)
        red.find_sizer(key).shrink(2)
    with pool.use(folders["blue"]) as blue:
        assert blue.embeddings is not red.embeddings
        assert blue.find_sizer(key).size == 2
    with pool.use(folders["red"]) as again:
        assert again is red
        assert again.find_sizer(key).size == 1


def test_the_least_recently_used_leaves_and_never_one_in_use(folders: dict[str, str]) -> None:
    sizes = {name: open_generator(folder).model.count_bytes() for name, folder in folders.items()}
    pool = make_pool(budget_bytes=sum(sizes.values()) - sizes["blue"] // 2)
    with pool.use(folders["red"]), pool.use(folders["blue"]):
        pass
    with pool.use(folders["red"]):
        assert pool.has_room_for(folders["green"])
        with pool.use(folders["green"]):
            assert pool.is_warm(folders["red"]), "it is in use"
            assert not pool.is_warm(folders["blue"]), "it was used before red"


def test_a_thread_that_stands_in_its_own_way_is_told(folders: dict[str, str]) -> None:
    pool = make_pool(budget_bytes=1)
    with pool.use(folders["red"]):
        assert not pool.has_room_for(folders["blue"])
        started = time.monotonic()
        with pytest.raises(ModelError, match="no room"), pool.use(folders["blue"]):
            pass
        with pytest.raises(RuntimeError, match="has a lease"), pool.use(folders["red"]):
            pass
        assert time.monotonic() - started < 5, "nobody waits for what cannot happen"
    with pool.use(folders["blue"]):
        assert not pool.is_warm(folders["red"]), "one model above the budget is loaded alone"


def test_a_swap_while_serving_loses_and_mixes_nothing(folders: dict[str, str], expected: dict[str, bytes]) -> None:
    promote("production", folders["red"])
    pool, made = make_pool(), []
    with serve(pool, "production", made):
        wait_for(lambda: len(made) >= 2)
        promote("production", folders["blue"])
        time.sleep(0.1)
        assert set(made) == {expected["red"]}, "an alias that moves is followed only when asked to"
        assert pool.refresh("production").result(20) is True
        wait_for(lambda: made[-1] == expected["blue"])
        roll_back("production")
        before = pool.figures.loads
        assert pool.refresh("production").result(20) is True
        wait_for(lambda: made[-1] == expected["red"])
    assert pool.figures.loads == before == 2, "swapping back is no reload"
    colours = ["red" if each == expected["red"] else "blue" if each == expected["blue"] else "mixed" for each in made]
    changes = [colour for colour, next_colour in zip(colours, [*colours[1:], ""], strict=True) if colour != next_colour]
    assert changes == ["red", "blue", "red"]
    assert pool.figures.swaps == 2


def test_a_swap_without_room_for_both_loses_nothing(folders: dict[str, str], expected: dict[str, bytes]) -> None:
    promote("production", folders["red"])
    pool, made = make_pool(budget_bytes=1), []
    with serve(pool, "production", made), serve(pool, "production", made):
        wait_for(lambda: len(made) >= 2)
        promote("production", folders["blue"])
        assert pool.refresh("production").result(20) is True
        wait_for(lambda: made[-1] == expected["blue"])
    first_blue = made.index(expected["blue"])
    assert set(made[:first_blue]) == {expected["red"]}
    assert set(made[first_blue:]) == {expected["blue"]}
    assert pool.figures.loads == 2, "the old one is not loaded again in between"


def test_a_load_that_fails_leaves_the_old_model_serving(
    folders: dict[str, str], expected: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    promote("production", folders["red"])
    pool, made = make_pool(), []
    with serve(pool, "production", made):
        wait_for(lambda: made)
        promote_model("production", Promotion("/no/such/model", "0" * 64, 1.0, "a mistake"))
        with pytest.raises(ModelError, match="there is no /no/such/model"):
            pool.refresh("production").result(20)
        count = len(made)
        wait_for(lambda: len(made) > count)
    assert set(made) == {expected["red"]}
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "there is no /no/such/model" in errors[0]


def test_an_alias_that_moves_is_not_followed_by_a_reload(folders: dict[str, str], expected: dict[str, bytes]) -> None:
    promote("production", folders["red"])
    pool = make_pool(budget_bytes=1)
    for name, colour in (("production", "red"), (folders["green"], "green"), ("production", "red")):
        with pool.use(name) as generator:
            assert make_pixels(generator) == expected[colour]
        promote("production", folders["blue"])
    assert pool.figures.loads == 3
    assert pool.refresh("production").result(20) is True
    with pool.use("production") as generator:
        assert make_pixels(generator) == expected["blue"]


def test_files_that_change_under_a_running_pool_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["red"], tmp_path / "changing"))
    pool = make_pool(budget_bytes=1)
    with pool.use(str(folder)), pytest.raises(ModelError, match="no room"), pool.use(folders["blue"]):
        pass
    with pool.use(folders["blue"]):
        shutil.copytree(folders["blue"], folder, dirs_exist_ok=True)
    with pytest.raises(ModelError, match="have changed since it was found"), pool.use(str(folder)):
        pass


def test_a_model_that_breaks_while_it_loads_can_be_tried_again(folders: dict[str, str]) -> None:
    loader = GeneratorLoader(open_generator, "cpu", "float32")
    pool: ModelPool[Generator] = ModelPool(loader, PoolOptions(ROOMY, wait_seconds=20.0))
    broken = {"left": 1}

    def load(candidate: Candidate) -> Generator:
        if broken["left"]:
            broken["left"] -= 1
            raise torch.OutOfMemoryError("out of memory")
        return GeneratorLoader.load(loader, candidate)

    loader.load = load  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError), pool.use(folders["red"]):
        pass
    with pool.use(folders["red"]):
        assert pool.figures.failures == 1


def test_models_that_were_put_out_come_back_from_the_host(folders: dict[str, str], expected: dict[str, bytes]) -> None:
    pool = make_pool(budget_bytes=1, host_bytes=ROOMY)
    for _ in range(3):
        for name in ("red", "green"):
            with pool.use(folders[name]) as generator:
                assert make_pixels(generator) == expected[name]
    assert (pool.figures.loads, pool.figures.returns, pool.figures.evictions) == (2, 4, 5)
    assert [each["state"] for each in pool.describe()["models"]] == ["host", "warm"]


@pytest.mark.parametrize("budget", [1, ROOMY])
def test_many_threads_and_three_models(folders: dict[str, str], expected: dict[str, bytes], budget: int) -> None:
    pool = make_pool(budget_bytes=budget, wait_seconds=60.0)

    def work(number: int) -> bool:
        name = list(folders)[number % 3]
        with pool.use(folders[name]) as generator:
            return make_pixels(generator) == expected[name]

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(work, range(12)))
    assert pool.figures.loads >= 3
    assert all(not each["leases"] for each in pool.describe()["models"])


def test_an_unknown_name_is_one_clear_error() -> None:
    with pytest.raises(ModelError, match="did you mean 'starter-unet'"), make_pool().use("starter-unnet"):
        pass


def test_a_lane_keeps_its_models_warm_and_loads_the_next_one_ahead(
    folders: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    manifest = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"boat {n}", "model": folders["blue" if n % 2 else "red"]} for n in range(8)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = RunSettings(model=folders["red"], num_inference_steps=2, rows_per_shard=2, precision="float32", lanes=1)
    store = open_run([str(manifest)], str(tmp_path / "run"), settings).store
    lane = Lane(store, LaneOptions(device="cpu"), StopSignal())
    report = lane.work()
    assert (report.ok, report.failed) == (8, 0)
    assert (lane.pool.figures.loads, lane.pool.figures.evictions) == (2, 0)
    assert {model: facts["memory"] for model, facts in report.serving.items()} == {
        folders["red"]: [],
        folders["blue"]: [],
    }
    later = max(folders["red"], folders["blue"])
    assert [record.threadName for record in caplog.records if f"loading {later} on" in record.message] == [
        f"loading {later}"
    ], "in the background"


def test_pictures_do_not_depend_on_the_default_dtype(folders: dict[str, str], expected: dict[str, bytes]) -> None:
    """While a model is built in the background, the libraries set torch's default dtype for the whole process."""
    for name, folder in folders.items():
        generator = open_generator(folder)
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert make_pixels(generator) == expected[name]
        finally:
            torch.set_default_dtype(torch.float32)


@contextmanager
def serve(pool: ModelPool[Generator], name: str, made: list[bytes]) -> Iterator[None]:
    """A thread that makes batch after batch with whatever the name leads to."""
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            while not stop.is_set():
                with pool.use(name) as generator:
                    made.append(make_pixels(generator))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not failures


def wait_for(is_so: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_swap_benchmark_serves_all_and_mixes_nothing(folders: dict[str, str]) -> None:
    assert [count_mixed(list(made)) for made in ("aabbba", "aaa", "abab", "acba")] == [0, 0, 1, 1]
    options = SwapBenchOptions(folders["red"], batch_size=2, num_inference_steps=2, batches=3, device="cpu")
    lines: list[str] = []
    found = measure_swap(options, lines.append)
    times = found["times"]
    assert found["as_wanted"]
    assert times["asked"] >= 9
    assert times["longest_gap"] < times["swap"]
    assert times["swap_back"] < times["cold_load"]
    assert len(list_figures(times)) == len(times) == 10
