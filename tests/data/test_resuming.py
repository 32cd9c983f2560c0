"""Stopped anywhere, killed or not, on any number of workers and ranks, the stream goes on as before."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from echat.data.batching import PooledBatches
from echat.data.defects import DataError, DefectKind
from echat.data.eligibility import refusal
from echat.data.mixture import MixtureComponent, MixtureStream, SampledItem
from echat.data.sample import Sample, Turn


@dataclass(frozen=True)
class Example:
    """The example of a sampled item, randomness included."""

    key: str
    task: str
    noise: float
    size: int

    @property
    def sizes(self) -> tuple[int]:
        return (self.size,)


def build(item: SampledItem) -> Example:
    """Some records cannot be used; how long the others are is chance."""
    if item.sample.key.endswith("3"):
        raise refusal(item.sample, DefectKind.BAD_FIELD, "expected another last digit")
    rng = np.random.default_rng(item.seed)
    return Example(item.sample.key, item.task, rng.random(), int(rng.integers(1, 40)))


def batches(rank=0, world=1, workers=0, epochs=None, pool=24) -> PooledBatches[Example, list[Example]]:
    """Three pairs: one loses a tenth, one nearly all, one makes three samples of each record."""
    dialogue = Sample("d", history=(Turn(None, "a", "b"), Turn(None, "c", "d")))
    components = [
        MixtureComponent("plain", "asr", [Sample(f"p{n:03}") for n in range(100)], 3.0, 5),
        MixtureComponent(
            "poor", "asr", [Sample(f"q{n:02}{3 if n % 4 else 0}") for n in range(40)], 1.0, 5, block=7
        ),
        MixtureComponent(
            "turns", "s2t", [replace(dialogue, key=f"d{n}") for n in range(9)], 2.0, 5, every_turn=True
        ),
    ]
    source = PooledBatches(MixtureStream(components, epochs), build, list, 60, pool, seed=5, workers=workers)
    source.shard(rank, world)
    return source


def digest(batch: list[Example]) -> str:
    return hashlib.sha256(repr(batch).encode()).hexdigest()


def take(source: PooledBatches, count: int) -> list[str]:
    return [digest(source.next()) for _ in range(count)]


WHOLE = {(rank, world): take(batches(rank, world), 60) for world in (1, 2, 3) for rank in range(world)}
POINTS = [random.Random(point).randrange(50) for point in range(15)]


@pytest.mark.parametrize(("number", "stop"), list(enumerate(POINTS)))
def test_resumed_equals_uninterrupted_with_other_workers(number, stop):
    rank, world = [*WHOLE][number % len(WHOLE)]
    before, after = batches(rank, world, workers=number % 4), batches(rank, world, workers=(number + 1) % 4)
    assert take(before, stop) == WHOLE[rank, world][:stop]
    state = json.loads(json.dumps(before.state_dict()))
    before.close()
    after.load_state_dict(state)
    assert take(after, 60 - stop) == WHOLE[rank, world][stop:]
    after.close()


def run_until_killed(path, stop, workers) -> list[int]:
    """In a process of its own: states and digests go to a file, then SIGKILL; returns the workers' ids."""
    child = os.fork()
    if child == 0:
        try:
            source = batches(1, 2, workers)
            with path.open("w") as lines:
                for number in range(stop):
                    batch = digest(source.next())
                    pids = [*source._workers._pool._processes] if workers else []
                    lines.write(
                        json.dumps([batch, source.state_dict() if number % 4 == 3 else None, pids]) + "\n"
                    )
                    lines.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return json.loads(path.read_text().splitlines()[0])[2]


@pytest.mark.parametrize(("stop", "workers"), [(5, 0), (19, 1), (26, 2), (33, 3), (47, 2)])
def test_killed_and_resumed_from_the_last_state_saved(tmp_path, stop, workers):
    orphans = run_until_killed(tmp_path / "log", stop, workers)
    rows = [json.loads(line) for line in (tmp_path / "log").open()]
    last = max(number for number, row in enumerate(rows) if row[1])
    resumed = batches(1, 2, workers=(workers + 1) % 4)
    resumed.load_state_dict(rows[last][1])
    joined = [row[0] for row in rows[: last + 1]] + take(resumed, 60 - last - 1)
    assert joined == WHOLE[1, 2]
    resumed.close()
    wait_until_gone(orphans)


