"""Run by tests/soak.py: the command line, and a file of two letters that says where it is.

python tests/soak_worker.py FILE train ...

The first letter is the phase of the thread that trains: s(tart), t(rain), m(eta), e(valuation), c(heckpoint); the
second is w while a checkpoint is being written behind its back, else a dash. Both are stores into a shared map, which
SIGKILL leaves as they were.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.__main__ import main
from trainer.learning import iteration
from trainer.run import iterations, saver, validation


def within(letter: str, place: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with `letter` in its place of the map while it is being executed."""

    def called(*arguments: Any, **named: Any) -> Any:
        before, where[place] = where[place], ord(letter)
        try:
            return function(*arguments, **named)
        finally:
            where[place] = before

    return called


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    file.write_bytes(b"s-")
    with file.open("r+b") as opened:
        where = mmap.mmap(opened.fileno(), 2)
    iterations.run_loop = within("t", 0, iterations.run_loop)
    iteration.meta_step = within("m", 0, iteration.meta_step)
    validation.validate = within("e", 0, validation.validate)
    saver.Saver.save = within("c", 0, saver.Saver.save)
    saver.write_checkpoint = within("w", 1, saver.write_checkpoint)
    main()
