"""The data loader: bucketing by length inside a pool, batches of bounded cost, prefetching, exact resume.

The cost of a batch is its count times its longest sequence and longest sound, padding included. Batches of
one length waste little; as they hold similar tasks, their order spreads the lengths.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import Field

from echat.config import Config
from echat.data.defects import MAX_KEPT, DataError, Defect, DefectKind, DefectReport, defect_from
from echat.data.mixture import MixtureComponent, MixtureStream, SampledItem, SampleIndex
from echat.data.worker_pool import WorkerPool

_LOG = logging.getLogger(__name__)

MAX_EMPTY_POOLS = 8  # without a single example end a run
GOLDEN_RATIO = (5**0.5 - 1) / 2


class LoadingConfig(Config):
    """Settings of the data loader: batch size, pool, worker processes, cache."""

    batch_cost: int = Field(
        4000, gt=0
    )  # work per micro-batch: count x (longest sequence + its mel frames / 4)
    pool: int = Field(256, gt=0)  # samples sorted by length together
    workers: int = Field(0, ge=0)  # processes that prefetch; 0: the training process reads. No other effect
    sound_cache_mb: float = Field(1000.0, ge=0)  # cache of decoded sound, of each such process


class Sized(Protocol):
    """An example that is padded to the largest of its batch."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of each part that is padded by itself; buckets are formed by the first one."""


E = TypeVar("E", bound=Sized)
B = TypeVar("B")


def cut_batches(examples: Sequence[E], budget: int, rng: random.Random) -> list[list[E]]:
    """Bucketing: groups examples of similar size so that count x largest sizes stays within ``budget``.

    No example is dropped: one larger than the budget is a batch of its own. Neighbouring batches differ in
    length.
    """
    batches: list[list[E]] = []
    largest: tuple[int, ...] = ()
    for example in sorted(examples, key=lambda e: e.sizes, reverse=True):
        joined = tuple(map(max, largest, example.sizes)) if batches else ()
        if batches and sum(joined) * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(example)
            largest = joined
        else:
            batches.append([example])
            largest = example.sizes
    return [batches[number] for number in low_discrepancy_order(len(batches), rng.random())]


def low_discrepancy_order(count: int, start: float) -> list[int]:
    """0..count-1 such that any stretch of the order covers the whole range evenly (golden ratio sequence).

    Batches of similar size hold similar tasks. In this order neighbouring steps, and the micro-batches of one
    step, see different tasks: the mean of eight gradients comes as near to the mixture as that of fifteen
    shuffled.
    """
    points = [(start + number * GOLDEN_RATIO) % 1.0 for number in range(count)]
    ranks = {number: rank for rank, number in enumerate(sorted(range(count), key=points.__getitem__))}
    return [ranks[number] for number in range(count)]


@dataclass(frozen=True)
class _Pool(Generic[E]):
    """Sampled items whose examples are sorted and cut into batches together."""

    number: int
    start: dict[str, Any]  # state of the stream before the pool was sampled
    sample_indexes: Sequence[SampleIndex]
    results: Iterator[ReadResult[E]]


