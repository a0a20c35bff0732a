"""`python -m deploy.grafana.build` writes the dashboards as Grafana reads them.

Needs grafana-foundation-sdk, one of the development dependencies: the JSON is committed, so that nobody else does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.fleet_board import fleet_board
from deploy.grafana.learning_board import learning_board
from deploy.grafana.panels import marks
from deploy.grafana.run_board import run_board

FOLDER = Path(__file__).with_name("dashboards")
BOARDS = {"run": run_board, "fleet": fleet_board, "learning": learning_board}


def rendered(name: str) -> str:
    """The JSON text of a dashboard."""
    model = json.loads(json.dumps(BOARDS[name]().build(), cls=JSONEncoder))
    model["annotations"] = {"list": marks()}
    for number, panel in enumerate(model["panels"], start=1):
        panel["id"] = number
    return json.dumps(_without_nulls(model), indent=1, sort_keys=True) + "\n"


def _without_nulls(value: Any) -> Any:
    """The SDK writes null where nothing was said, which Grafana's schema refuses; only a threshold's first step is
    one."""
    if isinstance(value, dict):
        return {
            key: _without_nulls(item)
            for key, item in value.items()
            if item is not None or (key == "value" and "color" in value)
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in BOARDS:
        path = FOLDER / f"{name}.json"
        path.write_text(rendered(name))
        print(path)


if __name__ == "__main__":
    main()
