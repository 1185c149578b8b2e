"""The rows of the catalogue: what a name promises before anything is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest

from dgate_core.engine.begin import open_run
from dgate_core.errors import ModelError
from dgate_core.models.aliases import REGISTRY_VARIABLE
from dgate_core.models.catalog import CATALOG, find_checkpoint
from dgate_core.models.hub import list_patterns
from dgate_core.models.importing import ImportOptions, import_to_registry
from dgate_core.models.profiles import check_steps, find_profile
from dgate_core.models.spec import FAMILIES, PIPELINES, CheckpointSpec
from dgate_core.runs.settings import RunSettings
from tests.tiny import make_lcm, make_sd

FROM_THE_HUB = [spec for spec in CATALOG.values() if not Path(spec.source).is_absolute()]


@pytest.mark.parametrize("spec", FROM_THE_HUB, ids=lambda spec: spec.name)
def test_a_row_is_pinned_and_says_what_its_licence_is(spec: CheckpointSpec) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", spec.source)
    assert re.fullmatch(r"[0-9a-f]{40}", spec.revision or ""), "a branch moves"
    assert spec.licence != "unknown"
    assert not any(pattern.endswith((".bin", ".ckpt", ".pt")) for pattern in list_patterns(spec))


def test_every_family_has_a_pipeline_and_every_pipeline_is_of_diffusers() -> None:
    assert {pipeline.family for pipeline in PIPELINES.values()} == set(FAMILIES.names())
    assert all(hasattr(diffusers, name) for name in PIPELINES)


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo", "lcm-dreamshaper", "flux-schnell", "flux2-klein-4b"])
def test_distilled_rows_are_for_the_profile_draft(name: str) -> None:
    most = find_profile("draft", "cpu").most_steps
    assert most is not None
    assert CATALOG[name].num_inference_steps <= most


def test_a_folder_is_for_a_draft_by_its_class_or_by_the_steps_that_it_was_imported_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "models.json"))
    draft, folder = find_profile("draft", "cpu"), str(make_sd(tmp_path / "mine"))
    with pytest.raises(ModelError, match="dgate models import FOLDER --name N --steps 4"):
        check_steps(find_checkpoint(folder).spec, draft)
    import_to_registry(folder, "mine", ImportOptions(num_inference_steps=4, guidance_scale=0.0))
    check_steps(find_checkpoint("mine").spec, draft)
    lcm = make_lcm(tmp_path / "lcm", kind=diffusers.LatentConsistencyModelPipeline)
    check_steps(find_checkpoint(str(lcm)).spec, draft)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a boat"}\n')
    with pytest.raises(ModelError, match="none for the profile draft"):
        open_run([str(tmp_path / "rows.jsonl")], str(tmp_path / "run"), RunSettings(model=folder, profile="draft"))
    assert not (tmp_path / "run" / "run.json").exists()
