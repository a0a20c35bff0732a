"""Work ahead of the one who waits: an iterator run by a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

from dataloading.worker_threads import compute_alone

T = TypeVar("T")


def ahead(
    items: Generator[T, None, None], depth: int, name: str, initializer: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """The same items in the same order, up to `depth` of them made before they are asked for, by a thread that calls
    `initializer` first and computes on one core.

    An exception of `items` is raised here, in its place. Closing the generator ends the thread and
    closes `items` before it returns.
    """
    made: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            compute_alone()
            initializer()
            while room.acquire() and not stop.is_set():
                made.put((next(items), None))
        except BaseException as error:  # handed over, StopIteration included: the end is an item like any other
            made.put((None, error))

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            room.release()
            yield item  # type: ignore[misc]  # None only beside an error
    finally:
        stop.set()
        room.release()
        thread.join()
        items.close()
