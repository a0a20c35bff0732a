"""Whatever a setting is set to, a start trains or ends in one line: no traceback, no hang, no file elsewhere."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainer.config import resolve
from trainer.settings import setting_names

# Those that name files, servers or ports of this machine are left out.
NAMES = sorted(name for name in setting_names(resolve("demo", [])) if not name.startswith("telemetry."))
VALUES = st.one_of(
    st.sampled_from(
        ["-1", "0", "1", "2", "3", "5", "64", "1000000", "1000000000000", "9" * 19, "1e300", "nan", "-inf"]
    ),
    st.sampled_from(["", "none", "true", "false", "0.5", "1,1", "1,1,1", "0,0,0", ",", "1s", "1epoch", "9" * 30 + "h"]),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=6),
)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Three gigabytes more than now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (3 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@example({"model.growth": "1"})  # half of it is no channel
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=2))
def test_any_setting(earlybird: Any, little_memory: None, changed: dict[str, str]) -> None:
    del little_memory
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)  # a relative path would show
        try:
            bent = [f"{name}={value}" for name, value in changed.items()]
            outcome = earlybird.train(Path(folder) / "run", *bent, more=["--max-steps", 1])
        finally:
            os.chdir(before)
        assert outcome.code in (0, 2, 3), outcome.err
        if outcome.code:
            assert outcome.err.splitlines()[-1].startswith("earlybird: "), outcome.err
        assert set(os.listdir(folder)) <= {"run"}
