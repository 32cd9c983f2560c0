"""The data mixture: an infinite, resumable sampler over weighted (source, task) components.

The order is a pure function of the seed and of how many items of each component were sampled, so the state is
two counters per component and resuming costs nothing. A sample index is a few numbers; the record is read
where the index is used, in this process or in a worker.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats.corpus import Records
from echat.data.sample import Sample
from echat.data.shuffle import BlockPermutation, Permutation
from echat.dialogue.labels import Labels

PATIENCE = 3  # extra items per delivered example to replace skipped records; a bad source gets no more
HEAD_START = 16  # records a source may lose before that counts


@dataclass(frozen=True, slots=True)
class SampledItem:
    """One sample to be used for one task, with the number that seeds everything random about it."""

    sample: Sample
    task: str
    epoch: int  # full passes over the component before
    seed: int  # of the sample's own random stream
    pseudo_audio: bool = False  # labels and words as text instead of the question's sound


class SampleIndex(NamedTuple):
    """A sampled item before its record is read: small enough to send to another process."""

    component: int  # number in the mixture
    position: int  # number of the item within the component


class MixtureComponent:
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
        pseudo_audio: bool = False,
        every_turn: bool = False,
        block: int = 0,
    ) -> None:
        about = f"source {name}, task {task or 'of each record'}"
        if not len(samples):
            raise DataError(f"{about}: no record has what the task needs; remove it or add data")
        if weight <= 0:
            raise DataError(f"{about}: expected a weight above 0, found {weight}")
        self.name = f"{name}:{task}:text" if pseudo_audio else f"{name}:{task}"
        self.source, self.task, self.samples, self.weight = name, task, samples, weight
        self.pseudo_audio, self.every_turn = pseudo_audio, every_turn
        self.seed = zlib.crc32(f"{seed}:{self.name}".encode())
        self.block = block
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> Permutation | BlockPermutation:
        key = self.seed * 1_000_003 + epoch
        size = len(self.samples)
        return BlockPermutation(size, key, self.block) if self.block else Permutation(size, key)

    def item_at(self, position: int) -> SampledItem:
        """The item at a position, its record read; of a dialogue the last turn."""
        epoch, index = divmod(position, len(self.samples))
        chosen = self.order(epoch)[index]
        seed = (self.seed * 1_000_003 + epoch) * 1_000_003 + chosen
        sample = self.samples[chosen]
        task = self.task or sample.task
        if task is None:
            reason = "expected a task, found none; name it in the record or under `tasks:` of the source"
            raise DataError(Defect(DefectKind.MISSING_FIELD, self.source, key=sample.key, reason=reason))
        return SampledItem(sample, task, epoch, seed, self.pseudo_audio)

    def items_at(self, position: int) -> list[SampledItem]:
        """The item at a position; with ``every_turn`` one for each turn, the last one first."""
        last = self.item_at(position)
        if not self.every_turn:
            return [last]
        earlier = enumerate(earlier_turns(last.sample), 1)
        return [
            last,
            *(
                SampledItem(s, last.task, last.epoch, last.seed * 1009 + n, self.pseudo_audio)
                for n, s in earlier
            ),
        ]


class MixtureStream:
    """Samples from weighted components: the one furthest behind its share comes next (exact fractions).

    What counts is what was delivered: records that were skipped, or that gave several examples, are reported
    with :meth:`report_skipped`. With ``epochs`` each component ends after so many, and so does the stream.
    """

    def __init__(self, components: Sequence[MixtureComponent], epochs: int | None = None) -> None:
        if not components:
            raise DataError("mixture: expected at least one source with a task, found none")
        total = sum(component.weight for component in components)
        self.components = tuple(components)
        self._shares = [component.weight / total for component in components]
        self._sampled = [0] * len(components)
        self._skipped = [0] * len(components)  # not delivered; below 0 where items gave several examples
        self._epochs = epochs
        self._rank, self._world = 0, 1

    def __iter__(self) -> Iterator[SampledItem]:
        while (sample_index := self.next()) is not None:
            yield self.components[sample_index.component].item_at(sample_index.position)

    def next(self) -> SampleIndex | None:
        """The next sample index; None at the end of the last epoch."""
        counts = list(map(_counts_against_share, self._sampled, self._skipped))
        total = sum(counts) + 1
        behind = [share * total - count for share, count in zip(self._shares, counts)]
        if self._epochs is not None:
            behind = [gap if self._has_more(n) else -float("inf") for n, gap in enumerate(behind)]
        index = behind.index(max(behind))
        if behind[index] == -float("inf"):
            return None
        sample_index = SampleIndex(index, self._position(index))
        self._sampled[index] += 1
        return sample_index

    def _position(self, index: int) -> int:
        """Ranks take turns at the positions of a pair, so together they miss and repeat none."""
        return self._sampled[index] * self._world + self._rank

    def _has_more(self, index: int) -> bool:
        return self._position(index) < len(self.components[index].samples) * (self._epochs or 0)

    def shard(self, rank: int, world: int) -> None:
        """Shard the stream: part ``rank`` of ``world`` streams that together sample everything once."""
        self._rank, self._world = rank, world

    def report_skipped(self, skipped: Mapping[str, int]) -> None:
        """Compensate items that were sampled and not delivered, by name of the component."""
        for index, component in enumerate(self.components):
            self._skipped[index] += skipped.get(component.name, 0)

    def state_dict(self) -> dict[str, Any]:
        return {
            component.name: [n, skipped]
            for component, n, skipped in zip(self.components, self._sampled, self._skipped)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = [component.name for component in self.components]
        if set(names) != set(state):
            raise DataError(
                f"resume: expected the sources and tasks {sorted(state)} of the checkpoint, "
                f"found {sorted(names)}; "
                "resume with the recipe the run began with"
            )
        self._sampled = [int(state[name][0]) for name in names]
        self._skipped = [int(state[name][1]) for name in names]

    def fast_forward(self, states: Sequence[Mapping[str, Any]], ahead: int) -> None:
        """Start after whatever the ranks in these states had sampled, and ``ahead`` items more of each."""
        sampled, skipped = [0] * len(self.components), [0] * len(self.components)
        for rank, state in enumerate(states):
            other = MixtureStream(self.components, self._epochs)
            other.shard(rank, len(states))
            other.load_state_dict(state)
            for _ in range(ahead):
                other.next()
            sampled = list(map(max, sampled, other._sampled))
            skipped = [a + b for a, b in zip(skipped, other._skipped)]
        self._sampled = [-(-count * len(states) // self._world) for count in sampled]
        self._skipped = [count // self._world for count in skipped]


def _counts_against_share(sampled: int, skipped: int) -> int:
    """Items that count against the share of a component: those not compensated."""
    return sampled - min(skipped, PATIENCE * (sampled - skipped) + HEAD_START)


# --- The earlier turns of a dialogue as samples of their own.


def earlier_turns(sample: Sample) -> Iterator[Sample]:
    """The dialogue as it stood after each earlier turn, the first turn first.

    Only the fields of the turn itself are kept: labels, thought and reply emotion belong to the last
    question.
    """
    for number, turn in enumerate(sample.history):
        yield replace(
            sample,
            key=f"{sample.key}#{number + 1}",
            audio=turn.audio,
            text=turn.text,
            labels=Labels(),
            prompt=None,
            target=None,
            reply=turn.reply,
            reply_emotion=None,
            reply_audio=None,
            speech_ids=turn.speech_ids,
            thought=None,
            history=sample.history[:number],
            seconds=None,
        )
