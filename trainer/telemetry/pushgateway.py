"""Metrics of jobs that end before anybody scrapes them: pushed now and then, and taken back at the end."""

from __future__ import annotations

import logging
import threading
from http.client import HTTPException

from prometheus_client import CollectorRegistry, delete_from_gateway, push_to_gateway

logger = logging.getLogger(__name__)

JOB, SECONDS_PER_PUSH = "earlybird", 5.0


class Pusher:
    """A thread that pushes this rank's metrics as the group (job, run, rank). A gateway that does not answer costs a
    warning, once, and not the run."""

    def __init__(self, registry: CollectorRegistry, url: str, every: float, *, run: str, rank: int) -> None:
        self._registry, self._url, self._every = registry, url, every
        self._group = {"run": run, "rank": str(rank)}
        self._warned = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._push_until_ended, name="pushgateway", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and delete the group: what is over must not be scraped for ever."""
        self._ended.set()
        self._thread.join()
        try:
            delete_from_gateway(self._url, JOB, grouping_key=self._group, timeout=SECONDS_PER_PUSH)
        except (OSError, HTTPException) as error:
            logger.warning("%s: the group of rank %s could not be deleted (%s)", self._url, self._group["rank"], error)

    def _push_until_ended(self) -> None:
        while not self._ended.wait(self._every):
            try:
                push_to_gateway(self._url, JOB, self._registry, grouping_key=self._group, timeout=SECONDS_PER_PUSH)
                self._warned = False
            except (OSError, HTTPException) as error:
                if not self._warned:
                    logger.warning("%s: metrics could not be pushed (%s)", self._url, error)
                self._warned = True