def wait_until_gone(pids: list[int]) -> None:
    """Workers do not outlive a run that was killed: the kernel reports when each has ended."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        select.select([handle], [], [])
        os.close(handle)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_together_deliver_every_sample_once(world, workers):
    found: Counter[tuple[str, str]] = Counter()
    for rank in range(world):
        source = batches(rank, world, workers, epochs=1)
        found.update((example.key, example.task) for batch in source for example in batch)
        source.close()
    turns = [f"d{n}{end}" for n in range(9) for end in ("", "#1", "#2")]
    usable = [(f"p{n:03}", "asr") for n in range(100)] + [(f"q{n:02}0", "asr") for n in range(0, 40, 4)]
    usable += [(key, "s2t") for key in turns]
    assert found == {pair: 1 for pair in usable if not pair[0].endswith("3")}


def test_an_epoch_names_what_it_left_out():
    source = batches(epochs=2)
    list(source)
    assert source.defects.counts == {DefectKind.BAD_FIELD: 2 * (10 + 30 + 1)}
    assert "turns, record d3: expected another last digit" in source.close()


def test_shares_are_of_what_was_delivered():
    source, found = batches(pool=64), Counter()
    while found.total() < 20_000:
        found.update(example.key[0] for example in source.next())
    count = found.total()
    for name, share in (("p", 3 / 6), ("q", 1 / 6), ("d", 2 / 6)):
        assert abs(found[name] / count - share) < 0.01


def test_a_source_without_a_usable_record_does_not_hold_up_the_others():
    components = [
        MixtureComponent("good", "asr", [Sample(f"p{n}0") for n in range(50)], 1.0, 0),
        MixtureComponent("unusable", "asr", [Sample("p3")], 1.0, 0),
    ]
    source = PooledBatches(MixtureStream(components), build, list, 60, 32)
    assert all(example.key != "p3" for _ in range(200) for example in source.next())


@pytest.mark.parametrize("worlds", [(1, 3), (3, 1), (2, 3)])
def test_another_number_of_ranks_resumes_after_the_furthest(worlds):
    """Nothing of the first epoch comes twice, and less than the pools in work is put off to the next."""
    old, new = worlds
    components = [MixtureComponent("plain", "asr", [Sample(f"p{n:04}0") for n in range(1200)], 1.0, 5)]
    sources = [PooledBatches(MixtureStream(components, 1), build, list, 60, 24) for _ in range(old)]
    found: Counter[str] = Counter()
    for rank, source in enumerate(sources):
        source.shard(rank, old)
        found.update(example.key for _ in range(12) for example in source.next())
    states = [source.state_dict() for source in sources]
    for rank in range(new):
        source = PooledBatches(MixtureStream(components, 1), build, list, 60, 24)
        source.shard(rank, new)
        source.fast_forward(states)
        found.update(example.key for batch in source for example in batch)
    assert set(found.values()) == {1} and len(found) >= 1200 - 24 * old


def test_a_dead_worker_is_said():
    def deadly(item: SampledItem) -> Example:
        os._exit(9)

    source = PooledBatches(
        MixtureStream([MixtureComponent("a", "asr", [Sample("a")], 1.0, 0)]), deadly, list, 9, 9, 0, 1
    )
    with pytest.raises(RuntimeError, match="workers died"):
        source.next()


def test_errors_cross_processes_whole():
    error = refusal(Sample("k", source="s"), DefectKind.TOO_LONG, "expected less")
    assert isinstance(error, DataError) and error.defect.kind is DefectKind.TOO_LONG
    source = batches(workers=1)
    source.next()
    source.close()
    assert "record p" in str(source.defects)
