"""What the GPU may be reading is held until it has read it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np

from dataloading.in_flight import InFlight


class Stream:
    """Whose events are done up to the one that was recorded `done`-th."""

    def __init__(self) -> None:
        self.recorded = self.done = 0

    def record_event(self) -> Any:
        self.recorded += 1
        return Event(self, self.recorded)


class Event:
    def __init__(self, stream: Stream, number: int) -> None:
        self.stream, self.number = stream, number

    def query(self) -> bool:
        return self.number <= self.stream.done


def test_memory_is_held_until_the_stream_has_passed_it() -> None:
    stream: Any = Stream()
    in_flight, alive = InFlight(stream), []

    def lend() -> None:
        data = np.zeros(8)
        alive.append(weakref.ref(data))
        in_flight.hold([data])
        del data
        gc.collect()

    def held() -> list[bool]:
        return [memory() is not None for memory in alive]

    lend()
    lend()
    assert held() == [True, True]
    stream.done = 1
    lend()
    assert held() == [False, True, True]
    stream.done = 4
    lend()
    assert held() == [False] * 4


def test_without_a_stream_nothing_is_held() -> None:
    data = np.zeros(8)
    alive = weakref.ref(data)
    InFlight(None).hold([data])
    del data
    assert alive() is None
