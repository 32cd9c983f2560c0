"""The Objective protocol: a module, its batches and its loss, as the trainer needs them.

An objective lives in ``echat.train.objectives.<name>`` and offers two names there:

* ``Settings``: a subclass of :class:`echat.train.recipe.Recipe` with the fields only this objective has;
* ``build(recipe) -> Objective``: the module (with random or given weights) and its batches.

The trainer owns everything else: devices and processes, gradient accumulation and clipping, optimizer,
schedule, checkpoints, logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from echat.train.recipe import DecodeConfig, Recipe


@dataclass(frozen=True)
class Loss:
    """A loss **summed** over its targets, so that micro-batches of different size add up correctly."""

    total: Tensor  # scalar, differentiable
    count: float  # number (or weight) of targets; the trainer divides gradients by the count of a whole step
    parts: Mapping[str, tuple[Tensor | float, float]] = field(default_factory=dict)  # for logs: sum, count


@dataclass(frozen=True)
class SampleOutput:
    """One decoded output (hypothesis) beside its reference."""

    key: str
    task: str
    reference: str = ""
    hypothesis: str = ""
    question: str | None = None  # path of the input audio
    waveform: Tensor | None = None  # (samples,) the output audio
    rate: int | None = None  # Hz, of it


@dataclass(frozen=True)
class SampleReport:
    """Metrics of decoded outputs, and some of the outputs in full."""

    metrics: Mapping[str, float] = field(default_factory=dict)  # such as asr/word_errors
    samples: Sequence[SampleOutput] = ()


class AnyBatch(Protocol):
    """The interface of a batch."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of its samples, for error messages and counts."""

    @property
    def padding(self) -> float:
        """Fraction of the positions that are padding."""

    def to(self, device: torch.device) -> AnyBatch: ...


class BatchSource(Protocol):
    """A data loader: an endless, seeded stream of batches whose position can be saved and restored."""

    @property
    def size(self) -> int | None:
        """Samples of an epoch, on all processes together; None where there is no epoch."""

    def next(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]:
        """The position as plain values; after ``load_state_dict`` of them the next batch is the same."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def shard(self, rank: int, world: int) -> None:
        """Before the first batch: give only the share of this process, one of ``world``."""

    def fast_forward(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Skip everything that loaders in these states had begun, on any number of processes."""

    def close(self) -> str:
        """Stop its workers; what was left out and why, empty when nothing was."""


class Objective(Protocol):
    """A training objective: a module, its data and its loss."""

    recipe: Recipe  # resolved: with the shape of the initial weights
    module: nn.Module  # parameter names are what ``trainable:`` patterns of the recipe match
    batches: BatchSource

    def loss(self, batch: Any) -> Loss:
        """The summed loss of a batch. Under ``parallel: fsdp`` every call runs the same Transformer blocks,
        whatever the batch holds: the processes synchronize in each of them."""

    def validation(self) -> Iterable[Any]:
        """Validation batches, the same ones each time; empty when the recipe names none."""

    def decode(self, config: DecodeConfig) -> SampleReport:
        """Decoded outputs on the first validation records, with metrics; empty where there are none."""

    def export(self, folder: Path) -> None:
        """Write what later stages and users load, into a temporary sibling of the folder that stays."""
