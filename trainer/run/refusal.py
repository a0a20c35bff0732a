"""A refused start among torchrun's: told of once. torchrun starts its processes again whatever they ended with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.log_files import LOGS, REFUSAL
from trainer.telemetry.jsonl import read_rows

# Nothing here brings torch, which takes seconds: a start that repeats a refusal needs none of it.

_PATIENCE = 10.0  # seconds that another rank, refused too, leaves the first one for its word


@contextmanager
def refused_once(run: Path) -> Iterator[None]:
    """Keep a ValueError from within in RUN/logs/refused, where torchrun started this process and no training began.

    Further starts of the same torchrun end at once with the same line, and what started torchrun finds it there. The
    first start of a torchrun removes that of an earlier one. The first rank writes it, as it writes all of the run. A
    run that trained on another number of ranks may do so again, once lost nodes are back: its refusal is not kept.
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    if not count:
        yield
        return
    kept, is_first = run / LOGS / REFUSAL, os.environ.get("RANK") == "0"
    if count == "0" and is_first:
        with suppress(OSError):
            kept.unlink()
    elif count != "0" and (reason := why_refused(run)):
        raise ValueError(reason)
    before = _changed(run / "log.jsonl")
    try:
        yield
    except ValueError as error:
        if not is_first:  # torchrun ends all once one has ended
            until = time.monotonic() + _PATIENCE
            while time.monotonic() < until and not kept.exists():
                time.sleep(0.05)
        elif _changed(run / "log.jsonl") == before and not _is_resized(run):
            from trainer.run.folder import private_files

            temporary = kept.with_suffix(".tmp")
            with suppress(OSError), private_files():  # a folder that cannot be written is refused with every start
                kept.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(" ".join(str(error).split()) + "\n")
                temporary.replace(kept)
        raise


def why_refused(run: Path) -> str:
    """The line with which the run's last start was refused, "" for none."""
    try:
        return (run / LOGS / REFUSAL).read_text(errors="replace").strip()
    except OSError:
        return ""


def _is_resized(run: Path) -> bool:
    sizes = [row.get("world_size") for row in read_rows(run / "log.jsonl") if row["event"] == "start"]
    return bool(sizes) and sizes[-1] not in (None, int(os.environ.get("WORLD_SIZE", "1")))


def _changed(log: Path) -> int:
    try:
        return log.stat().st_mtime_ns
    except OSError:
        return 0
