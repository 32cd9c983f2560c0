"""What a training run must know about what it trains: the Objective protocol.

An objective lives in ``echat.train.objectives.<name>`` and offers two names there:

* ``Settings``: a subclass of :class:`echat.train.recipe.Recipe` with the fields only this objective has;
* ``build(recipe) -> Objective``: the module (from nothing or from a start checkpoint) and its batches.

The loop owns everything else: devices and processes, accumulation, clipping, optimiser, schedule,
checkpoints, logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from echat.train.recipe import Recipe
from echat.train.sample_eval import DecodeConfig, SampleReport


@dataclass(frozen=True)
class Loss:
    """A loss **summed** over its targets, so that micro-batches of different size add up correctly."""

    total: Tensor  # scalar, differentiable
    count: float  # number (or weight) of targets; the loop divides gradients by the count of a whole step
    parts: Mapping[str, tuple[Tensor | float, float]] = field(default_factory=dict)  # for logs: sum, count


class AnyBatch(Protocol):
    """What the loop asks of a batch."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the samples inside, to name a batch that went wrong and to count samples."""

    @property
    def padding(self) -> float:
        """Share of the positions that hold nothing."""

    def to(self, device: torch.device) -> AnyBatch: ...


class BatchSource(Protocol):
    """An endless, seeded supply of batches that can say where it stands and return there."""

    @property
    def size(self) -> int | None:
        """Samples of an epoch, on all processes together; None where there is no such thing."""

    def next(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values; after ``load_state_dict`` of them the batch that would have come comes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def shard(self, rank: int, world: int) -> None:
        """Before the first batch: give only the share of this process, one of ``world``."""

    def fast_forward(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Begin behind everything that sources in these states had begun, on whatever number of processes."""

    def close(self) -> str:
        """End what runs for it, and say what was left out and why; empty when nothing was."""


class Objective(Protocol):
    """One thing to learn: a module, its data and its loss."""

    recipe: Recipe  # with what was found out: the shape of what it starts from
    module: nn.Module  # parameter names are what ``trainable:`` patterns of the recipe match
    batches: BatchSource

    def loss(self, batch: Any) -> Loss:
        """The summed loss of a batch. Under ``parallel: fsdp`` every call runs the same Transformer blocks,
        whatever the batch holds: other processes wait for this one in each of them."""

    def validation(self) -> Iterable[Any]:
        """Batches that judge, the same ones each time; empty when the recipe names none."""

    def decode(self, config: DecodeConfig) -> SampleReport:
        """Real outputs on the first validation records; nothing where there are none."""

    def export(self, folder: Path) -> None:
        """Write what later stages and users load (the loop calls it at the end, into a temporary sibling)."""
