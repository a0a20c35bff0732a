"""Dashboards as code: the committed JSON is what the code writes, and it names only metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.build import BOARDS, FOLDER, rendered
from trainer.telemetry.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = [
    rule
    for file in ("recording.yml", "alerts.yml")
    for group in yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def dashboard(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def expressions(name: str) -> list[str]:
    board = dashboard(name)
    targets = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    notes = [note["expr"] for note in board["annotations"]["list"]]
    return targets + notes + [var["query"] for var in board["templating"]["list"]]


def metrics_in(text: str) -> set[str]:
    """Names of our metrics, without what a histogram adds; names of recording rules are none."""
    for record in RECORDED:
        text = text.replace(record, "")
    names = set(re.findall(r"\bearlybird_\w+", text))
    known = {metric.name for metric in METRICS.values()}
    return {name if name in known else re.sub("_(bucket|sum|count)$", "", name) for name in names}


@pytest.mark.parametrize("name", BOARDS)
def test_the_committed_json_is_current(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == rendered(name), "run: python -m deploy.grafana.build"


@pytest.mark.parametrize("name", BOARDS)
def test_every_metric_on_a_dashboard_exists(name: str) -> None:
    known = {metric.name for metric in METRICS.values()}
    for expr in expressions(name):
        assert metrics_in(expr) <= known, expr
        for record in re.findall(r"\b\w+:earlybird_\w+:\w+", expr):
            assert record in RECORDED, expr


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    asked = [rule["expr"] for rule in RULES] + [expr for name in BOARDS for expr in expressions(name)]
    assert metrics_in("\n".join(asked)) == {metric.name for metric in METRICS.values()}


@pytest.mark.parametrize("name", BOARDS)
def test_panels_say_what_they_show(name: str) -> None:
    """Every panel has a title, a description and a data source that can be chosen; none lies on another."""
    board = dashboard(name)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    titles = [panel["title"] for panel in board["panels"] if panel["type"] != "row"]
    assert len(set(titles)) == len(titles)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    defined = {variable["name"] for variable in board["templating"]["list"]}
    asked = set(re.findall(r"\$(\w+)", "\n".join(expressions(name)))) - {"__rate_interval", "__range", "datasource"}
    assert asked <= defined


def test_everything_compose_mounts_exists() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert set(services) == {"prometheus", "alertmanager", "grafana", "dcgm"}
    mounted = [volume for service in services.values() for volume in service.get("volumes", [])]
    sources = [volume.split(":")[0] for volume in mounted if volume.startswith("./")]
    assert sources
    for source in sources:
        assert (ROOT / "deploy" / source).exists(), source
    asked = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    reached = {volume.split(":")[1] for volume in mounted if volume.endswith(":ro")}
    assert {f"/etc/prometheus/{file}" for file in asked["rule_files"]} <= reached
