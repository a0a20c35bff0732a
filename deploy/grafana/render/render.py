"""Pictures of the dashboards, from a live Prometheus, with Grafana's own components in a headless Chromium:

    cd deploy/grafana/render && npm install --ignore-scripts --legacy-peer-deps && npm run build && cd -
    python -m deploy.grafana.render.render http://127.0.0.1:9090 docs --run RUN [--run OTHER_RUN] [--minutes 60]

Fails where a panel could not be drawn; one that has no data says so in the picture.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILD = HERE / "build"
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="{css}"><body style="margin:0">
<div id="root"></div><script>window.BOARD={board};window.ANSWERS={answers};window.FROM={start};window.TO={end};
window.process={{env:{{NODE_ENV:"production"}}}};window.grafanaBootData={{settings:{{}},user:{{}},navTree:[]}};</script>
<script src="{script}"></script>"""
COLUMNS, ROW, TOP = 1440, 36, 56  # of page.tsx


def answers_of(server: str, board: dict[str, Any], runs: list[str], start: float, end: float) -> dict[int, list[Any]]:
    """What Prometheus says to every query of every panel, by the panel's place."""
    values = {"$__rate_interval": "1m", "$run": "|".join(runs), "$rank": ".*", "$exit": ".*"}
    found: dict[int, list[Any]] = {}
    for index, panel in enumerate(board["panels"]):
        for target in panel.get("targets", []):
            expr = target["expr"]
            for name, value in values.items():
                expr = expr.replace(name, value)
            asked = {"query": expr, "start": start, "end": end, "step": max(1.0, (end - start) / 400)}
            with urllib.request.urlopen(f"{server}/api/v1/query_range?{urllib.parse.urlencode(asked)}") as answer:
                result = json.load(answer)["data"]["result"]
            table = target.get("format") == "table"
            if table:  # an instant query: series that have ended are not there
                result = [series for series in result if series["values"][-1][0] > end - 60]
            found.setdefault(index, []).append(
                {
                    "refId": target["refId"],
                    "legend": target.get("legendFormat", ""),
                    "table": table,
                    "result": [series for series in result if series["values"]],
                }
            )
    return found


def with_data(board: dict[str, Any], answers: dict[int, list[Any]]) -> tuple[dict[str, Any], dict[int, list[Any]]]:
    """The board without the rows of which no panel has data (GPUs where there is none); their names are printed."""
    row, rows = -1, {}
    for index, panel in enumerate(board["panels"]):
        row = index if panel["type"] == "row" else row
        rows[index] = row
    full = {rows[index] for index, asked in answers.items() if any(answer["result"] for answer in asked)}
    kept = [index for index in rows if rows[index] in full]
    for index in sorted(set(rows.values()) - full):
        print(f"{board['title']}: no data in row {board['panels'][index]['title']}, which is left out")
    panels = [board["panels"][index] for index in kept]
    return board | {"panels": panels}, {new: answers[old] for new, old in enumerate(kept) if old in answers}


def draw(board: dict[str, Any], answers: dict[int, list[Any]], start: float, end: float, picture: Path) -> None:
    """RuntimeError where a panel broke."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(
            PAGE.format(
                css=(BUILD / "page.css").as_uri(),
                script=(BUILD / "page.js").as_uri(),
                board=json.dumps(board),
                answers=json.dumps(answers),
                start=start,
                end=end,
            )
        )
        height = TOP + max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) * ROW + 8
        chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        chromium += ["--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"]
        chromium += [f"--user-data-dir={folder}/profile", f"--window-size={COLUMNS},{height}", "--hide-scrollbars"]
        chromium += ["--virtual-time-budget=8000"]
        shot = [*chromium, f"--screenshot={picture.resolve()}", page.as_uri()]
        subprocess.run(shot, check=True, capture_output=True, timeout=120)
        told = [*chromium, "--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri()]
        dump = subprocess.run(told, capture_output=True, text=True, timeout=120)
    console = [line for line in dump.stderr.splitlines() if "CONSOLE" in line and "Uncaught" in line]
    broken = re.findall(r'<pre class="fault">([^\n<]*)', dump.stdout)
    if broken or console or 'data-drawn="true"' not in dump.stdout:
        raise RuntimeError(f"{picture} is not whole: {broken + console}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.render.render")
    parser.add_argument("server", help="URL of Prometheus")
    parser.add_argument("folder", type=Path, help="where dashboard-NAME.png are written")
    parser.add_argument(
        "--run", action="append", required=True, help="may be repeated; Run and Learning show the first"
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args(arguments)
    if not (BUILD / "page.js").is_file():
        parser.error(f"{BUILD} holds no page.js: run npm install and npm run build in {HERE} first")
    end = time.time()
    start = end - 60 * options.minutes
    for path in sorted((HERE.parent / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        runs = options.run if path.stem == "fleet" else options.run[:1]
        picture = options.folder / f"dashboard-{path.stem}.png"
        board, answers = with_data(board, answers_of(options.server.rstrip("/"), board, runs, start, end))
        draw(board, answers, start, end, picture)
        print(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
