"""What only a GPU can show: strict bytes, compiled kernels, memory that really runs out, a whole run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dgate_core.backends.opening import serve_model
from dgate_core.engine.begin import open_run
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.engine.local import execute_lanes, finish_run
from dgate_core.engine.stopping import StopSignal
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.profiles import find_profile
from dgate_core.models.spec import FAMILIES
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.spec import RunSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STARTERS = ("starter-unet", "starter-dit")
PROMPTS = (
    "a red boat on the sea at sunset",
    "two blue birds in the rain on grass",
    "a tree on snow",
    "a car on a road",
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels and hashes of these tests alone; nothing cached on the GPU stays for the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGATE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield
    torch.cuda.empty_cache()


def load(name: str, device: str = "cuda", precision: str = "float32") -> LatentModel:
    checkpoint = find_checkpoint(name)
    return FAMILIES.load(checkpoint.family)().load(checkpoint, LoadOptions(device, precision))


def draw(model: LatentModel, rows: int, batch: int, *, strict: bool = False) -> np.ndarray:
    spec = RunSpec(determinism="strict", strict_batch_size=batch) if strict else RunSpec()
    name = model.checkpoint.spec.name
    key = BatchKey(name, 64, 64, 8, "default", 3.0)
    plan = [{"prompt": PROMPTS[n % 4], "negative_prompt": None, "seed": n} for n in range(rows)]
    made = list(Generator(model, spec, GenerateOptions(batch_size=batch)).generate(plan, key))
    assert [each.error for each in made] == [None] * len(made)
    for each in made:
        assert each.pictures is not None
        each.pictures.wait()
    return np.concatenate([each.pictures.pixels.numpy()[: len(each.rows)] for each in made if each.pictures])


def distance(ours: np.ndarray, theirs: np.ndarray) -> int:
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


@pytest.mark.parametrize("name", STARTERS)
def test_the_same_pictures_as_on_a_cpu(name: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    assert distance(draw(load(name), 4, 4), draw(load(name, "cpu"), 4, 4)) <= 2


@pytest.mark.parametrize("name", STARTERS)
def test_strict_gives_the_same_bytes_in_any_batch(name: str) -> None:
    model = load(name, precision="bfloat16")
    together = draw(model, 11, 4, strict=True)
    assert np.array_equal(together[:3], draw(model, 3, 4, strict=True))
    assert np.array_equal(together, draw(load(name, precision="bfloat16"), 11, 4, strict=True))


@pytest.mark.parametrize("name", STARTERS)
def test_compiled_pictures_are_those_of_eager(name: str) -> None:
    wanted = draw(load(name), 7, 4)
    model = serve_model(load(name), find_profile("compiled", "cuda"))
    found = draw(model, 7, 4)
    assert model.serving.label == "compiled-cuda-float32-decoder"
    assert distance(found, wanted) <= 2
    assert model.serving.pads_batches, "the last three rows went as four"


def test_memory_that_runs_out_costs_no_row() -> None:
    """All but a little is taken, so that the large batch cannot fit and smaller ones can."""
    model = load("starter-unet", precision="bfloat16")
    wanted = draw(model, 64, 8)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - 180 * 2**20, dtype=torch.uint8, device="cuda")
    spec, key = RunSpec(), BatchKey("starter-unet", 64, 64, 8, "default", 3.0)
    generator = Generator(model, spec, GenerateOptions(batch_size=512))
    plan = [{"prompt": PROMPTS[n % 4], "negative_prompt": None, "seed": n % 64} for n in range(1024)]
    made = list(generator.generate(plan, key))
    assert [each.error for each in made] == [None] * len(made)
    assert max(each.batch_size for each in made) < 512
    assert generator.find_sizer(key).size < 512
    first = made[0].pictures
    assert first is not None
    first.wait()
    assert np.abs(first.pixels[:8].numpy().astype(int) - wanted[:8]).mean() < 2
    del taken


def test_a_whole_run(tmp_path: Path) -> None:
    manifest = tmp_path / "prompts.jsonl"
    manifest.write_text("".join(json.dumps({"prompt": PROMPTS[n % 4], "seed": n}) + "\n" for n in range(200)))
    opened = open_run([str(manifest)], str(tmp_path / "run"), RunSettings(profile="fast", rows_per_shard=50))
    execute_lanes(opened.store, RunSettings(profile="fast"), StopSignal(), lambda _reports: None)
    record = finish_run(opened.store)
    assert record["state"] == "completed"
    rows = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["backend"] for row in rows} == {"compiled-cuda-bfloat16-decoder"}
