"""The main job: everything is checked and built, the loop runs, everything is closed."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloading.datasets.contents import reasons
from dataloading.datasets.open import ImageSet, open_dataset
from trainer.config import Config
from trainer.learning.precision import resolve_precision
from trainer.learning.state import Progress, TrainState
from trainer.models.cost import exit_costs
from trainer.run.build import build_state, training_loader, warmup_iterations
from trainer.run.deadline import Deadline, grace_seconds
from trainer.run.distributed import Ranks, process_group
from trainer.run.folder import RunFolder, private_files
from trainer.run.interval import Interval
from trainer.run.iterations import Iterations
from trainer.run.origin import begun_from
from trainer.run.phases import PHASES
from trainer.run.resume import start
from trainer.run.saver import Saver
from trainer.run.signals import STOP, STOPPED, Requests, Start
from trainer.run.watchdog import BETWEEN, Watchdog
from trainer.telemetry.progress_bar import ProgressBar
from trainer.telemetry.telemetry import Telemetry


@dataclass(frozen=True)
class Options:
    """What belongs to one start and not to the run: its folder, an early stop (0 = none), the device, and the settings
    that may differ from those the folder's run was begun with."""

    run: Path
    max_steps: int = 0
    device: str = "auto"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"--max-steps is {self.max_steps}; give a positive number of iterations, 0 for all")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--device is {self.device!r}; it must be auto, cpu or cuda")


def run_training(config: Config, options: Options) -> dict[str, Any]:
    """Train `config` in its run folder, from the newest checkpoint there; returns the summary that is written there.

    Raises ValueError for input that cannot work, before anything is trained, and FloatingPointError for a loss that
    is no longer finite: the newest checkpoint is then the last good state. torchrun's restarts after that raise it too.
    """
    folder = RunFolder(options.run)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":  # it restarts whatever its processes ended with
        summary = folder.read_summary() or {}
        if summary.get("status") == "diverged":
            raise FloatingPointError(f"not started again: {summary['reason']}")
    with ExitStack() as stack:
        stack.enter_context(private_files())
        stack.enter_context(closing(Deadline(grace_seconds(config.run.grace), STOP, STOPPED)))
        starting = stack.enter_context(closing(Start()))
        record = options.run / "flight-recorder"
        ranks = stack.enter_context(process_group(options.device, record_in=record))
        resolve_precision(config.precision, ranks.device)  # refuses before any image is read
        config = begun_from(config, folder)
        folder.check(config, options.allow)
        with closing(ProgressBar()) as progress:  # the first look at a large set reads every image's header
            images = open_dataset(config.data, config.seed, progress=progress if ranks.is_first else None)
        ranks.meet("the first look at the images")
        loader = training_loader(config, images, ranks)
        stack.enter_context(closing(loader))
        total = loader.num_iterations(config.run.epochs)
        progressed = Progress(0, total, warmup_iterations(config, total))
        state = build_state(config, len(images.classes), progressed, ranks)
        found = start(state, folder, images, ranks)
        if ranks.is_first:  # only now: a start that is refused leaves everything as it was
            folder.claim(config)
            if ranks.world_size > 1 and ranks.device.type == "cuda":
                record.mkdir(exist_ok=True)  # NCCL's watchdog leaves its own record there, but makes no folder
        ranks.barrier()
        telemetry = Telemetry(
            config.telemetry,
            folder.path,
            rank=ranks.rank,
            local_rank=ranks.local_rank,
            title=config.recipe,
            num_iterations=total,
            num_epochs=config.run.epochs,
            device=ranks.device,
        )
        stack.enter_context(closing(telemetry))
        if config.telemetry.exports:
            costs = exit_costs(config.model, len(images.classes), config.data.image_size) if ranks.is_first else []
            targets = ranks.gather([(ranks.rank, telemetry.target or "")])
            telemetry.describe(targets, [cost.mul_adds for cost in costs], sorted({*PHASES.values(), BETWEEN}))
        requests = stack.enter_context(closing(Requests()))
        starting.begun = True
        described = {"data_fingerprint": images.fingerprint, "classes": list(images.classes)}
        saver = stack.enter_context(closing(Saver(config, ranks, folder, telemetry, described)))
        watchdog = Watchdog(config.health, folder.path, ranks.rank, PHASES, ranks.world_size)
        stack.enter_context(closing(watchdog))
        iterations = Iterations(config, ranks, folder, images, loader, state, telemetry, requests, saver, watchdog)
        stack.enter_context(closing(iterations))
        if found is not None:
            iterations.resumed(found)
        training = Training(config, ranks, folder, images, state, telemetry, requests, saver, iterations)
        try:
            return training.run(options.max_steps)
        except Exception as error:
            training.close("diverged" if isinstance(error, FloatingPointError) else "failed", reason=str(error))
            raise


