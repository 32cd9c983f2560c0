"""Fair work queue over a thread pool: every client has a lane, and lanes are served round robin.

queue = WorkQueue(threads=8)
lane = queue.lane(width=1, most_waiting=8)
text = await lane.call(work)
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")
Work = Callable[[], Any]


class LaneFull(ValueError):
    """A client has more jobs waiting than it may."""


class Lane:
    """The jobs of one client, in order: at most `width` run at once, at most `most_waiting` wait."""

    def __init__(self, queue: WorkQueue, width: int, most_waiting: int | None) -> None:
        self.width, self.most_waiting = width, most_waiting
        self.waiting: deque[Work] = deque()  # used by WorkQueue only, like n_running
        self.n_running = 0
        self._queue = queue

    def submit(self, work: Work) -> Callable[[], None]:
        """Append a job; the returned function removes it, if it has not started."""
        self._queue.submit(self, work)
        return lambda: self._queue.withdraw(self, work)

    async def call(self, work: Callable[[], Result]) -> Result:
        """Run a job and wait for its result; cancellation removes it from the lane."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def resolve(result: Any, error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def run() -> None:
            result, failure = None, None
            try:
                result = work()
            except BaseException as error:
                failure = error
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(resolve, result, failure)

        withdraw = self.submit(run)
        try:
            return await done
        except asyncio.CancelledError:
            withdraw()
            raise


class WorkQueue:
    """Worker threads and the lanes that they serve."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._n_free = threads
        self._lanes: deque[Lane] = deque()  # those with waiting jobs; the first is next
        self._lock = threading.Lock()

    def lane(self, width: int, most_waiting: int | None = None) -> Lane:
        """A lane for one client; None: any number of jobs may wait."""
        return Lane(self, width, most_waiting)

    def submit(self, lane: Lane, work: Work) -> None:
        """Append a job to a lane."""
        with self._lock:
            if lane.most_waiting is not None and len(lane.waiting) >= lane.most_waiting:
                raise LaneFull(f"expected at most {lane.most_waiting} pieces of work to wait, found one more")
            if not lane.waiting:
                self._lanes.append(lane)
            lane.waiting.append(work)
            self._start_waiting()

    def withdraw(self, lane: Lane, work: Work) -> None:
        """Remove a job from a lane, if it has not started."""
        with self._lock:
            if work in lane.waiting:
                lane.waiting.remove(work)
                if not lane.waiting:
                    self._lanes.remove(lane)

    def close(self) -> None:
        """Start no more jobs."""
        with self._lock:
            for lane in self._lanes:
                lane.waiting.clear()
            self._lanes.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start_waiting(self) -> None:
        """Assign free threads to lanes, round robin."""
        passed = 0
        while self._n_free and passed < len(self._lanes):
            lane = self._lanes.popleft()
            if lane.n_running < lane.width:
                self._start(lane, lane.waiting.popleft())
                passed = 0
            else:
                passed += 1
            if lane.waiting:
                self._lanes.append(lane)

    def _start(self, lane: Lane, work: Work) -> None:
        lane.n_running += 1
        self._n_free -= 1
        self._executor.submit(self._do, lane, work)

    def _do(self, lane: Lane, work: Work) -> None:
        try:
            work()
        finally:
            with self._lock:
                lane.n_running -= 1
                self._n_free += 1
                self._start_waiting()
