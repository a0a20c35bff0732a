"""Where a run's metrics are found: addresses in its folder, and a file that Prometheus' file_sd follows."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


def reached_at(address: str, port: int, host: str = "") -> str:
    """`host:port` for scrapers of an endpoint that listens on `address`: all addresses of a machine have its name."""
    name = host or (socket.gethostname() if address in ("0.0.0.0", "::", "") else address)
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


class AddressFile:
    """`metrics/rank-R.json` of the run folder: this rank's address, while it listens."""

    def __init__(self, run_folder: Path, rank: int, url: str) -> None:
        self._path = run_folder / "metrics" / f"rank-{rank}.json"
        _write(self._path, json.dumps({"rank": rank, "url": url}))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def read_address(run_folder: Path, rank: int = 0) -> str | None:
    """URL of a rank's endpoint, as the run wrote it; None where it has none, or is over."""
    try:
        return str(json.loads((run_folder / "metrics" / f"rank-{rank}.json").read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class TargetFile:
    """One run's targets, each rank with its labels; replaced as a whole, so Prometheus never reads half a file."""

    def __init__(self, folder: Path, run: str, scheme: str = "http") -> None:
        self.path = folder / f"{run}.json"
        self._run, self._scheme = run, scheme

    def write(self, targets: Sequence[tuple[int, str]]) -> None:
        """(rank, host:port) of every rank. ValueError where the folder cannot be written."""
        labels = {"run": self._run} | ({"__scheme__": self._scheme} if self._scheme != "http" else {})
        groups: list[Mapping[str, object]] = [
            {"targets": [target], "labels": labels | {"rank": str(rank)}} for rank, target in sorted(targets)
        ]
        try:
            _write(self.path, json.dumps(groups, indent=1))
        except OSError as error:
            raise ValueError(
                f"telemetry.targets: {self.path} cannot be written ({error.strerror}); give a folder of your own that "
                f"Prometheus reads too"
            ) from error

    def remove(self) -> None:
        """The run is over: a target that is still listed and does not answer is an alert."""
        self.path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # file_sd reads *.json alone
    temporary.write_text(text + "\n")
    temporary.chmod(0o644)  # metrics' addresses are for all, whatever a run hides else
    temporary.replace(path)
