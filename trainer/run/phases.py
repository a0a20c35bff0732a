"""What the watchdog calls what it finds the training thread in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.learning.meta_gradient import meta_step
from trainer.run.loop import run_loop
from trainer.run.saver import Saver
from trainer.run.validation import Validator
from trainer.telemetry.window import Window

PHASES: dict[Callable[..., Any], str] = {
    Window.fetched: "data",
    run_loop: "train",
    meta_step: "meta",
    Window.read: "log",
    Validator.evaluate: "evaluation",
    Saver.save: "checkpoint",
    Saver.settle: "checkpoint",
    Saver.keep_best: "checkpoint",
}
