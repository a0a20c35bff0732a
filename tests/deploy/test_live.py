"""Two ranks train, a real Prometheus scrapes them: every panel and every recording rule has an answer, and a stopped
rank sets off the alarm."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOARDS = ROOT / "deploy" / "grafana" / "dashboards"
# The demo's photographs and its ways, in a net so small that an epoch and its evaluation take seconds.
SMALL = """model.num_exits=2 model.first_channels=4 model.growth=2 model.growth_factors=1,1 model.bottleneck_factors=1,1
model.classifier_channels=8 weight_net.width=8 data.image_size=16 data.resize_size=16 data.num_threads=1 meta.interval=2
run.epochs=10000 run.evaluate_every=1 run.log_every=2 checkpoint.every=10steps health.watchdog_factor=0"""
# Nobody answers these where there is no GPU; test_panels_of_gpus_answer_where_there_is_one shows that they can.
NEED_A_GPU = {
    "GPU utilization, by rank",
    "GPU memory, by rank",
    "GPU allocations tried again, by rank",
    "GPU busy (DCGM)",
    "Tensor cores busy (DCGM)",
    "GPU temperature (DCGM)",
    "GPU power (DCGM)",
    "GPU clock (DCGM)",
    "GPU errors (DCGM)",
}
FILLED_IN = {"$__rate_interval": "30s", "$__range": "1m", "$run": "live", "$rank": ".*", "$exit": ".*"}


def queries() -> dict[tuple[str, str, str], str]:
    """PromQL by (dashboard, panel, letter), with Grafana's variables filled in; marks count as panels."""
    found = {}
    for path in sorted(BOARDS.glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                found[path.stem, panel["title"], target["refId"]] = target["expr"]
        for mark in board["annotations"]["list"]:
            found[path.stem, mark["name"], "mark"] = mark["expr"]
    for key, expr in found.items():
        for name in sorted(FILLED_IN, key=len, reverse=True):
            expr = expr.replace(name, FILLED_IN[name])
        assert "$" not in expr, expr
        found[key] = expr
    return found


@dataclass
class Server:
    """A Prometheus on loopback."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(
            f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
        ) as answer:
            return json.load(answer)["data"]

    def values(self, expr: str) -> list[float]:
        """What is there now and is a number."""
        samples = self.ask("query", query=expr)["result"]
        return [value for sample in samples if not math.isnan(value := float(sample["value"][1]))]


@dataclass
class Live:
    """A run under way, and who watches it."""

    server: Server
    run: Path
    targets: Path
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, what: Callable[[], bool], seconds: float, told: Callable[[], object] = str) -> None:
        """Until `what` holds."""
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, f"the run has ended: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"{told()}\n{self.log.read_text()[-1000:]}"
            time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rendered_configuration(deployed: Path, folder: Path, targets: Path) -> Path:
    """The configuration as it is shipped, but for paths, a pace of seconds, and how long two alerts wait."""
    text = (deployed / "prometheus.yml").read_text()
    config = yaml.safe_load(text.replace("/etc/prometheus/targets", str(targets)))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    del config["alerting"]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "earlybird"]
    config["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "1s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    recording, alerts = (deployed / "recording.yml").read_text(), (deployed / "alerts.yml").read_text()
    shorter, number = re.subn(r", 60\)", ", 4)", recording)
    assert number == 1
    (folder / "recording.yml").write_text(shorter)
    groups = yaml.safe_load(alerts)
    for rule in groups["groups"][0]["rules"]:
        if rule["alert"] in ("EarlybirdNoStep", "EarlybirdRankDown"):
            rule["for"] = "2s"
    (folder / "alerts.yml").write_text(yaml.safe_dump(groups))
    return folder / "prometheus.yml"


@pytest.fixture(scope="module")
def live(prometheus: str, prometheus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    targets, run = folder / "targets", folder / "live"
    targets.mkdir()
    port = free_port()
    settings = [*SMALL.split(), f"telemetry.port={free_port()}", f"telemetry.targets={targets}"]
    train = ["-m", "trainer", "train", "demo", "--device", "cpu", "--run-folder", str(run)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *train]
            + [word for setting in settings for word in ("--set", setting)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        server = subprocess.Popen(
            [
                prometheus,
                f"--config.file={rendered_configuration(prometheus_folder, folder, targets)}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=log,
        )
    live = Live(Server(f"http://127.0.0.1:{port}"), run, targets, process, folder / "log")
    try:
        live.wait(lambda: (targets / "live.json").exists(), 120)
        live.wait(lambda: len(live.server.values("run_rank:earlybird_step_limit_seconds:max")) == 2, 60)
        yield live
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
            child.kill()
        process.kill()
        server.kill()
        process.wait()
        server.wait()


def test_every_panel_and_every_recording_rule_has_data(live: Live, prometheus_folder: Path) -> None:
    asked = {key: expr for key, expr in queries().items() if key[1] not in NEED_A_GPU}
    assert len(asked) > 60
    groups = yaml.safe_load((prometheus_folder / "recording.yml").read_text())["groups"]
    asked |= {("recording.yml", rule["record"], ""): rule["record"] for group in groups for rule in group["rules"]}
    unanswered = dict(asked)

    def all_answered() -> bool:
        for key, expr in list(unanswered.items()):
            if live.server.values(expr):
                del unanswered[key]
        return not unanswered

    live.wait(all_answered, 120, lambda: unanswered)
    assert {(target["labels"]["rank"], target["health"]) for target in live.server.ask("targets")["activeTargets"]} == {
        ("0", "up"),
        ("1", "up"),
    }
    health = [rule for group in live.server.ask("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in health if rule["health"] != "ok"] == []


def test_every_rank_exports_its_own_and_the_first_what_is_reduced(live: Live) -> None:
    count = "count by (rank) ({}{{run='live'}})"
    for name, ranks in (("earlybird_images_total", {"0", "1"}), ("earlybird_exit_loss", {"0"})):
        found = live.server.ask("query", query=count.format(name))["result"]
        assert {sample["metric"]["rank"] for sample in found} == ranks, name
    (target_file,) = live.targets.glob("*.json")
    groups = {group["labels"]["rank"]: group["targets"] for group in json.loads(target_file.read_text())}
    for rank in (0, 1):
        address = json.loads((live.run / "metrics" / f"rank-{rank}.json").read_text())["url"]
        assert groups[str(rank)] == [urllib.parse.urlsplit(address).netloc]


def test_a_stopped_rank_sets_off_the_alarm(live: Live) -> None:
    """SIGSTOP of rank 1: it does not answer, and rank 0, which does, ends no step."""

    def firing() -> set[tuple[str, str]]:
        alerts = [a for a in live.server.ask("alerts")["alerts"] if a["state"] == "firing"]
        return {(a["labels"]["alertname"], a["labels"].get("rank", "")) for a in alerts}

    alarm = {("EarlybirdNoStep", "0"), ("EarlybirdRankDown", "1")}
    assert not firing() & alarm
    (worker,) = (
        child
        for child in psutil.Process(live.process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1" and "train" in child.cmdline()
    )
    worker.suspend()
    live.wait(lambda: firing() >= alarm, 60, firing)
    worker.resume()
    live.wait(lambda: not firing() & alarm, 60, firing)
    live.process.send_signal(signal.SIGTERM)
    live.process.wait(60)
    assert list(live.targets.iterdir()) == [], "a run that ended as asked is no target any more"
    assert list((live.run / "metrics").iterdir()) == []


def test_panels_of_gpus_answer_where_there_is_one(promtool: str, tmp_path: Path) -> None:
    of_ranks = "utilization_ratio memory_used_bytes memory_size_bytes memory_reserved_bytes allocation_retries_total"
    of_dcgm = "DEV_GPU_UTIL PROF_PIPE_TENSOR_ACTIVE DEV_GPU_TEMP DEV_POWER_USAGE DEV_SM_CLOCK DEV_XID_ERRORS"
    series = [f'earlybird_gpu_{name}{{run="live",rank="0"}}' for name in of_ranks.split()]
    series += [f'DCGM_FI_{name}{{gpu="0",Hostname="node"}}' for name in of_dcgm.split()]
    asked = {key: expr for key, expr in queries().items() if key[1] in NEED_A_GPU}
    assert {panel for _, panel, _ in asked} == NEED_A_GPU
    case = {
        "interval": "15s",
        "input_series": [{"series": name, "values": "1+1x40"} for name in series],
        "promql_expr_test": [
            {"expr": f"count({expr})", "eval_time": "5m", "exp_samples": [{"labels": "{}", "value": 1}]}
            for expr in asked.values()
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"evaluation_interval": "15s", "tests": [case]}))
    done = subprocess.run([promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
