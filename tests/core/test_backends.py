"""Backends: the same pictures as eager, within a bound; what does not fit falls back, told once and in every row."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dgate_core.backends.opening import serve_model
from dgate_core.engine.begin import open_run
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.engine.local import execute_lanes, finish_run
from dgate_core.engine.reproduce import reproduce_picture
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import BackendUnfitError, MissingExtraError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.profiles import Profile, find_profile
from dgate_core.models.spec import FAMILIES
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.spec import RunSpec
from tests.tiny import make_sd, make_sdxl
from tests.tiny_dit import make_flux, make_sd3, make_z_image

MAKERS: dict[str, Callable[[Path], Path]] = {"sd": make_sd, "sdxl": make_sdxl, "sd3": make_sd3, "flux": make_flux}
LARGEST_DIFFERENCE = 1
"""Of 255, in float32."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Engines and kernels of this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DGATE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: str(make(tmp_path_factory.mktemp(name))) for name, make in MAKERS.items()}


def load(folder: str, precision: str = "float32") -> LatentModel:
    checkpoint = find_checkpoint(folder)
    return FAMILIES.load(checkpoint.family)().load(checkpoint, LoadOptions("cpu", precision))


def make_pictures(model: LatentModel, rows: int, strict: bool = False, guidance: float = 3.0) -> np.ndarray:
    key = BatchKey(model.checkpoint.spec.name, 32, 32, 3, "default", guidance)
    spec = RunSpec(determinism="strict", strict_batch_size=4) if strict else RunSpec()
    generator = Generator(model, spec, GenerateOptions(batch_size=3))
    plan = [{"prompt": f"a cat {n}", "negative_prompt": None, "seed": n} for n in range(rows)]
    made = list(generator.generate(plan, key))
    assert [batch.error for batch in made] == [None] * len(made)
    return np.concatenate([batch.pictures.pixels.numpy()[: len(batch.rows)] for batch in made if batch.pictures])


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("eager", "sd"),
        pytest.param("compiled", "sd", marks=pytest.mark.slow),
        pytest.param("compiled", "sd3", marks=pytest.mark.slow),
        ("compiled", "flux"),
        ("onnx_runtime", "sd"),
        pytest.param("onnx_runtime", "sdxl", marks=pytest.mark.slow),
        ("onnx_runtime", "sd3"),
        pytest.param("onnx_runtime", "flux", marks=pytest.mark.slow),
    ],
)
def test_pictures_are_those_of_eager(folders: dict[str, str], backend: str, name: str) -> None:
    rows = 3 if backend == "compiled" else 4  # another size of batch is compiled once more
    wanted = make_pictures(load(folders[name]), rows)
    model = serve_model(load(folders[name]), find_profile(backend, "cpu"))
    found = make_pictures(model, rows)
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= LARGEST_DIFFERENCE
    assert model.serving.label == f"{backend}-cpu-float32"
    assert model.serving.warnings == ()


@pytest.mark.parametrize("backend", ["eager", "onnx_runtime"])
def test_strict_gives_the_same_bytes_in_any_batch(folders: dict[str, str], backend: str) -> None:
    profile = find_profile(backend, "cpu")
    model = serve_model(load(folders["sd"]), profile, is_strict=True)
    together = make_pictures(model, 6, strict=True)
    again = make_pictures(serve_model(load(folders["sd"]), profile, is_strict=True), 3, strict=True)
    assert np.array_equal(together[:3], again)
    alone = make_pictures(model, 1, strict=True)
    assert np.array_equal(together[:1], alone)


@pytest.mark.parametrize("backend", ["compiled", "tensorrt"])
def test_what_cannot_be_byte_equal_refuses_strict_runs(folders: dict[str, str], backend: str) -> None:
    with pytest.raises(BackendUnfitError):
        serve_model(load(folders["sd"]), find_profile(backend, "cpu"), is_strict=True)


def test_a_backend_alone_that_does_not_fit_is_an_error(folders: dict[str, str]) -> None:
    with pytest.raises(BackendUnfitError, match="TensorRT does not compute on cpu"):
        serve_model(load(folders["sd"]), find_profile("tensorrt", "cpu"))
    with pytest.raises(BackendUnfitError, match="no bfloat16 kernels"):
        serve_model(load(folders["sd"], "bfloat16"), find_profile("onnx_runtime", "cpu"))


def test_a_fall_to_the_next_is_told_once(folders: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dgate_core.backends"):
        model = serve_model(load(folders["sd"]), Profile("mine", ("tensorrt", "onnx_runtime", "eager")))
        make_pictures(model, 4)
    assert [record.message for record in caplog.records if record.name == "dgate_core.backends.opening"] == [
        f"{folders['sd']}: backend: onnx_runtime serves, because of tensorrt: TensorRT does not compute on cpu"
    ]
    assert model.serving.backend == "onnx_runtime"


def test_a_denoiser_that_cannot_be_exported_falls_back_at_its_first_batch(tmp_path: Path) -> None:
    folder = str(make_z_image(tmp_path))
    wanted = make_pictures(load(folder), 2, guidance=0.0)
    model = serve_model(load(folder), Profile("mine", ("onnx_runtime", "eager")))
    assert np.array_equal(make_pictures(model, 2, guidance=0.0), wanted)
    assert model.serving.label == "eager-cpu-float32"
    assert "list of pictures" in model.serving.warnings[0]


def test_a_missing_package_names_its_extra(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="onnxruntime"):
        serve_model(load(folders["sd"]), find_profile("onnx_runtime", "cpu"))
    model = serve_model(load(folders["sd"]), Profile("mine", ("onnx_runtime", "eager")))
    assert model.serving.backend == "eager"
    assert "'onnxruntime' is not installed" in model.serving.warnings[0]


def test_run_and_rows_say_what_computed(tmp_path: Path, folders: dict[str, str]) -> None:
    manifest = tmp_path / "prompts.jsonl"
    manifest.write_text("".join(json.dumps({"prompt": f"boat {n}", "seed": n}) + "\n" for n in range(3)))
    settings = RunSettings(
        model=folders["sd"],
        precision="float32",
        num_inference_steps=2,
        batch_size=2,
        profile="onnx_runtime",
        device="cpu",
    )
    run = open_run([str(manifest)], str(tmp_path / "run"), settings)
    execute_lanes(run.store, settings, StopSignal(), lambda _: None)
    finish_run(run.store)
    rows = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    assert [(row["status"], row["backend"]) for row in rows] == [("ok", "onnx_runtime-cpu-float32")] * 3
    (serving,) = run.store.read_run()["serving"][folders["sd"]]
    assert (serving["backend"], serving["warnings"]) == ("onnx_runtime", [])
    assert run.store.read_run()["spec"]["profile"] == "onnx_runtime"
    assert reproduce_picture((tmp_path / "run" / rows[0]["path"]).read_bytes(), "0.png", "cpu").max_difference == 0


def test_a_size_that_no_backend_serves_is_a_row_error(folders: dict[str, str], tmp_path: Path) -> None:
    model = serve_model(load(str(make_z_image(tmp_path))), find_profile("onnx_runtime", "cpu"))
    key = BatchKey(model.checkpoint.spec.name, 32, 32, 1, "default", 0.0)
    rows = [{"prompt": "a cat", "negative_prompt": None, "seed": n} for n in range(4)]
    batches = list(Generator(model, RunSpec(), GenerateOptions(batch_size=4)).generate(rows, key))
    assert [batch.error.row_code for batch in batches if batch.error] == ["backend"]
