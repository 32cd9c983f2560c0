"""The endless mixture: which sample serves which task next.

The order is a pure function of the seed and of how many draws each (source, task) pair has had, so the state
is two counters per pair and resuming costs nothing. What is drawn is a ticket, a few numbers; the record is
read where the ticket goes, in this process or in a worker.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from echat.data.corpus import Records
from echat.data.defects import DataError, Defect, Kind
from echat.data.sample import Sample
from echat.data.shuffle import BlockPermutation, Permutation
from echat.data.turns import prefixes

PATIENCE = 3  # draws per delivered example that make up for records left out; a hopeless source gets no more
HEAD_START = 16  # records a source may lose before that counts


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to be used for one task, with the number that seeds everything random about it."""

    sample: Sample
    task: str
    epoch: int  # how many times the pair had been through before
    seed: int  # of the sample's own random stream
    as_text: bool = False  # words and cues as text in the place of the question's sound


class Ticket(NamedTuple):
    """A draw before its record is read: small enough to send anywhere."""

    pair: int  # number in the mixture
    position: int  # how many draws of the pair come before this one


class Pair:
    """The samples of one source that serve one task, in an order reshuffled each epoch.

    ``task`` None takes the task each record names. ``every_turn`` makes a sample of each earlier turn of a
    dialogue, too. ``block`` keeps that many neighbours together: see :class:`BlockPermutation`.
    """

    def __init__(
        self,
        name: str,
        task: str | None,
        samples: Records,
        weight: float,
        seed: int,
        as_text: bool = False,
        every_turn: bool = False,
        block: int = 0,
    ) -> None:
        about = f"source {name}, task {task or 'of each record'}"
        if not len(samples):
            raise DataError(f"{about}: no record has what the task needs; remove it or add data")
        if weight <= 0:
            raise DataError(f"{about}: expected a weight above 0, found {weight}")
        self.name = f"{name}:{task}:text" if as_text else f"{name}:{task}"
        self.source, self.task, self.samples, self.weight = name, task, samples, weight
        self.as_text, self.every_turn = as_text, every_turn
        self.seed = zlib.crc32(f"{seed}:{self.name}".encode())
        self.block = block
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> Permutation | BlockPermutation:
        key = self.seed * 1_000_003 + epoch
        size = len(self.samples)
        return BlockPermutation(size, key, self.block) if self.block else Permutation(size, key)

    def draw(self, position: int) -> Draw:
        """The draw at a position, its record read; of a dialogue the last turn."""
        epoch, index = divmod(position, len(self.samples))
        chosen = self.order(epoch)[index]
        seed = (self.seed * 1_000_003 + epoch) * 1_000_003 + chosen
        sample = self.samples[chosen]
        task = self.task or sample.task
        if task is None:
            reason = "expected a task, found none; name it in the record or under `tasks:` of the source"
            raise DataError(Defect(Kind.MISSING_FIELD, self.source, key=sample.key, reason=reason))
        return Draw(sample, task, epoch, seed, self.as_text)

    def draws(self, position: int) -> list[Draw]:
        """The draw at a position; with ``every_turn`` one for each turn, the last one first."""
        last = self.draw(position)
        if not self.every_turn:
            return [last]
        earlier = enumerate(prefixes(last.sample), 1)
        return [
            last,
            *(Draw(s, last.task, last.epoch, last.seed * 1009 + n, self.as_text) for n, s in earlier),
        ]


class MixtureStream:
    """Draws from weighted pairs: the pair furthest behind its share comes next (exact fractions).

    What counts is what was delivered: records that were left out, or that gave several examples, are reported
    back with :meth:`settle`. With ``epochs`` each pair ends after so many, and so does the stream.
    """

    def __init__(self, pairs: Sequence[Pair], epochs: int | None = None) -> None:
        if not pairs:
            raise DataError("mixture: expected at least one source with a task, found none")
        total = sum(pair.weight for pair in pairs)
        self.pairs = tuple(pairs)
        self._shares = [pair.weight / total for pair in pairs]
        self._drawn = [0] * len(pairs)
        self._lost = [0] * len(pairs)  # drawn and not delivered; below 0 where draws gave several examples
        self._epochs = epochs
        self._rank, self._world = 0, 1

    def __iter__(self) -> Iterator[Draw]:
        while (ticket := self.next()) is not None:
            yield self.pairs[ticket.pair].draw(ticket.position)

    def next(self) -> Ticket | None:
        """The next ticket; None at the end of the last epoch."""
        counts = list(map(_counted, self._drawn, self._lost))
        total = sum(counts) + 1
        behind = [share * total - count for share, count in zip(self._shares, counts)]
        if self._epochs is not None:
            behind = [gap if self._goes_on(n) else -float("inf") for n, gap in enumerate(behind)]
        index = behind.index(max(behind))
        if behind[index] == -float("inf"):
            return None
        ticket = Ticket(index, self._position(index))
        self._drawn[index] += 1
        return ticket

    def _position(self, index: int) -> int:
        """Ranks take turns at the positions of a pair, so together they miss and repeat none."""
        return self._drawn[index] * self._world + self._rank

    def _goes_on(self, index: int) -> bool:
        return self._position(index) < len(self.pairs[index].samples) * (self._epochs or 0)

    def share(self, rank: int, world: int) -> None:
        """Be one of ``world`` streams that together draw everything once."""
        self._rank, self._world = rank, world

    def settle(self, lost: Mapping[str, int]) -> None:
        """Make up for what was drawn and not delivered, by name of the pair."""
        for index, pair in enumerate(self.pairs):
            self._lost[index] += lost.get(pair.name, 0)

    def state_dict(self) -> dict[str, Any]:
        return {pair.name: [n, lost] for pair, n, lost in zip(self.pairs, self._drawn, self._lost)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = [pair.name for pair in self.pairs]
        if set(names) != set(state):
            raise DataError(
                f"resume: expected the sources and tasks {sorted(state)} of the checkpoint, "
                f"found {sorted(names)}; "
                "resume with the recipe the run began with"
            )
        self._drawn = [int(state[name][0]) for name in names]
        self._lost = [int(state[name][1]) for name in names]

    def go_behind(self, states: Sequence[Mapping[str, Any]], ahead: int) -> None:
        """Begin behind whatever the ranks in these states had drawn, and ``ahead`` draws more of each."""
        drawn, lost = [0] * len(self.pairs), [0] * len(self.pairs)
        for rank, state in enumerate(states):
            other = MixtureStream(self.pairs, self._epochs)
            other.share(rank, len(states))
            other.load_state_dict(state)
            for _ in range(ahead):
                other.next()
            drawn = list(map(max, drawn, other._drawn))
            lost = [a + b for a, b in zip(lost, other._lost)]
        self._drawn = [-(-count * len(states) // self._world) for count in drawn]
        self._lost = [count // self._world for count in lost]


def _counted(drawn: int, lost: int) -> int:
    """Draws that count against the share of a pair: those not made up for."""
    return drawn - min(lost, PATIENCE * (drawn - lost) + HEAD_START)
