"""Working ahead changes neither the items nor their errors, and ends when it is closed."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
import torch

from dataloading.ahead import ahead


def test_items_come_in_order_a_bounded_number_ahead() -> None:
    made: list[int] = []

    def items() -> Generator[int, None, None]:
        for i in range(20):
            made.append(i)
            yield i

    taken = []
    for i in ahead(items(), 3, "worker"):
        taken.append(i)
        assert len(made) <= len(taken) + 3
    assert taken == list(range(20))


def test_an_error_comes_in_its_place() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    got = ahead(items(), 4, "worker")
    assert next(got) == 1
    with pytest.raises(ValueError, match="broken"):
        next(got)


def test_the_thread_is_prepared_before_its_first_item() -> None:
    threads: list[str] = []

    def items() -> Generator[int, None, None]:
        assert threads
        threads.append(threading.current_thread().name)
        yield 1

    def prepare() -> None:
        threads.append(threading.current_thread().name)

    assert list(ahead(items(), 2, "worker", prepare)) == [1]
    assert threads == ["worker", "worker"]

    def refuse() -> None:
        raise ValueError("no such device")

    with pytest.raises(ValueError, match="no such device"):
        next(ahead(items(), 2, "worker", refuse))


def test_closing_ends_the_thread_and_the_source() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    got = ahead(items(), 2, "worker to be closed")
    next(got)
    got.close()
    assert closed.is_set()
    assert "worker to be closed" not in {thread.name for thread in threading.enumerate()}


def test_its_thread_computes_on_one_core_and_the_callers_go_on_as_they_were() -> None:
    def threads() -> Generator[int, None, None]:
        yield torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(ahead(threads(), depth=1, name="test")) == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
