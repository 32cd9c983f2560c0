"""What one optimiser step saw: the sums of its micro-batches, and of all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from echat.train.objective import AnyBatch, Loss


@dataclass
class StepSums:
    """What one optimiser step saw: summed loss, targets and samples, sums and counts per part."""

    total: float = 0.0
    count: float = 0.0
    samples: int = 0
    padding: list[float] = field(default_factory=list)  # of each micro-batch
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)
    batches: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)  # loss and keys of each
    norm: float = 0.0  # of the gradients; alike on all ranks, which share them
    seconds: float = 0.0  # that the run has lasted
    terminated: bool = False  # did somebody end the run?
    save_is_due: bool = False  # by the clock

    def add(self, loss: Loss, batch: AnyBatch) -> None:
        total = float(loss.total)
        self.total += total
        self.count += loss.count
        self.samples += len(batch.keys)
        self.padding.append(batch.padding)
        found = {name: (float(part), float(size)) for name, (part, size) in loss.parts.items()}
        self.parts = add_up([self.parts, found])
        self.batches.append((total, batch.keys))

    def means(self) -> dict[str, float]:
        return {name: part / max(size, 1.0) for name, (part, size) in sorted(self.parts.items())}


def joined(shares: Sequence[StepSums]) -> StepSums:
    """The step of all ranks together, by the clock of the first."""
    return StepSums(
        total=sum(share.total for share in shares),
        count=sum(share.count for share in shares),
        samples=sum(share.samples for share in shares),
        padding=[padding for share in shares for padding in share.padding],
        parts=add_up([share.parts for share in shares]),
        batches=[batch for share in shares for batch in share.batches],
        norm=shares[0].norm,
        seconds=shares[0].seconds,
        terminated=any(share.terminated for share in shares),
        save_is_due=shares[0].save_is_due,
    )


def add_up(values: list[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Sums and counts per name over all processes."""
    total: dict[str, tuple[float, float]] = {}
    for one in values:
        for name, (part, count) in one.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + part, before[1] + count)
    return total
