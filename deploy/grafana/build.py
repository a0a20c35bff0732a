"""Writes the dashboards' JSON, which Grafana provisions: `python -m deploy.grafana.build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.fleet import fleet
from deploy.grafana.learning import learning
from deploy.grafana.panels import EVENTS
from deploy.grafana.run import run

FOLDER = Path(__file__).with_name("dashboards")
BOARDS = {"run": run, "fleet": fleet, "learning": learning}


def rendered(name: str) -> str:
    """The JSON of a dashboard."""
    plain = _without_nulls(json.loads(json.dumps(BOARDS[name]().build(), cls=JSONEncoder)))
    for number, panel in enumerate(plain["panels"], start=1):
        panel["id"] = number
    # Keys of annotations that the SDK has no name for.
    for note, (_, _, _, text) in zip(plain["annotations"]["list"], EVENTS, strict=True):
        note |= {"useValueForTime": True, "titleFormat": text, "step": "60s"}
    return json.dumps(plain, indent=1, sort_keys=True) + "\n"


def _without_nulls(value: Any) -> Any:
    # The SDK writes "options": null where none are set, which Grafana's schema refuses; a threshold's first value is
    # null rightly.
    if isinstance(value, dict):
        return {
            key: _without_nulls(item)
            for key, item in value.items()
            if item is not None or (key == "value" and "color" in value)
        }
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for board in BOARDS:
        path = FOLDER / f"{board}.json"
        path.write_text(rendered(board))
        print(path)