class PooledBatches(Generic[E, B]):
    """Data loader over a stream: sample a pool, build its examples, cut them into batches, return these.

    Two pools are prefetched, so that workers build while batches are used. Skipped items of a pool are
    therefore compensated two pools later, whichever worker built it and when: batches depend on the seed
    alone. The state is that of the stream when the pool was sampled, and the number of batches returned
    since. With a stream that ends, :meth:`next` raises StopIteration after the last batch.
    """

    def __init__(
        self,
        stream: MixtureStream,
        build: Callable[[SampledItem], E],
        collate: Callable[[Sequence[E]], B],
        budget: int,
        pool: int = 256,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self._stream, self._collate = stream, collate
        self._workers = WorkerPool(ExampleReader(stream.components, build), workers)
        self._budget, self._pool, self._seed = budget, pool, seed
        self._rank, self._world = 0, 1
        self.defects = DefectReport()
        self._go_to(-1, stream.state_dict())

    def _go_to(
        self, number: int, start: Mapping[str, Any], unreported: Mapping[str, int] | None = None
    ) -> None:
        """Reset to where pool ``number`` was sampled; ``unreported`` items of earlier pools were skipped."""
        self._stream.load_state_dict(start)
        self._number, self._sampled = number, number
        self._start, self._unreported, self._skipped = (
            dict(start),
            dict(unreported or {}),
            dict(unreported or {}),
        )
        self._prefetched: deque[_Pool[E]] = deque()
        self._batches: list[list[E]] = []
        self._consumed = 0

    def __iter__(self) -> PooledBatches[E, B]:
        return self

    def __next__(self) -> B:
        return self.next()

    def next(self) -> B:
        empty = 0
        while self._consumed == len(self._batches):
            self._advance()
            empty += not self._batches
            if empty == MAX_EMPTY_POOLS:
                raise DataError(
                    f"data: expected usable records, found none in {empty * self._pool} sampled items:\n"
                    f"{self.defects}"
                )
        batch = self._collate(self._batches[self._consumed])
        self._consumed += 1
        return batch

    def _advance(self) -> None:
        """Take the batches of the next pool, and sample the pool two further on."""
        if not self._prefetched:
            self._sample_pool()
            self._stream.report_skipped(self._skipped)
            self._sample_pool()
        pool = self._prefetched.popleft()
        if not pool.sample_indexes:
            raise StopIteration
        examples, skipped = self._collect(pool)
        self._number, self._start, self._unreported, self._skipped = (
            pool.number,
            pool.start,
            self._skipped,
            skipped,
        )
        rng = random.Random((self._seed * 1_000_003 + pool.number) * self._world + self._rank)
        self._batches, self._consumed = cut_batches(examples, self._budget, rng), 0
        self._stream.report_skipped(skipped)
        self._sample_pool()

    def _sample_pool(self) -> None:
        start = self._stream.state_dict()
        sample_indexes = [t for t in (self._stream.next() for _ in range(self._pool)) if t is not None]
        self._sampled += 1
        self._prefetched.append(
            _Pool(self._sampled, start, sample_indexes, self._workers.submit(sample_indexes))
        )

    def _collect(self, pool: _Pool[E]) -> tuple[list[E], dict[str, int]]:
        """Examples of a pool, and how many items of each mixture component were skipped."""
        examples: list[E] = []
        skipped: dict[str, int] = {}
        for sample_index, result in zip(pool.sample_indexes, pool.results, strict=True):
            examples += result.examples
            missing = 1 - len(result.examples)
            if missing:
                name = self._stream.components[sample_index.component].name
                skipped[name] = skipped.get(name, 0) + missing
            log_defects(self.defects, result.defects)
        return examples, skipped

    @property
    def size(self) -> int:
        """Samples of an epoch: of all sources and tasks together, on all processes."""
        return sum(len(component.samples) for component in self._stream.components)

    def shard(self, rank: int, world: int) -> None:
        """Shard the data: this process takes part ``rank`` of ``world``. Before the first batch."""
        self._rank, self._world = rank, world
        self._stream.shard(rank, world)

    def fast_forward(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Start after the furthest pool of these states; what was left of older pools comes next epoch."""
        number = max(int(state["pool"]) for state in states)
        self._stream.fast_forward([state["stream"] for state in states], self._pool if number >= 0 else 0)
        self._go_to(number, self._stream.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {
            "stream": self._start,
            "unsettled": self._unreported,
            "pool": self._number,
            "given": self._consumed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Rebuild the pool of the state and skip the batches that were returned."""
        number = int(state["pool"])
        self._go_to(max(number, 0) - 1, state["stream"], state["unsettled"])
        if number >= 0:
            self._advance()
            self._consumed = int(state["given"])

    def close(self) -> str:
        """Stop the worker processes, if there are any; returns which records were skipped, and why."""
        self._workers.close()
        return str(self.defects)


def log_defects(report: DefectReport, defects: Sequence[Defect]) -> None:
    """Count skipped records and log the first of each kind, except those that are merely not selected."""
    for defect in defects:
        report.add(defect)
        if report.counts[defect.kind] <= MAX_KEPT and defect.kind is not DefectKind.UNWANTED:
            _LOG.warning("left out: %s", defect)


def examples_once(
    components: Sequence[MixtureComponent], build: Callable[[SampledItem], E], limit: int | None = None
) -> list[E]:
    """Each sample of each component once, in a fixed order, until ``limit`` of a component are usable."""
    read = ExampleReader(components, build)
    report = DefectReport()
    found: list[E] = []
    for number, component in enumerate(components):
        enough = len(found) + (limit or len(component.samples))
        for position in range(len(component.samples)):
            if len(found) >= enough:
                break
            result = read(SampleIndex(number, position))
            found += result.examples
            log_defects(report, result.defects)
    return found


def fixed_batches(
    components: Sequence[MixtureComponent],
    build: Callable[[SampledItem], E],
    collate: Callable[[Sequence[E]], B],
    budget: int,
    limit: int | None = None,
) -> list[B]:
    """Validation batches: samples of all components, at most ``limit`` of each, in one fixed order."""
    examples = examples_once(components, build, limit)
    return [collate(batch) for batch in cut_batches(examples, budget, random.Random(0))]


# --- A sample index becomes examples: the one function that catches, names and skips a bad record.


@dataclass(frozen=True, slots=True)
class ReadResult(Generic[E]):
    """Examples of a sample index (several where each turn is one) and defects of what was skipped."""

    examples: tuple[E, ...]
    defects: tuple[Defect, ...] = ()


@dataclass(frozen=True)
class ExampleReader(Generic[E]):
    """SampleIndex -> ReadResult: reads the record, builds its examples; depends on the index alone."""

    components: Sequence[MixtureComponent]
    build: Callable[[SampledItem], E]

    def __call__(self, sample_index: SampleIndex) -> ReadResult[E]:
        component = self.components[sample_index.component]
        try:
            items = component.items_at(sample_index.position)
        except ValueError as error:
            return ReadResult((), (defect_from(error, component.source),))
        examples: list[E] = []
        defects: list[Defect] = []
        for item in items:
            try:
                examples.append(self.build(item))
            except ValueError as error:
                defects.append(defect_from(error, component.source, key=item.sample.key))
        return ReadResult(tuple(examples), tuple(defects))
