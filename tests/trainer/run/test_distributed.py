"""The group of ranks: how it ends, and what is waited for without a collective call."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from trainer.run import distributed, training
from trainer.run.distributed import LostRankError, Ranks, process_group

CPU = torch.device("cpu")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first of two ranks on one node; receives what becomes of their group."""
    found: list[str] = []
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    recorder = {"TORCH_FR_BUFFER_SIZE": "10", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1", "TORCH_FR_DUMP_TEMP_FILE": "none"}
    for name, value in (told | recorder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: found.append("made"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: found.append("closed"))
    return found


@pytest.mark.parametrize("kind", [ValueError, OSError, SystemExit, KeyboardInterrupt, FloatingPointError, RuntimeError])
def test_an_exception_leaves_the_group_as_it_is(closed: list[str], kind: type[BaseException]) -> None:
    """The other ranks are in a call that this one will never come to; to close the group would wait for them."""
    with pytest.raises(kind, match="of this rank alone"), process_group("cpu"):
        raise kind("of this rank alone")
    assert closed == ["made"]
    with process_group("cpu"):
        pass
    assert closed == ["made", "made", "closed"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_lost_rank_leaves_the_calls_of_every_backend(
    closed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(distributed, "take_device", lambda *_: torch.device(device, 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with pytest.raises(LostRankError, match=r"rank-0"), process_group(device, record_in=tmp_path / "record"):
        raise dist.DistBackendError("NCCL error")
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "record").iterdir()}
    assert files.keys() == ({"rank-0.json", "rank-0-nccl.json"} if device == "cuda" else {"rank-0.json"})
    assert device == "cpu" or "nccl_comm_state" in files["rank-0-nccl.json"]
    assert closed == ["made"]


@pytest.mark.parametrize("local_world_size", [1, 2])
def test_gloos_interface_is_chosen_for_several_nodes(
    closed: list[str], monkeypatch: pytest.MonkeyPatch, local_world_size: int
) -> None:
    """Before the group is made; on one node the loopback does."""
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_world_size))
    monkeypatch.setattr(distributed, "choose_interface", closed.append)
    with process_group("cpu"):
        assert closed == (["node0", "made"] if local_world_size == 1 else ["made"])


def test_ranks_meet_however_late_one_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = dist.HashStore()  # type: ignore[attr-defined]
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    came: list[tuple[int, str]] = []

    def rank(number: int) -> None:
        ranks = Ranks(number, 3, number, 3, CPU)
        for turn in range(2):  # the same meeting again: the first one's count must not serve
            time.sleep(0.2 if number == 2 - turn else 0)
            came.append((turn, "in"))
            ranks.meet("reading headers", poll=0.01)
            came.append((turn, "out"))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(came) == 12
    for turn in range(2):
        ways = [way for when, way in came if when == turn]
        assert ways == ["in"] * 3 + ["out"] * 3
    assert "waiting for 1 of 3 ranks: reading headers" in caplog.text


def test_a_rank_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    with pytest.raises(TimeoutError, match=r"1 of 2 ranks are at it after 0 s: reading headers"):
        Ranks(0, 2, 0, 2, CPU).meet("reading headers", patience=0.05, poll=0.01)
    Ranks(0, 1, 0, 1, CPU).meet("reading headers")  # alone there is nobody to wait for


def test_training_meets_between_its_first_look_at_the_images_and_the_first_call(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    look = training.open_dataset

    def looked(*arguments: Any, **options: Any) -> Any:
        order.append("look")
        return look(*arguments, **options)

    def loader(*_: Any) -> Any:
        order.append("loader")
        raise ValueError("far enough")

    monkeypatch.setattr(training, "open_dataset", looked)
    monkeypatch.setattr(Ranks, "meet", lambda self, doing: order.append("meet"))
    monkeypatch.setattr(training, "training_loader", loader)
    assert "far enough" in earlybird("train", "demo", "--run-folder", tmp_path, "--set", "data.source=synthetic").err
    assert order == ["look", "meet", "loader"]
