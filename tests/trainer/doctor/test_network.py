"""What ranks find of their network, where it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from trainer.doctor.network import _cpu_group
from trainer.run.distributed import Ranks


def test_a_cpu_group_that_cannot_form_is_found_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["", "connectFullMesh failed: connection refused"]
    monkeypatch.setattr(Ranks, "gather", lambda self, items: told)

    def refused(**_: Any) -> None:
        raise RuntimeError(told[1])

    monkeypatch.setattr(dist, "new_group", refused)
    for rank in range(2):
        found = _cpu_group(Ranks(rank, 2, rank, 2, torch.device("cpu")))
        assert (found.state, found.said) == ("fail", "gloo, rank 1: connectFullMesh failed: connection refused")
        assert "GLOO_SOCKET_IFNAME" in (found.remedy or "")
