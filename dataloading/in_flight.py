"""Host memory that the GPU may be reading still."""

from __future__ import annotations

from collections import deque

import torch


class InFlight:
    """Holds what work that is queued on `stream` reads; on the CPU (None) nothing, since there work is done at once."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream
        self._held: deque[tuple[torch.cuda.Event, object]] = deque()

    def hold(self, memory: object) -> None:
        """Until all is done that `stream` has been asked for by now; looked at, without waiting, at each call."""
        if self._stream is None:
            return
        self._held.append((self._stream.record_event(), memory))
        while self._held and self._held[0][0].query():
            self._held.popleft()
