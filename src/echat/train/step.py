"""Progress of a run, statistics of an optimizer step, and the checks that skip a step or abort the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from echat.train.objective import AnyBatch, Loss
from echat.train.recipe import GuardConfig


@dataclass
class Progress:
    """Progress of a run: counters, budget used, best validation loss."""

    step: int = 0  # optimizer steps, skipped ones included
    samples: int = 0  # samples seen
    seconds: float = 0.0  # wall clock spent, over all resumed parts
    skipped: int = 0  # steps not taken
    skipped_in_row: int = 0  # of them the latest
    usual_norm: float = 0.0  # running mean of the gradient's norm
    best_step: int = 0  # with the lowest validation loss
    best_loss: float = float("inf")
    frozen: str = ""  # hash of the frozen weights; empty: there are none, or all are stored
    world: int = 0  # processes of the run; 0: not noted by earlier versions


@dataclass
class StepStats:
    """Statistics of one optimizer step: summed loss, targets and samples, sums and counts per part."""

    total: float = 0.0
    count: float = 0.0
    samples: int = 0
    padding: list[float] = field(default_factory=list)  # of each micro-batch
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)
    batches: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)  # loss and keys of each
    norm: float = 0.0  # of the gradients; alike on all ranks, which share them
    seconds: float = 0.0  # that the run has lasted
    terminated: bool = False  # was the run asked to stop?
    save_is_due: bool = False  # by the clock

    def add(self, loss: Loss, batch: AnyBatch) -> None:
        total = float(loss.total)
        self.total += total
        self.count += loss.count
        self.samples += len(batch.keys)
        self.padding.append(batch.padding)
        found = {name: (float(part), float(size)) for name, (part, size) in loss.parts.items()}
        self.parts = sum_parts([self.parts, found])
        self.batches.append((total, batch.keys))

    def means(self) -> dict[str, float]:
        return {name: part / max(size, 1.0) for name, (part, size) in sorted(self.parts.items())}


def reduce_stats(shares: Sequence[StepStats]) -> StepStats:
    """The statistics of all ranks together, by the clock of the first."""
    return StepStats(
        total=sum(share.total for share in shares),
        count=sum(share.count for share in shares),
        samples=sum(share.samples for share in shares),
        padding=[padding for share in shares for padding in share.padding],
        parts=sum_parts([share.parts for share in shares]),
        batches=[batch for share in shares for batch in share.batches],
        norm=shares[0].norm,
        seconds=shares[0].seconds,
        terminated=any(share.terminated for share in shares),
        save_is_due=shares[0].save_is_due,
    )


def sum_parts(values: list[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Sums and counts per name over all processes."""
    total: dict[str, tuple[float, float]] = {}
    for one in values:
        for name, (part, count) in one.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + part, before[1] + count)
    return total


# --- Skipped steps: losses that are not finite, exploding gradients.

NORM_DECAY = 0.98  # weight of the past in the usual norm
NORM_WARMUP_STEPS = 100  # steps before a norm can be too large


class TrainingStopped(ValueError):
    """Training cannot go on; the message says at which step and what to do."""


def step_error(config: GuardConfig, progress: Progress, loss: float, norm: float) -> str | None:
    """Why the next optimizer step must be skipped, or None."""
    if not math.isfinite(loss):
        return f"expected a finite loss, found {loss}"
    if not math.isfinite(norm):
        return f"expected finite gradients, found a norm of {norm}"
    taken = progress.step - progress.skipped
    if taken >= NORM_WARMUP_STEPS and norm > config.explosion * progress.usual_norm:
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
    progress.usual_norm = (
        NORM_DECAY * progress.usual_norm + (1 - NORM_DECAY) * norm if progress.usual_norm else norm
    )


def abort_if_diverged(config: GuardConfig, progress: Progress, reason: str, dump: str) -> None:
    """Raise TrainingStopped when too many steps in a row were skipped."""
    if progress.skipped_in_row >= config.patience:
        raise TrainingStopped(
            f"step {progress.step}: {progress.skipped_in_row} steps in a row were skipped, at last because: "
            f"{reason}; the weights are those of step {progress.step - progress.skipped_in_row}. "
            f"The samples are named in {dump}: look at them, or lower optimizer.lr, and resume"
        )
