"""Rules judged by promtool; that every rule is judged at all, by these tests."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
RUNBOOK = "docs/operations.md"


def rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def cases(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load((HERE / name).read_text())["tests"])


@pytest.mark.parametrize("name", ["recording_test.yml", "alerts_test.yml"])
def test_rules_do_what_they_say(promtool: str, name: str) -> None:
    done = subprocess.run([promtool, "test", "rules", name], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("broken", ["alerts.yml", "recording.yml"])
def test_every_case_can_fail(promtool: str, prometheus_folder: Path, tmp_path: Path, broken: str) -> None:
    """With the rules of one file turned off, one by one, promtool finds a fault each time."""
    texts = {path.name: path.read_text() for path in prometheus_folder.glob("*.yml")}
    survived = []
    for rule in rules(prometheus_folder / broken):
        name = rule.get("alert") or rule["record"]
        groups = yaml.safe_load(texts[broken])
        for group in groups["groups"]:
            for other in group["rules"]:
                if name == (other.get("alert") or other["record"]):
                    other["expr"] = f"({other['expr']}) and on () vector(1) > 2"
        for file in ("recording.yml", "alerts.yml"):
            (tmp_path / file).write_text(yaml.safe_dump(groups) if file == broken else texts[file])
        kind = "alerts_test.yml" if "alert" in rule else "recording_test.yml"
        judged = [case for case in cases(kind) if name in yaml.safe_dump(case)]
        files = ["recording.yml", "alerts.yml"] if "alert" in rule else ["recording.yml"]
        (tmp_path / "test.yml").write_text(
            yaml.safe_dump({"rule_files": files, "evaluation_interval": "15s", "tests": judged})
        )
        done = subprocess.run([promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
        if not judged or done.returncode == 0:
            survived.append(name)
    assert survived == []


def test_every_alert_is_seen_to_fire_and_not_to_fire(prometheus_folder: Path) -> None:
    seen: dict[str, set[bool]] = {}
    for case in cases("alerts_test.yml"):
        for expected in case["alert_rule_test"]:
            seen.setdefault(expected["alertname"], set()).add(bool(expected["exp_alerts"]))
    alerts = [rule["alert"] for rule in rules(prometheus_folder / "alerts.yml")]
    assert seen == {alert: {True, False} for alert in alerts}


def test_every_alert_helps_a_tired_person(prometheus_folder: Path) -> None:
    page = (HERE.parents[2] / RUNBOOK).read_text()
    for rule in rules(prometheus_folder / "alerts.yml"):
        name, annotations = rule["alert"], rule["annotations"]
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert annotations["summary"].endswith("."), name
        assert annotations["runbook"] == f"{RUNBOOK}, When an alert comes: {name}"
        assert f"| `{name}` |" in page, f"{RUNBOOK} has no row for {name}"


def test_the_scrape_configuration_is_valid(promtool: str, prometheus_folder: Path) -> None:
    done = subprocess.run(
        [promtool, "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"],
        cwd=prometheus_folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_local_rank_of_a_pod_has_a_port(prometheus_folder: Path) -> None:
    monitor = yaml.safe_load((prometheus_folder / "podmonitor.yaml").read_text())
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"] for endpoint in endpoints] == [f"metrics-{rank}" for rank in range(8)]
    labels = [{rule["targetLabel"] for rule in endpoint["relabelings"]} for endpoint in endpoints]
    assert labels == [{"job", "run", "rank"}] * 8
    assert all(endpoint["honorLabels"] for endpoint in endpoints)
