"""The endless mixture: which sample serves which task next.

The order is a pure function of the seed and of how many draws each (source, task) pair has had, so the state
is one counter per pair and resuming costs nothing.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from echat.data.sample import DataError, Sample


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to be used for one task, with the number that seeds everything random about it."""

    sample: Sample
    task: str
    epoch: int  # how many times the pair had been through before
    seed: int  # of the sample's own random stream
    as_text: bool = False  # words and cues as text in the place of the question's sound


class Pair:
    """The samples of one source that can serve one task, in an order reshuffled each epoch."""

    def __init__(
        self,
        name: str,
        task: str,
        samples: Sequence[Sample],
        weight: float,
        seed: int,
        as_text: bool = False,
    ) -> None:
        if not samples:
            raise DataError(
                f"source {name}, task {task}: no record has what the task needs; remove it or add data"
            )
        if weight <= 0:
            raise DataError(f"source {name}, task {task}: expected a weight above 0, found {weight}")
        self.name = f"{name}:{task}:text" if as_text else f"{name}:{task}"
        self.as_text = as_text
        self.task = task
        self.samples = samples
        self.weight = weight
        self.seed = zlib.crc32(f"{seed}:{self.name}".encode())
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.samples)))
        random.Random(self.seed * 1_000_003 + epoch).shuffle(order)
        return order

    def draw(self, position: int) -> Draw:
        epoch, index = divmod(position, len(self.samples))
        chosen = self.order(epoch)[index]
        seed = (self.seed * 1_000_003 + epoch) * 1_000_003 + chosen
        return Draw(self.samples[chosen], self.task, epoch, seed, self.as_text)


class MixtureStream:
    """Endless draws from weighted pairs: the pair furthest behind its share comes next (exact fractions)."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        if not pairs:
            raise DataError("mixture: expected at least one source with a task, found none")
        total = sum(pair.weight for pair in pairs)
        self.pairs = tuple(pairs)
        self._shares = [pair.weight / total for pair in pairs]
        self._counts = [0] * len(pairs)

    def __iter__(self) -> Iterator[Draw]:
        while True:
            yield self.next()

    def next(self) -> Draw:
        drawn = sum(self._counts) + 1
        behind = [share * drawn - count for share, count in zip(self._shares, self._counts)]
        index = behind.index(max(behind))
        draw = self.pairs[index].draw(self._counts[index])
        self._counts[index] += 1
        return draw

    def state_dict(self) -> dict[str, Any]:
        return {pair.name: count for pair, count in zip(self.pairs, self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = [pair.name for pair in self.pairs]
        if set(names) != set(state):
            raise DataError(
                f"resume: expected the sources and tasks {sorted(state)} of the checkpoint, "
                f"found {sorted(names)}; "
                "resume with the recipe the run began with"
            )
        self._counts = [int(state[name]) for name in names]


def once(pairs: Sequence[Pair], limit: int | None = None) -> Iterator[Draw]:
    """Each sample of each pair once (at most ``limit`` per pair), in a fixed order: for evaluation."""
    for pair in pairs:
        for position in range(min(len(pair.samples), limit or len(pair.samples))):
            yield pair.draw(position)
