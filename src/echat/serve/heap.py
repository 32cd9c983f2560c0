"""Memory that was freed goes back to the system, so that a server stays as large as what it holds.

glibc keeps an arena for each of many threads, and in each what the largest sound of its life needed, with
holes where others were. In half an hour of users who came and went a server of echat-tiny grew by a quarter.
Elsewhere than on glibc nothing is done.
"""

from __future__ import annotations

import asyncio
import ctypes

SECONDS_BETWEEN = 30.0
ARENAS = 2  # as many as threads that allocate at the same time
_M_ARENA_MAX = -8  # of malloc.h


async def tidy() -> None:
    """Until cancelled: hold few arenas, and give back what is free every half minute."""
    libc = _glibc()
    if libc is None:
        return
    libc.mallopt(_M_ARENA_MAX, ARENAS)
    while True:
        await asyncio.sleep(SECONDS_BETWEEN)
        await asyncio.to_thread(libc.malloc_trim, 0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it has both calls."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has none by this name
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
