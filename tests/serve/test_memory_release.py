"""Garbage is collected and the heap trimmed while the server runs; without glibc nothing is trimmed."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from echat.serve import memory_release


class Calls:
    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []

    def mallopt(self, what: int, value: int) -> int:
        self.made.append((f"mallopt {what}", value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.made.append(("malloc_trim", pad))
        return 1


class Circle:
    def __init__(self) -> None:
        self.me = self


class Clock:
    """A sleep without time, which checks at each call whether garbage is left; the last call cancels."""

    def __init__(self, sleeps: int) -> None:
        self.left, self.asked, self.garbage_left = sleeps, [], []
        self._last: weakref.ref[Circle] | None = None

    async def sleep(self, seconds: float) -> None:
        assert gc.get_freeze_count() > 0
        self.asked.append(seconds)
        if self._last is not None:
            self.garbage_left.append(self._last() is not None)
        self._last = weakref.ref(Circle())
        self.left -= 1
        if not self.left:
            raise asyncio.CancelledError


def live(clock: Clock) -> None:
    gc.disable()
    try:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(memory_release.release_memory(clock.sleep))
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0


def test_arenas_are_limited_and_the_heap_is_trimmed_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, clock = Calls(), Clock(4)
    monkeypatch.setattr(memory_release, "_glibc", lambda: calls)
    live(clock)
    assert calls.made == [("mallopt -8", memory_release.ARENAS), *[("malloc_trim", 0)] * 3]
    assert clock.asked == [memory_release.SECONDS_BETWEEN] * 4


@pytest.mark.slow
@pytest.mark.parametrize("libc", [None, Calls()], ids=["without glibc", "with glibc"])
def test_reference_cycles_are_collected(monkeypatch: pytest.MonkeyPatch, libc: Calls | None) -> None:
    clock = Clock(3)
    monkeypatch.setattr(memory_release, "_glibc", lambda: libc)
    live(clock)
    assert clock.garbage_left == [False, False]


def test_the_c_library_of_this_process_is_found() -> None:
    libc = memory_release._glibc()
    assert libc is None or libc.malloc_trim(0) in (0, 1)
