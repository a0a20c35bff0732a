"""How long a run that is asked to stop has."""

from __future__ import annotations

import pytest

from trainer.run.deadline import grace_seconds

RUN, FLAG, TIMEOUT = "TORCHELASTIC_RUN_ID", "PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 60),
        ({TIMEOUT: "5"}, 60),  # not torchrun's process
        ({RUN: "x"}, 30),
        ({RUN: "x", TIMEOUT: "45"}, 45),
        ({RUN: "x", TIMEOUT: "90"}, 60),
        ({RUN: "x", TIMEOUT: "90", FLAG: "20"}, 20),
    ],
)
def test_the_shorter_time_counts(environment: dict[str, str], seconds: float) -> None:
    assert grace_seconds("1min", environment) == seconds


def test_torchruns_own_time_is_what_we_take() -> None:
    """Without a word of anybody's."""
    api = pytest.importorskip("torch.distributed.launcher.api")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TIMEOUT, raising=False)
        config = api.LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)
    assert grace_seconds("1h", {RUN: "x"}) == config.shutdown_timeout
