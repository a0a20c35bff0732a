"""Where tests find the real images and the reference vectors."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent


# A busy machine is no failure: no example is timed.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Under nohup the tests' runs would leave SIGHUP ignored, as they should: what they inherit is the usual.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{variable}: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real image archives (EARLYBIRD_DATA)."""
    return _folder("EARLYBIRD_DATA", ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def vectors_folder() -> Path:
    """Folder of reference numbers (EARLYBIRD_VECTORS)."""
    return _folder("EARLYBIRD_VECTORS", ROOT.parent / "shared" / "vectors")
