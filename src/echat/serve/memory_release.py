"""Garbage collection and malloc trimming: returns freed RAM to the operating system.

Without it a server of echat-tiny grew by a quarter in half an hour of sessions that came and went, for two
reasons. Python collects reference cycles (a lost connection leaves some, with audio in them) only when a
quarter of all objects is new, and a loaded model has 400,000; so the objects at the start are frozen. And
glibc keeps a fragmented arena for each of many threads.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Awaitable, Callable

SECONDS_BETWEEN = 30.0
ARENAS = 2  # about as many as threads that allocate at the same time
_M_ARENA_MAX = -8  # of malloc.h


async def release_memory(sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Collect garbage and trim the heap every half minute, until cancelled."""
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
    """The C library of this process, if it has both functions."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
