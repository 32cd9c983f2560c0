"""Which steps are not taken: losses that are no numbers, gradients out of all proportion."""

from __future__ import annotations

import math

from echat.train.checkpoints import Progress
from echat.train.recipe import GuardConfig

SLOWLY = 0.98  # weight of the past in the usual norm
USUAL_AFTER = 100  # steps before anything is out of proportion


class TrainingStopped(ValueError):
    """Training cannot go on; the message says where it stands and what to do."""


def objection(config: GuardConfig, progress: Progress, loss: float, norm: float) -> str | None:
    """Why the step that would come next must not be taken, or None."""
    if not math.isfinite(loss):
        return f"expected a finite loss, found {loss}"
    if not math.isfinite(norm):
        return f"expected finite gradients, found a norm of {norm}"
    taken = progress.step - progress.skipped
    if taken >= USUAL_AFTER and norm > config.explosion * progress.usual_norm:
        return (
            f"expected a gradient norm below {config.explosion:g} times the usual {progress.usual_norm:.3g}, "
            f"found {norm:.3g}"
        )
    return None


def count_step(progress: Progress, norm: float, skipped: bool) -> None:
    """One more step, taken or skipped. Called once per step."""
    progress.step += 1
    if skipped:
        progress.skipped += 1
        progress.skipped_in_row += 1
        return
    progress.skipped_in_row = 0
    progress.usual_norm = SLOWLY * progress.usual_norm + (1 - SLOWLY) * norm if progress.usual_norm else norm


def stop_if_hopeless(config: GuardConfig, progress: Progress, reason: str, dump: str) -> None:
    """Raise TrainingStopped when too many steps in a row were skipped."""
    if progress.skipped_in_row >= config.patience:
        raise TrainingStopped(
            f"step {progress.step}: {progress.skipped_in_row} steps in a row were skipped, at last because: "
            f"{reason}; the weights are those of step {progress.step - progress.skipped_in_row}. "
            f"The samples are named in {dump}: look at them, or lower optimizer.lr, and resume"
        )
