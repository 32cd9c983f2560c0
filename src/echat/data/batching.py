"""Examples become batches: sorted by length inside a pool, cut by cost, padded once at the very end.

Legend: batch, length (LLM positions), clips (audio clips in the batch), time (mel frames).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from echat.data.examples import AUDIO, IGNORE, PAD, DialogueExample, SpeechExample
from echat.data.sample import DataError
from echat.data.stream import Draw, MixtureStream

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DialogueBatch:
    """Whole dialogues as contiguous sequences, padded on the right."""

    keys: tuple[str, ...]
    tasks: tuple[str, ...]
    mel: Tensor  # (clips, time, n_mels) float32, padded with 0
    mel_lens: Tensor  # (clips,) valid frames
    kinds: Tensor  # (batch, length) 0 pad, 1 text, 2 speech row, 3 audio
    ids: (
        Tensor  # (batch, length) text id, row of the speech table, or row of the flattened valid audio frames
    )
    labels: Tensor  # (batch, length) class that this position must predict (speech id + text_size), -100 none
    writes_speech: Tensor  # (batch,) True where classes are the combined ones
    heard: Tensor  # (clips, units) words and cues of each clip as text ids, padded with 0
    heard_lens: Tensor  # (clips,) -1 = not known

    def to(self, device: torch.device) -> DialogueBatch:
        return _to(self, device)

    @property
    def padding(self) -> float:
        """Fraction of positions that are padding."""
        return float((self.kinds == PAD).float().mean())


@dataclass(frozen=True)
class SpeechBatch:
    """Clips with the units spoken in them, for CTC."""

    keys: tuple[str, ...]
    tasks: tuple[str, ...]
    mel: Tensor  # (batch, time, n_mels)
    mel_lens: Tensor  # (batch,)
    targets: Tensor  # (batch, units) 0 = padding
    target_lens: Tensor  # (batch,) -1 = words not known
    labels: Tensor  # (batch, label kinds) class index, -100 = not known

    def to(self, device: torch.device) -> SpeechBatch:
        return _to(self, device)


B = TypeVar("B")


def _to(batch: B, device: torch.device) -> B:
    if device.type == "cpu":
        return batch
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}  # type: ignore[arg-type]
    moved = {n: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for n, v in values.items()}
    return type(batch)(**moved)


def collate_dialogues(examples: Sequence[DialogueExample]) -> DialogueBatch:
    """Pad dialogues to one batch; audio positions learn their row among all valid frames of the batch."""
    length = max(len(example.ids) for example in examples)
    kinds = np.zeros((len(examples), length), np.int64)
    ids = np.zeros((len(examples), length), np.int64)
    labels = np.full((len(examples), length), IGNORE, np.int64)
    row = 0
    for index, example in enumerate(examples):
        size = len(example.ids)
        kinds[index, :size] = example.kinds
        ids[index, :size] = example.ids
        labels[index, :size] = example.labels
        audible = np.flatnonzero(example.kinds == AUDIO)
        ids[index, audible] = np.arange(row, row + len(audible))
        row += len(audible)
    mel, mel_lens = _stack([mel for example in examples for mel in example.mels])
    heard, heard_lens = _stack_ids(
        [ids for example in examples for ids in example.heard or (None,) * len(example.mels)]
    )
    return DialogueBatch(
        keys=tuple(example.key for example in examples),
        tasks=tuple(example.task for example in examples),
        mel=mel,
        mel_lens=mel_lens,
        kinds=torch.from_numpy(kinds),
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        writes_speech=torch.tensor([example.writes_speech for example in examples]),
        heard=heard,
        heard_lens=heard_lens,
    )


def collate_speech(examples: Sequence[SpeechExample]) -> SpeechBatch:
    mel, mel_lens = _stack([example.mel for example in examples])
    targets, target_lens = _stack_ids([example.targets for example in examples])
    return SpeechBatch(
        keys=tuple(example.key for example in examples),
        tasks=tuple(example.task for example in examples),
        mel=mel,
        mel_lens=mel_lens,
        targets=targets,
        target_lens=target_lens,
        labels=torch.tensor([example.labels for example in examples], dtype=torch.long),
    )


def _stack(mels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(clips, longest, n_mels) float32 with zeros to the right, and the lengths."""
    if not mels:
        return torch.zeros(0, 0, 0), torch.zeros(0, dtype=torch.long)
    lens = [len(mel) for mel in mels]
    stacked = np.zeros((len(mels), max(lens), mels[0].shape[1]), np.float32)
    for row, mel in zip(stacked, mels):
        row[: len(mel)] = mel
    return torch.from_numpy(stacked), torch.tensor(lens)


