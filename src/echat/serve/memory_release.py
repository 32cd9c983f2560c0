"""Memory that is no longer needed goes back to the system, so that a server stays as large as what it holds.

In half an hour of users who came and went a server of echat-tiny grew by a quarter, for two reasons. Python
looks for garbage in circles (a torn connection leaves some, sounds in it) only when a quarter of all objects
is new, and a loaded model has 400,000; so those that are there at the start are counted no more. And glibc
keeps an arena for each of many threads, full of holes.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Awaitable, Callable

SECONDS_BETWEEN = 30.0
ARENAS = 2  # as many as threads that allocate at the same time
_M_ARENA_MAX = -8  # of malloc.h


async def release_memory(sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Until cancelled: every half minute collect garbage and give back what is free."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_ARENA_MAX, ARENAS)
    gc.collect()
    gc.freeze()
    try:
        while True:
            await sleep(SECONDS_BETWEEN)
            await asyncio.to_thread(_trim, libc)
    finally:
        gc.unfreeze()


def _trim(libc: ctypes.CDLL | None) -> None:
    gc.collect()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, where it has both calls."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has none by this name
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
