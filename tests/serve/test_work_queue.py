"""Lanes are served round robin."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from echat.serve.work_queue import LaneFull, WorkQueue


@pytest.fixture
def queue() -> Iterator[Callable[[int], WorkQueue]]:
    made: list[WorkQueue] = []

    def make(threads: int) -> WorkQueue:
        made.append(WorkQueue(threads, "test"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_lane_with_three_hundred_jobs_starves_no_other(queue: Callable[[int], WorkQueue]) -> None:
    one = queue(1)
    greedy, modest = one.lane(1), one.lane(1)
    go, over, order = threading.Event(), threading.Event(), []
    greedy.submit(go.wait)
    for _ in range(300):
        greedy.submit(lambda: order.append("greedy"))
    for _ in range(3):
        modest.submit(lambda: order.append("modest"))
    greedy.submit(over.set)
    go.set()
    assert over.wait(30)
    assert order[:6].count("modest") == 3  # turn and turn about
    assert order.count("greedy") == 300


def test_no_more_than_its_width_runs_of_a_lane(queue: Callable[[int], WorkQueue]) -> None:
    one = queue(4)
    narrow, other = one.lane(2), one.lane(1)
    go, lock, done = threading.Event(), threading.Lock(), threading.Semaphore(0)
    running, most = 0, 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait()
        with lock:
            running -= 1
        done.release()

    for _ in range(8):
        narrow.submit(work)
    free = threading.Event()
    other.submit(free.set)
    assert free.wait(30)  # threads are left for others
    go.set()
    for _ in range(8):
        assert done.acquire(timeout=30)
    assert most == 2


def test_waiting_jobs_are_limited_and_can_be_withdrawn(queue: Callable[[int], WorkQueue]) -> None:
    one = queue(1)
    lane = one.lane(1, most_waiting=2)
    go, over, done = threading.Event(), threading.Event(), []
    lane.submit(go.wait)
    withdraw = lane.submit(lambda: done.append("withdrawn"))
    lane.submit(lambda: done.append("kept"))
    with pytest.raises(LaneFull, match="at most 2"):
        lane.submit(lambda: done.append("too much"))
    withdraw()
    lane.submit(over.set)  # there is room again
    go.set()
    assert over.wait(30)
    assert done == ["kept"]
    withdraw()  # nothing to take out any more


def test_a_call_gives_the_result_or_the_error(queue: Callable[[int], WorkQueue]) -> None:
    async def calls() -> tuple[int, str]:
        lane = queue(1).lane(1)
        with pytest.raises(ZeroDivisionError):
            await lane.call(lambda: 1 // 0)
        return await lane.call(lambda: 6 * 7), await lane.call(lambda: threading.current_thread().name)

    answer, thread = asyncio.run(calls())
    assert answer == 42 and thread.startswith("test")


def test_a_cancelled_call_is_removed_from_its_lane(queue: Callable[[int], WorkQueue]) -> None:
    async def cancelled() -> list[str]:
        lane, go, done = queue(1).lane(1), threading.Event(), []
        first = asyncio.ensure_future(lane.call(go.wait))
        second = asyncio.ensure_future(lane.call(lambda: done.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        third = asyncio.ensure_future(lane.call(lambda: done.append("third")))
        go.set()
        await asyncio.gather(first, third)
        return done

    assert asyncio.run(cancelled()) == ["third"]
