"""Alerts fire and stay silent when they should; no query asks for what nobody exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.infra.promtool import find_promtool
from tests.reports.sample_run import BARE_RUN
from tests.telemetry.records import list_exported

FOLDER = Path(__file__).parents[2] / "infra" / "monitoring"
LANE = {"lane": "lane-0", "state": "working", "shard": None, "shards_done": 1, "ok": 9, "failed": 1, "seconds": 5.0}


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return find_promtool()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"promtool is neither installed nor to be had: {error}")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Of a server, and of a run with a lane at work and a verdict."""
    run = tmp_path_factory.mktemp("run")
    (run / "run.json").write_text(json.dumps({**BARE_RUN, "state": "running"}))
    (run / "lanes").mkdir()
    more = {"batch_size": 8, "stages": {"denoise": 1.0}, "updated_at": 1.0}
    (run / "lanes" / "lane-0.json").write_text(json.dumps({**LANE, **more}))
    (run / "evaluation").mkdir()
    (run / "evaluation" / "gate.json").write_text(json.dumps({"decision": "pass", "checks": [{"decision": "pass"}]}))
    return list_exported(str(run))


def read_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def read_dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return found


def list_panels() -> list[dict[str, Any]]:
    return [panel for panel in read_dashboard()["panels"] if panel["type"] != "row"]


def list_queries() -> list[tuple[str, str]]:
    """Where a query stands, and its text."""
    alerts = [(rule["alert"], rule["expr"]) for rule in read_rules()]
    return alerts + [(panel["title"], target["expr"]) for panel in list_panels() for target in panel["targets"]]


def find_selectors(query: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query.replace("$__rate_interval", "5m")), visit)
    return found


def ask_promtool(promtool: Path, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_and_stay_silent(promtool: Path) -> None:
    ask_promtool(promtool, "test", "rules", "alerts_test.yml")


def test_prometheus_accepts_its_configuration(promtool: Path) -> None:
    ask_promtool(promtool, "check", "config", "prometheus.yml")


def test_every_alert_is_shown_firing_and_silent() -> None:
    fires, is_silent = set(), set()
    for test in yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            (fires if case.get("exp_alerts") else is_silent).add(case["alertname"])
    names = {rule["alert"] for rule in read_rules()}
    assert fires == is_silent == names


def test_the_dashboard_is_what_its_code_builds() -> None:
    spec = spec_from_file_location("build_dashboard", FOLDER / "build_dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    assert (FOLDER / "dashboard.json").read_text() == module.build(), "run infra/monitoring/build_dashboard.py"


def test_grafanas_own_types_read_the_dashboard_without_loss() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    text = (FOLDER / "dashboard.json").read_text()
    again = JSONEncoder(sort_keys=True, indent=2).encode(Dashboard.from_json(json.loads(text)))
    assert json.loads(again) == json.loads(text)


def test_the_dashboard_shows_what_was_asked_for() -> None:
    text = json.dumps([query for _, query in list_queries()])
    for wanted in ("0.5,", "0.95,", "0.99,", "gpu_memory_used", "batch_rows", "queue_waiting", "run_rows_done"):
        assert wanted in text
    panels = list_panels()
    assert all(panel["targets"] and panel["gridPos"]["w"] == 8 for panel in panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places), "panels lie on one another"


@pytest.mark.parametrize(("place", "query"), list_queries())
def test_queries_ask_for_what_is_exported(place: str, query: str, exported: dict[str, set[str]]) -> None:
    selectors = find_selectors(query)
    assert selectors
    for selector in selectors:
        assert selector.name in exported, f"{place}: nobody exports {selector.name}"
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= exported[selector.name], f"{place}: {selector.name} has only {sorted(exported[selector.name])}"
    known = set().union(*(exported[selector.name] for selector in selectors))
    assert set(list_group_labels(query)) <= known, place


def list_group_labels(query: str) -> Iterator[str]:
    for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query):
        yield from (name.strip() for name in names.split(","))


def test_legends_and_annotations_name_labels_that_are_there(exported: dict[str, set[str]]) -> None:
    for panel in list_panels():
        for target in panel["targets"]:
            labels = set().union(*(exported[each.name] for each in find_selectors(target["expr"])))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, panel["title"]
    for rule in read_rules():
        labels = set().union(*(exported[each.name] for each in find_selectors(rule["expr"])))
        asked = re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))
        assert set(asked) <= labels, rule["alert"]
