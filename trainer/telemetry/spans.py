"""How long things take on the device, without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MOST = 100_000  # spans kept where nobody reads them

Mark = torch.cuda.Event | float


def mark(device: torch.device) -> Mark:
    """Now, as the device will see it: an event in its stream on a GPU (about 5 us), else the host's clock."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Spans:
    """Begin and end of each, read once the device has passed them."""

    def __init__(self) -> None:
        self._marks: deque[tuple[Mark, Mark]] = deque(maxlen=MOST)
        self.counting = True

    def add(self, begin: Mark, end: Mark) -> None:
        self._marks.append((begin, end))

    @contextmanager
    def span(self, device: torch.device) -> Iterator[None]:
        """What is done in it, on `device`; nothing is kept inside `uncounted`."""
        if not self.counting:
            yield
            return
        begin = mark(device)
        yield
        self.add(begin, mark(device))

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        self.counting = False
        try:
            yield
        finally:
            self.counting = True

    def read(self) -> list[float]:
        """Seconds of every span since the last call; on a GPU only after waiting for what came last."""
        spans = [self._marks.popleft() for _ in range(len(self._marks))]
        return [
            end - begin if isinstance(begin, float) and isinstance(end, float) else _elapsed(begin, end)
            for begin, end in spans
        ]


def _elapsed(begin: Mark, end: Mark) -> float:
    assert isinstance(begin, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return begin.elapsed_time(end) / 1e3