class Training:
    """One start of a run, on one rank: its first and its last words."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        folder: RunFolder,
        images: ImageSet,
        state: TrainState,
        telemetry: Telemetry,
        requests: Requests,
        saver: Saver,
        iterations: Iterations,
    ) -> None:
        self.config, self.ranks, self.folder, self.images = config, ranks, folder, images
        self.state, self.telemetry, self.requests = state, telemetry, requests
        self.saver, self.iterations, self.grace = saver, iterations, grace_seconds(config.run.grace)

    def run(self, max_steps: int) -> dict[str, Any]:
        """Train, save, evaluate; the summary."""
        progress = self.state.progress
        began = time.perf_counter()
        last = min(progress.total, max_steps or progress.total)
        left_out = self.images.quarantined
        if self.ranks.is_first:
            self.folder.remove_summary()  # of the start before
        self.telemetry.start(
            progress.iteration,
            left_out=reasons(left_out),
            last=last,
            total=progress.total,
            data=self.images.name,
            num_classes=len(self.images.classes),
            num_images=len(self.images.train) + len(self.images.heldout),
            world_size=self.ranks.world_size,
        )
        self.iterations.tell_found()
        if self.grace < Interval.time(self.config.run.grace, "run.grace"):
            self.telemetry.event(
                "torchrun is less patient than run.grace",
                grace=f"{self.grace:.0f}s",
                remedy=f"start it with TORCH_ELASTIC_SHUTDOWN_TIMEOUT at the seconds of {self.config.run.grace}",
            )
        if left_out:
            first = f"{left_out[0].name} ({left_out[0].reason})"
            self.telemetry.event("unreadable images left out", number=len(left_out), first=first)
        finished = self.iterations.run(last)
        if finished:
            self.saver.save(self.state, unless_done=True)
            finished = self.iterations.history.evaluated_at == progress.iteration or self.iterations.evaluate()
        self.saver.safe(self.state)
        self.tell_grace()
        complete = progress.iteration >= progress.total
        history = self.iterations.history
        scores = history.scores
        summary = self.close(
            "preempted" if not finished else "completed" if complete else "stopped",
            images_per_second=history.images_per_second,
            exits=[{key: row[key] for key in ("exit", "top1", "top5", "loss")} for row in scores],
            seconds=time.perf_counter() - began,
            num_validation_images=scores[0]["num_images"] if scores else 0,
        )
        self.ranks.barrier()  # torchrun ends the others once one rank has left: none may while the first one writes
        return summary

    def close(self, status: str, **fields: Any) -> dict[str, Any]:
        """Write how this start ended, for programs and into the log; the summary."""
        iteration = self.state.progress.iteration
        summary = {
            "status": status,
            "recipe": self.config.recipe,
            "iterations": iteration,
            **fields,
            "data": self.images.name,
            "data_fingerprint": self.images.fingerprint,
        }
        if self.ranks.is_first:
            try:
                self.folder.write_summary(summary)
            except OSError as error:  # the state is safe, and the summary printed
                self.telemetry.event("summary failed", reason=str(error))
        self.telemetry.close(status=status, iteration=iteration)
        return summary

    def tell_grace(self) -> None:
        """How long a stop took that was asked for (one that takes too long is ended by Deadline)."""
        if self.requests.asked_at is not None:
            took = round(time.monotonic() - self.requests.asked_at, 1)
            self.telemetry.event("stopped within its grace", seconds=took, grace=f"{self.grace:.0f}s")
