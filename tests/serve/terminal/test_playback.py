"""Played samples are counted exactly, for pieces of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.serve.terminal.playback import PlaybackQueue

MS = 24  # samples


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(1, 70), min_size=1))
def test_output_equals_input(pushed, taken):
    queue, wanted, got = PlaybackQueue(), [], []
    for number, length in enumerate(pushed):
        samples = np.arange(1, length + 1, dtype=np.int16) + 100 * number
        queue.push("a", samples)
        wanted += list(samples)
    for count in taken:
        got += list(queue.take(count))
    total = sum(taken)
    assert got == (wanted + [0] * total)[:total]
    assert queue.is_empty == (total >= len(wanted))


@pytest.mark.parametrize("more_may_come", [True, False])
def test_stop_reports_the_played_part_of_an_answer(more_may_come):
    queue = PlaybackQueue()
    queue.push("a", np.ones(100 * MS, np.int16))
    queue.take(30 * MS)
    assert queue.stop("a" if more_may_come else None) == ("a", 30)
    assert not queue.take(5).any()


def test_stop_before_the_next_answer_starts_reports_zero():
    queue = PlaybackQueue()
    queue.push("a", np.ones(10 * MS, np.int16))
    queue.take(20 * MS)
    assert queue.stop(None) is None  # played to its end
    queue.push("b", np.ones(10 * MS, np.int16))
    assert queue.stop(None) == ("b", 0)


def test_output_latency_is_subtracted():
    queue = PlaybackQueue()
    queue.push("a", np.ones(100 * MS, np.int16))
    queue.take(30 * MS)
    assert queue.stop(None, delay_seconds=0.01) == ("a", 20)


def test_a_pause_loses_nothing():
    queue = PlaybackQueue()
    queue.push("a", np.ones(10, np.int16))
    queue.pause()
    assert not queue.take(4).any()
    queue.pause(False)
    assert queue.take(10).all()
