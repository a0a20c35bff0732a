"""What scrapes are answered with, written once for as many as ask before anything has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

SECONDS = 1.0  # that an answer may be old: ages and rates are computed when it is written
_MOST = 8  # kinds of requests that are remembered; Prometheus and a browser make two
_ASKED = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING")

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Answers:
    """A WSGI application in front of `app`, which writes text in Python, and so holds up the thread that trains.

    version  a number that is another one whenever what `app` says has changed
    """

    def __init__(self, app: App, version: Callable[[], int]) -> None:
        self._app, self._version = app, version
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, ...], tuple[int, float, tuple[Any, ...], list[bytes]]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = tuple(environ.get(name, "") for name in _ASKED)
        with self._lock:  # those that ask at once wait for one answer
            version, now = self._version(), time.monotonic()
            found = self._kept.get(asked)
            if found is None or found[0] != version or now - found[1] > SECONDS:
                head: list[tuple[Any, ...]] = []
                body = list(self._app(environ, lambda *said: head.append(said)))
                found = version, now, head[0], body
                if len(self._kept) >= _MOST:
                    self._kept.clear()
                self._kept[asked] = found
        start_response(*found[2])
        return found[3]
