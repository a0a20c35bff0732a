"""The main job: everything is checked and built, the loop runs, everything is closed."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloading.batch import Batch
from dataloading.datasets.contents import reasons
from dataloading.datasets.open import ImageSet, open_dataset
from dataloading.loader import TrainLoader, evaluation_loader, train_loader
from trainer.config import Config, to_dict
from trainer.evaluation.anytime import AnytimeRow, anytime
from trainer.learning.precision import resolve_precision
from trainer.learning.state import Progress, TrainState
from trainer.run import snapshot
from trainer.run.build import build_state, warmup_iterations
from trainer.run.checkpoint import CheckpointError, load_latest, save_checkpoint
from trainer.run.distributed import Ranks, process_group
from trainer.run.folder import RunFolder
from trainer.run.interval import Due
from trainer.run.loop import Hooks, train
from trainer.run.signals import Requests
from trainer.telemetry.jsonl import read_log
from trainer.telemetry.progress_bar import ProgressBar
from trainer.telemetry.telemetry import Telemetry
from trainer.telemetry.window import Reading

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What belongs to one start and not to the run: its folder, an early stop (0 = none), the device."""

    run: Path
    max_steps: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"--max-steps is {self.max_steps}; give a positive number of iterations, 0 for all")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--device is {self.device!r}; it must be auto, cpu or cuda")


def run_training(config: Config, options: Options) -> dict[str, Any]:
    """Train `config` in its run folder, from the newest checkpoint there; returns the summary that is written there.

    Raises ValueError for input that cannot work, before anything is trained, and FloatingPointError for a loss that
    is no longer finite: the newest checkpoint is then the last good state.
    """
    with ExitStack() as stack:
        ranks = stack.enter_context(process_group(options.device))
        resolve_precision(config.precision, ranks.device)  # refuses before any image is read
        folder = RunFolder(options.run)
        folder.check(config)
        with closing(ProgressBar()) as progress:  # the first look at a large set reads every image's header
            images = open_dataset(config.data, config.seed, progress=progress if ranks.is_first else None)
        loader = train_loader(
            config.data,
            images.train,
            seed=config.seed,
            update_batch=config.optim.update_batch,
            accumulation=config.optim.accumulation,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
        )
        stack.enter_context(closing(loader))
        total = loader.num_iterations(config.run.epochs)
        start = Progress(0, total, warmup_iterations(config, total))
        state = build_state(config, len(images.classes), start, ranks)
        passed_over = resume(state, folder, images)
        if ranks.is_first:  # only now: a start that is refused leaves everything as it was
            folder.claim(config)
        ranks.barrier()
        telemetry = Telemetry(
            config.telemetry,
            folder.path,
            rank=ranks.rank,
            local_rank=ranks.local_rank,
            title=config.recipe,
            num_iterations=total,
            num_epochs=config.run.epochs,
            device=ranks.device.type,
        )
        stack.enter_context(closing(telemetry))
        requests = stack.enter_context(closing(Requests()))
        training = Training(config, ranks, folder, images, loader, state, telemetry, requests)
        if passed_over is not None:
            training.resumed(passed_over)
        return training.run(options.max_steps)