def _stack_ids(rows: Sequence[tuple[int, ...] | None]) -> tuple[Tensor, Tensor]:
    """(rows, longest) ids with zeros to the right, and the lengths; -1 where a row is not known."""
    lens = [-1 if row is None else len(row) for row in rows]
    stacked = torch.zeros(len(rows), max([1, *lens]), dtype=torch.long)
    for place, row in zip(stacked, rows):
        place[: len(row or ())] = torch.tensor(row or (), dtype=torch.long)
    return stacked, torch.tensor(lens, dtype=torch.long)


class HasCost(Protocol):
    @property
    def cost(self) -> int:
        """Size in the unit of the budget; a batch costs its count times its largest."""


E = TypeVar("E", bound=HasCost)


def cut_batches(examples: Sequence[E], budget: int, rng: random.Random) -> list[list[E]]:
    """Group examples of like cost so that count x largest cost stays within ``budget``, in random order.

    Nothing is lost: an example larger than the budget is a batch of its own.
    """
    batches: list[list[E]] = []
    for example in sorted(examples, key=lambda e: -e.cost):
        if batches and batches[-1][0].cost * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(example)
        else:
            batches.append([example])
    rng.shuffle(batches)
    return batches


class PooledBatches(Generic[E, B]):
    """Batches from a stream: draw a pool, build it, cut it, hand it out; then the next pool.

    The state is where the stream stood when the pool was drawn and how many batches were handed out since.
    """

    def __init__(
        self,
        stream: MixtureStream,
        build: Callable[[Draw], E],
        collate: Callable[[Sequence[E]], B],
        budget: int,
        pool: int = 256,
        seed: int = 0,
    ) -> None:
        self._stream, self._build, self._collate = stream, build, collate
        self._budget, self._pool, self._seed = budget, pool, seed
        self._pool_number = -1
        self._start = stream.state_dict()
        self._given = 0
        self._batches: list[list[E]] = []
        self._rank, self._world = 0, 1
        self.skipped: dict[str, str] = {}  # key -> why the record cannot be used

    def __iter__(self) -> PooledBatches[E, B]:
        return self

    def __next__(self) -> B:
        return self.next()

    def next(self) -> B:
        if self._given == len(self._batches):
            self._start = self._stream.state_dict()
            self._pool_number += 1
            self._fill()
            self._given = 0
        batch = self._collate(self._batches[self._given])
        self._given += 1
        return batch

    def _fill(self) -> None:
        draws = [self._stream.next() for _ in range(self._pool * self._world)][self._rank :: self._world]
        examples = [e for e in map(self._try, draws) if e is not None]
        if not examples:
            raise DataError(
                f"data: expected usable records, found none in {self._pool} draws; last reasons: "
                + "; ".join(f"{key}: {reason}" for key, reason in [*self.skipped.items()][-3:])
            )
        rng = random.Random((self._seed * 1_000_003 + self._pool_number) * self._world + self._rank)
        self._batches = cut_batches(examples, self._budget, rng)

    def _try(self, draw: Draw) -> E | None:
        """The one border where a bad record is caught: it is named once, counted, and left out."""
        try:
            return self._build(draw)
        except ValueError as error:
            if draw.sample.key not in self.skipped:
                _LOG.warning("left out %s: %s", draw.sample.key, error)
            self.skipped[draw.sample.key] = str(error)
            return None

    def share(self, rank: int, world: int) -> None:
        """Of every ``world`` draws take one: this process's share."""
        self._rank, self._world = rank, world

    def go_behind(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Begin a pool behind the furthest of these states; what was left of older pools comes next epoch."""
        furthest = max(states, key=lambda state: int(state["pool"]))
        self._stream.load_state_dict(furthest["stream"])
        for _ in range(self._pool * len(states) if furthest["pool"] >= 0 else 0):
            self._stream.next()
        self._pool_number, self._batches, self._given = int(furthest["pool"]), [], 0

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self._start, "pool": self._pool_number, "given": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Rebuild the pool the state points into and skip what was handed out."""
        self._start = dict(state["stream"])
        self._stream.load_state_dict(self._start)
        self._pool_number = int(state["pool"])
        self._given = int(state["given"])
        self._batches = []
        if self._pool_number >= 0:
            self._fill()


def fixed_batches(
    draws: Iterable[Draw], build: Callable[[Draw], E], collate: Callable[[Sequence[E]], B], budget: int
) -> list[B]:
    """All draws as batches in one fixed order: for validation."""
    return [collate(batch) for batch in cut_batches([build(d) for d in draws], budget, random.Random(0))]
