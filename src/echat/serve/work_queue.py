"""Work in threads, shared out fairly: every client has a lane of its own, and lanes take turns.

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
from typing import Any, TypeVar

Result = TypeVar("Result")
Work = Callable[[], Any]


class LaneFull(ValueError):
    """A client asks for more than may wait."""


class Lane:
    """The work of one client, in order: at most `width` of it runs at once, at most `most_waiting` waits."""

    def __init__(self, queue: WorkQueue, width: int, most_waiting: int | None) -> None:
        self.width, self.most_waiting = width, most_waiting
        self.waiting: deque[Work] = deque()  # of the queue alone, as the next one
        self.n_running = 0
        self._queue = queue

    def submit(self, work: Work) -> Callable[[], None]:
        """Put work in line; what is given back takes it out again, if it has not begun."""
        self._queue.submit(self, work)
        return lambda: self._queue.withdraw(self, work)

    async def call(self, work: Callable[[], Result]) -> Result:
        """Do some work, and wait for what comes of it. To be cancelled is to be taken out of the line."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def run() -> None:
            try:
                settle = _settler(done, work())
            except BaseException as error:
                settle = _settler(done, error=error)
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:  # the loop is gone, and with it whoever waited
                return

        withdraw = self.submit(run)
        try:
            return await done
        except asyncio.CancelledError:
            withdraw()
            raise


def _settler(done: asyncio.Future[Any], result: Any = None, error: BaseException | None = None) -> Work:
    def settle() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    return settle


class WorkQueue:
    """Threads, and the lanes whose work they do."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._n_free = threads
        self._lanes: deque[Lane] = deque()  # those in which work waits; the first has its turn
        self._lock = threading.Lock()

    def lane(self, width: int, most_waiting: int | None = None) -> Lane:
        """A lane for one client; None: any amount may wait."""
        return Lane(self, width, most_waiting)

    def submit(self, lane: Lane, work: Work) -> None:
        """Put work at the end of a lane."""
        with self._lock:
            if lane.most_waiting is not None and len(lane.waiting) >= lane.most_waiting:
                raise LaneFull(f"expected at most {lane.most_waiting} pieces of work to wait, found one more")
            if not lane.waiting:
                self._lanes.append(lane)
            lane.waiting.append(work)
            self._start_waiting()

    def withdraw(self, lane: Lane, work: Work) -> None:
        """Take work out of a lane, if it has not begun."""
        with self._lock:
            if work in lane.waiting:
                lane.waiting.remove(work)
                if not lane.waiting:
                    self._lanes.remove(lane)

    def close(self) -> None:
        """Begin nothing more."""
        with self._lock:
            for lane in self._lanes:
                lane.waiting.clear()
            self._lanes.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start_waiting(self) -> None:
        """Give free threads to the lanes in turn."""
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
