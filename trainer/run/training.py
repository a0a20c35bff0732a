"""The main job: everything is checked and built, the loop runs, everything is closed."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloading.batch import Batch
from dataloading.datasets.contents import reasons
from dataloading.datasets.open import ImageSet, open_dataset
from dataloading.loader import TrainLoader
from trainer.config import Config
from trainer.learning.precision import resolve_precision
from trainer.learning.state import Progress, TrainState
from trainer.models.cost import exit_costs
from trainer.run.build import build_state, training_loader, warmup_iterations
from trainer.run.checkpoint import Checkpoint
from trainer.run.deadline import Deadline, grace_seconds
from trainer.run.distributed import Ranks, process_group
from trainer.run.folder import RunFolder, private_files
from trainer.run.health import RollbackError, Signs, diverged
from trainer.run.history import History
from trainer.run.interval import Due, Interval
from trainer.run.ledger import Ledger
from trainer.run.log_step import LogSteps
from trainer.run.loop import Hooks, train
from trainer.run.origin import begun_from
from trainer.run.phases import PHASES
from trainer.run.resume import resume, start
from trainer.run.saver import Saver
from trainer.run.signals import STOP, STOPPED, Requests, Start
from trainer.run.validation import Validator
from trainer.run.verdict import judge
from trainer.run.watchdog import BETWEEN, Watchdog
from trainer.telemetry.progress_bar import ProgressBar
from trainer.telemetry.telemetry import Telemetry
from trainer.telemetry.window import Reading

logger = logging.getLogger(__name__)


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
        training = Training(config, ranks, folder, images, loader, state, telemetry, requests, saver, watchdog)
        if found is not None:
            training.resumed(found)
        if training.ledger is not None:
            stack.enter_context(closing(training.ledger))
        try:
            return training.run(options.max_steps)
        except Exception as error:
            training.close("diverged" if isinstance(error, FloatingPointError) else "failed", reason=str(error))
            raise


class Training:
    """One run on one rank: the state, and what happens between iterations."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        folder: RunFolder,
        images: ImageSet,
        loader: TrainLoader,
        state: TrainState,
        telemetry: Telemetry,
        requests: Requests,
        saver: Saver,
        watchdog: Watchdog,
    ) -> None:
        self.config, self.ranks, self.folder, self.images = config, ranks, folder, images
        self.loader, self.state, self.telemetry, self.requests = loader, state, telemetry, requests
        self.saver, self.watchdog = saver, watchdog
        self.due, self.grace = Due(config.checkpoint.interval), grace_seconds(config.run.grace)
        signs = Signs(config.sample_weights.epsilon if config.sample_weights.enabled else None)
        self.log_steps = LogSteps(images, ranks, telemetry, watchdog, signs)
        self.validator = Validator(images, ranks, telemetry, requests, watchdog, signs)
        self.history, self.num_rollbacks, self.last = History(), 0, state.progress.total
        self.found: Checkpoint | None = None
        self.ledger: Ledger | None = None
        if config.run.record_ids:
            self.ledger = Ledger(folder.path, ranks.rank, began=ranks.gather([time.time()])[0])

    def run(self, max_steps: int) -> dict[str, Any]:
        """Train, save, evaluate; the summary."""
        progress = self.state.progress
        began = time.perf_counter()
        self.last = min(progress.total, max_steps or progress.total)
        left_out = self.images.quarantined
        if self.ranks.is_first:
            self.folder.remove_summary()  # of the start before
        self.telemetry.start(
            progress.iteration,
            left_out=reasons(left_out),
            last=self.last,
            total=progress.total,
            data=self.images.name,
            num_classes=len(self.images.classes),
            num_images=len(self.images.train) + len(self.images.heldout),
            world_size=self.ranks.world_size,
        )
        self.tell_found()
        if self.grace < Interval.time(self.config.run.grace, "run.grace"):
            self.telemetry.event(
                "torchrun is less patient than run.grace",
                grace=f"{self.grace:.0f}s",
                remedy=f"start it with TORCH_ELASTIC_SHUTDOWN_TIMEOUT at the seconds of {self.config.run.grace}",
            )
        if left_out:
            first = f"{left_out[0].name} ({left_out[0].reason})"
            self.telemetry.event("unreadable images left out", number=len(left_out), first=first)
        finished = self.train()
        if finished:
            self.saver.save(self.state, unless_done=True)
            finished = self.history.evaluated_at == progress.iteration or self.evaluate()
        self.saver.safe(self.state)
        self.tell_grace()
        complete = progress.iteration >= progress.total
        scores = self.history.scores
        summary = self.close(
            "preempted" if not finished else "completed" if complete else "stopped",
            images_per_second=self.history.images_per_second,
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

    def train(self) -> bool:
        """Iterations up to the last one, again from the newest checkpoint where one has to go back; False where a
        signal ended them early."""
        hooks = Hooks(self.log, self.trained, self.between)
        while self.state.progress.iteration < self.last:
            try:
                if self.owes_evaluation() and not self.evaluate():
                    return False
                return train(self.state, self.loader, hooks, self.requests, self.last)
            except RollbackError as reason:
                self.roll_back(str(reason))
        return True

    def owes_evaluation(self) -> bool:
        """Whether the start before ended between the save and the evaluation of an epoch."""
        iteration = self.state.progress.iteration
        ended = self.loader.ended_epoch(iteration)
        return self.evaluation_due(ended) and self.history.evaluated_at != iteration

    def evaluation_due(self, ended_epoch: int | None) -> bool:
        return ended_epoch is not None and (ended_epoch + 1) % self.config.run.evaluate_every == 0

    def roll_back(self, reason: str) -> None:
        """Set the state to the newest checkpoint; FloatingPointError where that was done too often or there is none."""
        left_at = self.state.progress.iteration
        self.saver.settle(block=True)
        self.ranks.barrier()
        self.num_rollbacks += 1
        found = None
        if self.num_rollbacks <= self.config.health.max_rollbacks:
            found = resume(self.state, self.folder, self.images, self.ranks)
        if found is None:  # alike on all ranks, as what the saver knows is not: only the first one writes
            raise diverged(reason, left_at, self.saver.saved_at, self.config)
        self.state.guard.forget()
        self.log_steps.forget()
        if self.ledger is not None:
            self.ledger.began = self.ranks.gather([time.time()])[0]
        self.resumed(found)
        self.telemetry.start(found.iteration, again=True, last=self.last, total=self.state.progress.total)
        self.telemetry.rolled_back(reason=reason, left_at=left_at, number=self.num_rollbacks)
        self.tell_found()

    def resumed(self, found: Checkpoint) -> None:
        """The state is that of a checkpoint: what the run had logged until then counts on."""
        self.found = found
        self.saver.asked_at = self.saver.saved_at = found.iteration
        self.history = History.read(self.folder.log_file, found.iteration, self.ranks)

    def tell_found(self) -> None:
        """Which checkpoint training goes on from, and which it could not."""
        if self.found is not None:
            for name, reason in self.found.passed_over:
                self.telemetry.event("checkpoint passed over", folder=name, reason=reason)
            self.telemetry.event("goes on from", folder=self.found.folder.name, iteration=self.found.iteration)

    def tell_grace(self) -> None:
        """How long a stop took that was asked for (one that takes too long is ended by Deadline)."""
        if self.requests.asked_at is not None:
            took = round(time.monotonic() - self.requests.asked_at, 1)
            self.telemetry.event("stopped within its grace", seconds=took, grace=f"{self.grace:.0f}s")

    def log(self, state: TrainState, reading: Reading) -> None:
        """A log step. FloatingPointError where a loss is no longer finite, naming the step."""
        self.history.trained(reading)
        self.saver.iteration_seconds = self.log_steps.log(state, reading, self.due.interval)
        self.judge(None if reading.finite else f"a training loss is not finite (by exit: {reading.loss})")

    def judge(self, seen: str | None = None) -> None:
        judge(self.state, self.ranks, self.telemetry, self.saver.saved_at, seen)

    def trained(self, batch: Batch) -> None:
        """An iteration is done."""
        self.watchdog.beat()
        self.telemetry.beat()
        iteration = self.state.progress.iteration
        self.log_steps.trained(iteration, batch)
        if self.ledger is not None:
            self.ledger.write(iteration - 1, batch.ids)

    def between(self, ended_epoch: int | None, stop: bool, save: bool) -> bool:
        """After every iteration, on every rank: save and evaluate where that is due. True where training must end."""
        iteration = self.state.progress.iteration
        done = None if ended_epoch is None else ended_epoch + 1
        if done is not None:
            self.telemetry.epoch_ended()
        if self.due.interval.seconds is None:
            save = save or self.due.after(iteration, done)
        elif self.ranks.is_first and self.due.after(iteration, done):
            self.requests.ask_to_save()  # one clock decides, all ranks follow in a later iteration
            self.due.restart()
        if save or stop:
            self.judge()  # nothing is saved behind an update that should have ended the run
            self.due.restart()
            self.saver.save(self.state)
        else:
            self.saver.settle()
        if not stop and self.evaluation_due(ended_epoch):
            stop = not self.evaluate()
        if stop:
            self.saver.safe(self.state)
        return stop

    def evaluate(self) -> bool:
        """Score every exit, keep the best checkpoint; False where that was given up, since a stop was asked for."""
        scores = self.validator.evaluate(self.state)
        if scores is None:
            return False
        self.saver.settle()
        self.history.evaluated(scores, self.state.progress.iteration)
        top1 = scores[-1]["top1"]
        if self.config.checkpoint.keep_best and top1 > self.history.best and self.saver.keep_best(self.state, top1):
            self.history.best = top1
        return True
