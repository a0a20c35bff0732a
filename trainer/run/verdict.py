"""What follows an update whose loss or gradient is not finite: health.non_finite."""

from __future__ import annotations

from trainer.learning.state import TrainState
from trainer.run.distributed import Ranks
from trainer.run.health import HealthConfig, RollbackError, diverged
from trainer.telemetry.telemetry import Telemetry


def judge(state: TrainState, ranks: Ranks, telemetry: Telemetry, saved_at: int, seen: str | None = None) -> None:
    """Follow health.non_finite where updates were left out since the last time; waits for the device.

    saved_at  iteration of the newest checkpoint, -1 without one
    seen      what else is known to be not finite
    Raises FloatingPointError where the run must end, RollbackError where it must go back.
    """
    health, scaled, guard, iteration = state.config.health, state.scaled, state.guard, state.progress.iteration
    left_out, in_a_row = guard.read()
    culprits = ranks.gather([guard.culprit(ranks.rank)]) if left_out else []  # alike on every rank
    guard.forget_losses()
    where = "; ".join(str(culprit) for culprit in culprits if culprit is not None)
    if left_out:
        telemetry.skipped_step("fp16_overflow" if scaled else "non_finite", left_out, iteration=iteration)
        if not scaled:
            telemetry.event("not finite", iteration=iteration, updates=left_out, where=where or "a gradient")
    what = verdict(health, scaled, left_out, in_a_row, seen)
    if what is None:
        return
    if left_out:
        what += f" ({left_out} updates were left out, {in_a_row} in a row{f'; first on {where}' if where else ''})"
    if health.non_finite == "rollback":
        raise RollbackError(what)
    raise diverged(what, iteration, saved_at, state.config)


def verdict(health: HealthConfig, scaled: bool, left_out: int, in_a_row: int, seen: str | None) -> str | None:
    """What the run cannot go on with; None where it can.

    scaled    there is a loss scale, which is found by overflowing: updates are skipped whatever the policy
    left_out  updates since the last time, `in_a_row` of them at its end; seen  what else is not finite
    """
    if not left_out:
        return seen
    if (health.non_finite == "skip" or scaled) and in_a_row <= health.max_skips:
        return None
    return seen or "a gradient is not finite"
