"""Free memory goes back while the server lives, and nothing happens where the C library cannot."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from echat.serve import heap


class Calls:
    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []

    def mallopt(self, what: int, value: int) -> int:
        self.made.append((f"mallopt {what}", value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.made.append(("malloc_trim", pad))
        return 1


def test_few_arenas_and_what_is_free_goes_back_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr(heap, "_glibc", lambda: calls)
    monkeypatch.setattr(heap, "SECONDS_BETWEEN", 0.0)

    async def live() -> None:
        tidying = asyncio.create_task(heap.tidy())
        while len(calls.made) < 4:
            await asyncio.sleep(0.001)
        tidying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tidying

    asyncio.run(asyncio.wait_for(live(), 20))
    assert calls.made[0] == ("mallopt -8", heap.ARENAS)
    assert set(calls.made[1:]) == {("malloc_trim", 0)}


class Circle:
    def __init__(self) -> None:
        self.me = self


def test_garbage_in_circles_goes_with_and_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    monkeypatch.setattr(heap, "SECONDS_BETWEEN", 0.0)

    async def live() -> None:
        tidying = asyncio.create_task(heap.tidy())
        await asyncio.sleep(0)  # it has begun
        assert gc.get_freeze_count() > 0
        gone = weakref.ref(Circle())
        while gone() is not None:
            await asyncio.sleep(0.001)
        tidying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tidying

    gc.disable()
    try:
        asyncio.run(asyncio.wait_for(live(), 20))
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0


def test_the_library_of_this_process_is_asked() -> None:
    libc = heap._glibc()
    assert libc is None or libc.malloc_trim(0) in (0, 1)
