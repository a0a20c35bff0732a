"""How long a run is and what happens how often, group `run`."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.run.interval import Interval

MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class RunConfig:
    """Group `run`.

    epochs            passes over the training images
    evaluate_every    epochs between evaluations; the end of the run is always evaluated
    evaluation_batch  images per rank in one evaluation step
    log_every         iterations between log steps (each waits for the device once)
    record_ids        write every iteration's image ids to ids/rank-R.jsonl in the run folder (10 MB an epoch)
    grace             what the cluster leaves a run that it asks to stop, before it kills; told of where too short. Just
                      before it is over (a tenth, 5 s at most) the run ends, saved or not. torchrun kills after 30 s
                      unless TORCH_ELASTIC_SHUTDOWN_TIMEOUT says otherwise: the shorter time counts
    """

    epochs: int = 100
    evaluate_every: int = 1
    evaluation_batch: int = 256
    log_every: int = 10
    record_ids: bool = False
    grace: str = "60s"

    def __post_init__(self) -> None:
        for name in ("epochs", "evaluate_every", "evaluation_batch", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} is {getattr(self, name)}; it must be at least 1")
        if self.epochs > MOST_EPOCHS:
            raise ValueError(f"run.epochs is {self.epochs}; it must be at most {MOST_EPOCHS}")
        Interval.time(self.grace, "run.grace")
