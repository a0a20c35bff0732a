"""FFCV as a contender of the loader's benchmark, in an environment of its own: earlybird needs it nowhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

# With TBB, numba's own choice where it finds it, FFCV's loop ran on one of two threads as soon as the machine had other
# work (one core's 825 images/s, 0.99 + 0.01 cores); with this layer on both (0.50 + 0.49). The environment may differ.
_LAYER = {"NUMBA_THREADING_LAYER": "workqueue"}
_WORKER = Path(__file__).with_name("ffcv_worker.py")


def ffcv_here() -> str:
    """This interpreter where it has ffcv, else ""."""
    return sys.executable if find_spec("ffcv") else ""


class FfcvPeer:
    """A process of `python` that runs ffcv_worker.py with `threads` decoding threads; a context manager.

    versions    of ffcv, and of what it computes with there; numba's threading layer, once the loader is compiled
    mean_bytes  of an image in FFCV's file, once that is written

    Raises ValueError where `python` cannot import ffcv.
    """

    def __init__(self, python: str, threads: int) -> None:
        self.mean_bytes = 0.0
        self._threads = threads
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  close() closes it
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                bufsize=1,
                process_group=0,  # so that close() reaches the processes that write, too
                env={
                    **_LAYER,
                    **os.environ,
                    "NUMBA_NUM_THREADS": str(threads),  # told at its start, numba allows more than there are cores
                    "OPENCV_FOR_THREADS_NUM": "1",  # it resizes in each of numba's threads, and is to add none
                    "PYTHONWARNINGS": "ignore",  # a warning is not why it ended
                },
            )
        except OSError as error:
            self._errors.close()
            raise _cannot_import(python, error.strerror or str(error)) from error
        try:
            self.versions: dict[str, str] = self._answer()
        except RuntimeError as error:
            self.close()
            raise _cannot_import(python, str(error)) from None

    def write(self, folder: Path, file: Path, *, image_size: int, batch_size: int) -> None:
        """Write the images of `folder`, one folder a class, to `file` as JPEG of their own size; compile the loader.

        Raises RuntimeError with FFCV's last words where it fails, as it does at an image that cannot be read.
        """
        task = {
            "folder": str(folder),
            "file": str(file),
            "image_size": image_size,
            "batch_size": batch_size,
            "threads": self._threads,
        }
        answer = self._ask(task)
        self.mean_bytes = answer["mean_bytes"]
        self.versions["threading_layer"] = answer["threading_layer"]

    def images_per_second(self, seconds: float, warm_up: int) -> float:
        """One round over whole batches, after `warm_up` batches."""
        answer = self._ask({"seconds": seconds, "warm_up": warm_up})
        return float(answer["images"] / answer["seconds"])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> FfcvPeer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # where it has ended, its last words say why
            self._process.stdin.write(json.dumps(question) + "\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            return dict(json.loads(line))
        except ValueError:
            self._errors.seek(0)
            said = [line.strip(), *self._errors.read().split("\n")]
            last = next((words for words in reversed(said) if words.strip()), "it ended without a word")
            raise RuntimeError(last.strip()) from None


def _cannot_import(python: str, reason: str) -> ValueError:
    return ValueError(
        f"{python} cannot import ffcv ({reason}); give --ffcv-python the interpreter of an environment that has ffcv"
    )
