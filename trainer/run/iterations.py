"""A run's iterations on one rank, and what happens between them."""

from __future__ import annotations

import time

from dataloading.batch import Batch
from dataloading.datasets.open import ImageSet
from dataloading.loader import TrainLoader
from trainer.config import Config
from trainer.learning.state import TrainState
from trainer.run.checkpoint import Checkpoint
from trainer.run.distributed import Ranks
from trainer.run.folder import RunFolder
from trainer.run.health import RollbackError, Signs, diverged
from trainer.run.history import History
from trainer.run.interval import Due
from trainer.run.ledger import Ledger
from trainer.run.log_step import LogSteps
from trainer.run.loop import Hooks, run_loop
from trainer.run.resume import resume
from trainer.run.saver import Saver
from trainer.run.signals import Requests
from trainer.run.validation import Validator
from trainer.run.verdict import judge
from trainer.run.watchdog import Watchdog
from trainer.telemetry.telemetry import Telemetry
from trainer.telemetry.window import Reading


class Iterations:
    """Log steps, checkpoints, evaluations, and going back to the newest checkpoint.

    history  of the whole run until now
    """

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
        self.due = Due(config.checkpoint.interval)
        signs = Signs(config.sample_weights.epsilon if config.sample_weights.enabled else None)
        self.log_steps = LogSteps(images, ranks, telemetry, watchdog, signs)
        self.validator = Validator(images, ranks, telemetry, requests, watchdog, signs)
        self.history, self.num_rollbacks = History(), 0
        self.found: Checkpoint | None = None
        self.ledger: Ledger | None = None
        if config.run.record_ids:
            self.ledger = Ledger(folder.path, ranks.rank, began=ranks.gather([time.time()])[0])

    def run(self, last: int) -> bool:
        """Iterations up to the `last` one, again from the newest checkpoint where one has to go back; False where a
        signal ended them early."""
        hooks = Hooks(self.log, self.trained, self.between)
        while self.state.progress.iteration < last:
            try:
                if self.owes_evaluation() and not self.evaluate():
                    return False
                return run_loop(self.state, self.loader, hooks, self.requests, last)
            except RollbackError as reason:
                self.roll_back(str(reason), last)
        return True

    def owes_evaluation(self) -> bool:
        """Whether the start before ended between the save and the evaluation of an epoch."""
        iteration = self.state.progress.iteration
        ended = self.loader.ended_epoch(iteration)
        return self.evaluation_due(ended) and self.history.evaluated_at != iteration

    def evaluation_due(self, ended_epoch: int | None) -> bool:
        return ended_epoch is not None and (ended_epoch + 1) % self.config.run.evaluate_every == 0

    def roll_back(self, reason: str, last: int) -> None:
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
        self.telemetry.start(found.iteration, again=True, last=last, total=self.state.progress.total)
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

    def close(self) -> None:
        """Nothing is trained any more."""
        if self.ledger is not None:
            self.ledger.close()