def resume(state: TrainState, folder: RunFolder, images: ImageSet) -> tuple[tuple[str, str], ...] | None:
    """Set `state` to the folder's newest whole checkpoint. Every rank reads it for itself.

    Returns (name, reason) of the newer ones that are not whole, or None where there is no checkpoint at all.
    ValueError where it is of another net or of other images.
    """
    checkpoint = load_latest(folder.path)
    if checkpoint is None:
        return None
    theirs = checkpoint.meta.get("data_fingerprint")
    if theirs != images.fingerprint:
        raise ValueError(
            f"--run {folder.path} was trained on other images (fingerprint {str(theirs)[:12]}, now "
            f"{images.fingerprint[:12]}); give the same data or --run another folder"
        )
    snapshot.restore(state, checkpoint.tensors, checkpoint.meta["state"])
    return checkpoint.passed_over


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
    ) -> None:
        self.config, self.ranks, self.folder, self.images = config, ranks, folder, images
        self.loader, self.state, self.telemetry, self.requests = loader, state, telemetry, requests
        self.due = Due(config.checkpoint.interval)
        self.last = state.progress.total
        self.saved_at = self.evaluated_at = -1
        self.scores: list[AnytimeRow] = []
        self.passed_over: tuple[tuple[str, str], ...] = ()
        self.trained_images, self.trained_seconds = 0, 0.0  # of the whole run, all its starts together
        self.unreadable: list[tuple[int, int, str]] = []  # iteration, row, reason; of this rank, since the log step

    def run(self, max_steps: int) -> dict[str, Any]:
        """Train, save, evaluate; the summary."""
        progress = self.state.progress
        began = time.perf_counter()
        self.last = min(progress.total, max_steps or progress.total)
        left_out = self.images.quarantined
        self.telemetry.start(
            progress.iteration,
            left_out=reasons(left_out),
            last=self.last,
            total=progress.total,
            data=self.images.name,
        )
        for name, reason in self.passed_over:
            self.telemetry.event("checkpoint passed over", folder=name, reason=reason)
        if left_out:
            first = f"{left_out[0].name} ({left_out[0].reason})"
            self.telemetry.event("unreadable images left out", number=len(left_out), first=first)
        finished = True
        if progress.iteration < self.last:
            hooks = Hooks(self.log, self.replaced, self.between)
            finished = train(self.state, self.loader, hooks, self.requests, self.last)
        if finished:
            if self.saved_at != progress.iteration:
                self.save()
            if self.evaluated_at != progress.iteration:
                self.evaluate()
        complete = progress.iteration >= progress.total
        summary = {
            "status": "preempted" if not finished else "completed" if complete else "stopped",
            "recipe": self.config.recipe,
            "iterations": progress.iteration,
            "images_per_second": self.trained_images / self.trained_seconds if self.trained_seconds else 0.0,
            "exits": [{key: row[key] for key in ("exit", "top1", "top5", "loss")} for row in self.scores],
            "seconds": time.perf_counter() - began,
            "num_validation_images": self.scores[0]["num_images"] if self.scores else 0,
            "data": self.images.name,
            "data_fingerprint": self.images.fingerprint,
        }
        if self.ranks.is_first:
            self.folder.write_summary(summary)
        self.telemetry.close(status=summary["status"], iteration=progress.iteration)
        self.ranks.barrier()  # torchrun ends the others once one rank has left: none may while the first one writes
        return summary

    def resumed(self, passed_over: tuple[tuple[str, str], ...]) -> None:
        """The state is that of a checkpoint: what the run had logged until then counts on."""
        self.passed_over = passed_over
        iteration = self.saved_at = self.state.progress.iteration
        for row in read_log(self.folder.log_file):
            if row["event"] == "train" and row["iteration"] <= iteration:
                self.trained_images += row["images"]
                self.trained_seconds += row["seconds"]
            if row["event"] == "eval" and row["iteration"] == iteration:
                self.scores, self.evaluated_at = row["exits"], iteration

    def log(self, state: TrainState, reading: Reading) -> None:
        """A log step. FloatingPointError where a loss is no longer finite, naming the step."""
        progress = state.progress
        self.trained_images += reading.images
        self.trained_seconds += reading.seconds
        epoch = progress.iteration * 2 * self.config.optim.update_batch / len(self.images.train)
        row = reading.row() | {"iteration": progress.iteration, "epoch": epoch, "learning_rate": state.lr}
        for iteration, image, reason in self.ranks.gather(self.unreadable):
            self.telemetry.bad_image(reason, iteration=iteration, row=image, name=self.images.train.name(image))
        self.unreadable = []
        self.telemetry.train(row)
        if not reading.finite:
            raise self.diverged(f"a training loss is not finite (by exit: {reading.loss})")

    def diverged(self, what: str) -> FloatingPointError:
        """The error that ends a run whose numbers are no longer finite; `what` was seen first."""
        kept = f"the checkpoint of iteration {self.saved_at} is good" if self.saved_at >= 0 else "nothing was saved yet"
        return FloatingPointError(
            f"training diverged: {what} after iteration {self.state.progress.iteration}; {kept}. Train in another "
            f"--run folder with a lower optim.base_lr (it is {self.config.optim.base_lr}) or, if it was in half "
            f"precision, with precision.dtype=float32"
        )

    def replaced(self, images: tuple[tuple[int, str], ...]) -> None:
        """Images of the last batch that could not be read: others took their places. Told at the next log step."""
        self.unreadable += [(self.state.progress.iteration, row, reason) for row, reason in images]

    def between(self, ended_epoch: int | None, stop: bool, save: bool) -> None:
        """After every iteration, on every rank: save and evaluate where that is due."""
        iteration = self.state.progress.iteration
        done = None if ended_epoch is None else ended_epoch + 1
        if self.due.interval.seconds is None:
            save = save or self.due.after(iteration, done)
        elif self.ranks.is_first and self.due.after(iteration, done):
            self.requests.ask_to_save()  # one clock decides, all ranks follow in a later iteration
            self.due.restart()
        if save or stop:
            self.save()
        if done is not None and not stop and done % self.config.run.evaluate_every == 0:
            self.evaluate()

    def save(self) -> None:
        """Write a checkpoint: the state is the same on every rank, the first one writes.

        FloatingPointError where it is no longer finite: it must not push a good checkpoint out.
        """
        progress = self.state.progress
        if not snapshot.is_finite(self.state):
            raise self.diverged("a weight of the net is not finite")
        self.due.restart()
        if self.ranks.is_first:
            began = time.perf_counter()
            tensors, values = snapshot.take(self.state)
            meta = {
                "config": to_dict(self.config),
                "state": values,
                "data_fingerprint": self.images.fingerprint,
                "classes": list(self.images.classes),
            }
            keep = self.config.checkpoint.keep
            try:
                folder = save_checkpoint(self.folder.path, progress.iteration, tensors, meta, keep)
            except CheckpointError as error:
                if progress.iteration == self.last:
                    raise  # nothing would be left of the run's end
                self.telemetry.event("checkpoint failed", iteration=progress.iteration, reason=str(error))
                return  # the disk may be freed before the next one is due
            self.telemetry.checkpoint(progress.iteration, seconds=time.perf_counter() - began, folder=folder)
        self.saved_at = progress.iteration

    def evaluate(self) -> None:
        """Score every exit on the validation images, each exactly once over all ranks."""
        began = time.perf_counter()
        loader = evaluation_loader(
            self.config.data,
            self.images.val,
            batch_size=self.config.run.evaluation_batch,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            device=self.ranks.device,
        )
        unreadable: list[str] = []

        def noted() -> Iterator[Batch]:
            for batch in loader:
                unreadable.extend(reason for _, reason in batch.replaced)
                yield batch

        with closing(loader):
            self.scores = anytime(self.state.network.module, noted(), self.state.network.precision)
        self.evaluated_at = self.state.progress.iteration
        seconds = time.perf_counter() - began
        self.telemetry.evaluation(
            self.scores,
            split="val",
            iteration=self.evaluated_at,
            seconds=seconds,
            unreadable=Counter(self.ranks.gather(unreadable)),
        )
