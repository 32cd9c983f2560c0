"""Worker pool: a function applied by forked processes ahead of use, results in the order of submission."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 8  # items sent to a worker at a time: few messages, and little waiting for the slowest


class WorkerPool(Generic[T, R]):
    """``function`` over items, by ``workers`` forked processes; 0 works in this one, when asked for results.

    The results do not depend on which process did what, as long as the function depends on the item alone.
    """

    def __init__(self, function: Callable[[T], R], workers: int = 0) -> None:
        self._function, self._workers = function, workers
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, items: Sequence[T]) -> Iterator[R]:
        """Queue these items after all submitted before; the results come as they are consumed."""
        if not self._workers:
            return map(self._function, items)
        self._pool = self._pool or self._start()
        chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
        futures = [self._pool.submit(_run_chunk, chunk) for chunk in chunks]
        return (result for future in futures for result in self._results_of(future))

    def _start(self) -> ProcessPoolExecutor:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError(
                f"workers: expected 0 on a system that cannot fork processes, found {self._workers}; "
                "set workers=0"
            )
        fork = multiprocessing.get_context("fork")
        return ProcessPoolExecutor(self._workers, fork, initializer=_init_worker, initargs=(self._function,))

    def _results_of(self, future: Any) -> list[R]:
        try:
            results: list[R] = future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"data: one of {self._workers} workers died, killed by the system or a crash while decoding; "
                "if memory ran out, set workers or sound_cache_mb lower; workers=0 shows a crash where it is"
            ) from error
        return results

    def close(self) -> None:
        """Shut the pool down; items not started are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


_function: Callable[[Any], Any]  # of this worker


def _init_worker(function: Callable[[Any], Any]) -> None:
    """In a new worker: one thread, signals of the terminal ignored, exit with the parent process."""
    import torch

    global _function
    _function = function
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run_chunk(items: Sequence[Any]) -> list[Any]:
    return [_function(item) for item in items]
