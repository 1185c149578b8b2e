"""`production` moves, comes back, and never points at something that nobody promoted."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dgate_core.errors import ModelError
from dgate_core.models.aliases import (
    REGISTRY_VARIABLE,
    Promotion,
    check_promoted,
    promote_model,
    read_aliases,
    resolve_alias,
    roll_back,
)
from dgate_core.models.promotion import promote_checkpoint


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "registry" / "models.json"
    monkeypatch.setenv(REGISTRY_VARIABLE, str(path))
    return path


def make_promotion(model: str) -> Promotion:
    return Promotion(model, f"hash of {model}", 1.0, "test")


def test_an_alias_moves_and_comes_back(registry: Path) -> None:
    assert resolve_alias("production") == "production"
    for model in ("first", "second", "third"):
        promote_model("production", make_promotion(model))
    assert resolve_alias("production") == "third"
    assert roll_back("production").current.model == "second"
    assert resolve_alias("production") == "second"
    alias = read_aliases()["production"]
    assert [each.model for each in alias.history] == ["first", "second"]
    assert [each.model for each in alias.withdrawn] == ["third"]
    assert json.loads(registry.read_text())["version"] == 1
    assert [path.name for path in registry.parent.iterdir()] == ["models.json"], "no claim is left"


def test_promoting_what_stands_there_changes_nothing() -> None:
    promote_model("production", make_promotion("first"))
    assert len(promote_model("production", make_promotion("first")).history) == 1


def test_the_first_model_cannot_be_rolled_back() -> None:
    promote_model("production", make_promotion("first"))
    with pytest.raises(ModelError, match="only ever stood for first"):
        roll_back("production")
    with pytest.raises(ModelError, match="did you mean 'production'"):
        roll_back("prodcution")


def test_weights_that_changed_behind_an_alias_are_refused() -> None:
    promote_model("production", make_promotion("first"))
    check_promoted("production", "hash of first")
    check_promoted("some/folder", "anything")
    with pytest.raises(ModelError, match="changed since it was promoted"):
        check_promoted("production", "other weights")


def test_a_damaged_registry_is_told(registry: Path) -> None:
    registry.parent.mkdir()
    registry.write_text('{"version": 1, "aliases": {"production": {"history": [], "withdrawn": []}}}')
    with pytest.raises(ModelError, match="damaged"):
        read_aliases()


def test_promotions_at_the_same_time_are_all_kept() -> None:
    models = [f"model-{number}" for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda model: promote_model("candidate", make_promotion(model)), models))
    assert sorted(each.model for each in read_aliases()["candidate"].history) == models


def test_promoting_checks_the_checkpoint(tmp_path: Path) -> None:
    alias = promote_checkpoint("production", "starter-unet", "gate passed")
    assert (alias.current.model, alias.current.reason) == ("starter-unet", "gate passed")
    assert len(alias.current.weights_sha256) == 64
    with pytest.raises(ModelError, match="catalogue"):
        promote_checkpoint("starter-unet", "starter-unet")
    with pytest.raises(ModelError, match="no-such"):
        promote_checkpoint("production", str(tmp_path / "no-such"))
    assert promote_checkpoint("candidate", "production").current.model == "starter-unet"
