"""Executors of numbered jobs: this process, a process pool, or Ray on many machines.

The result does not depend on the executor: a job depends on its number alone, and results come in the order
of the numbers.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

ExecutorName = Literal["local", "ray"]
R = TypeVar("R")

_MOST_BLOCKS = 1000  # of jobs that Ray schedules; more only cost overhead


def run_jobs(
    work: Callable[[int], R], jobs: int, workers: int = 1, executor: ExecutorName = "local"
) -> Iterator[R]:
    """``work`` of 0, 1, ... up to ``jobs``, so many at a time. What a job raises is raised here.

    ``work`` and its results travel to other processes, so both must pickle.
    """
    if executor == "ray":
        yield from _by_ray(work, jobs, workers)
    elif workers <= 1 or jobs <= 1:
        yield from map(work, range(jobs))
    else:
        yield from _by_processes(work, jobs, min(workers, jobs))


def _by_processes(work: Callable[[int], R], jobs: int, workers: int) -> Iterator[R]:
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(work, number) for number in range(jobs)]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _by_ray(work: Callable[[int], R], jobs: int, workers: int) -> Iterator[R]:
    if not jobs:
        return
    with _ray(workers) as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        numbers = ray.data.range(jobs, override_num_blocks=min(jobs, _MOST_BLOCKS))
        tasks = ray.data.TaskPoolStrategy(size=workers)
        for row in numbers.map(_Row(work).answer, compute=tasks).iter_rows():
            result, error = pickle.loads(row["answer"])
            if error is not None:
                raise error
            yield result


class _Row:
    """A job as Ray sees it: bytes, so that it need not understand what is in them."""

    def __init__(self, work: Callable[[int], Any]) -> None:
        self._work = work

    def answer(self, row: dict[str, Any]) -> dict[str, bytes]:
        done: tuple[Any, Exception | None]
        try:
            done = self._work(int(row["id"])), None
        except (ValueError, OSError) as error:
            done = None, error  # as it is: Ray would wrap it into an error of its own
        return {"answer": pickle.dumps(done)}


@contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Ray: the one this process is in, that of ``RAY_ADDRESS``, or a local one of so many processes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    import ray
    import ray.data

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    here: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
    try:
        yield ray
    finally:
        ray.shutdown()
