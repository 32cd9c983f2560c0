"""Playback queue that counts the played samples of each answer."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from echat.serve.protocol.session import PCM_RATE


class PlaybackQueue:
    """24 kHz int16 samples of answers, in order; written by one thread, read by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: deque[tuple[str, np.ndarray]] = deque()
        self._item_id: str | None = None  # the answer that is played, or was last
        self._played = 0  # samples of it
        self._is_paused = False

    def push(self, item_id: str, samples: np.ndarray) -> None:
        """Append audio of an answer."""
        if len(samples):
            with self._lock:
                self._pieces.append((item_id, samples))

    def take(self, count: int) -> np.ndarray:
        """The next samples (count,), padded with silence."""
        output = np.zeros(count, np.int16)
        filled = 0
        with self._lock:
            while filled < count and self._pieces and not self._is_paused:
                item_id, samples = self._pieces.popleft()
                part = samples[: count - filled]
                if len(part) < len(samples):
                    self._pieces.appendleft((item_id, samples[len(part) :]))
                if item_id != self._item_id:
                    self._item_id, self._played = item_id, 0
                output[filled : filled + len(part)] = part
                filled += len(part)
                self._played += len(part)
        return output

    def pause(self, is_paused: bool = True) -> None:
        """Pause or resume."""
        with self._lock:
            self._is_paused = is_paused

    def stop(self, active_item_id: str | None, delay_seconds: float = 0.0) -> tuple[str, int] | None:
        """Drop the queue. Returns the interrupted answer and its played milliseconds; None without an answer.

        `active_item_id` is the answer that is not complete yet, `delay_seconds` the output latency.
        """
        with self._lock:
            cut = self._pieces[0][0] if self._pieces else active_item_id
            played = self._played if cut is not None and cut == self._item_id else 0
            self._pieces.clear()
            self._is_paused = False
        if cut is None:
            return None
        return cut, 1000 * max(0, played - round(delay_seconds * PCM_RATE)) // PCM_RATE

    @property
    def is_empty(self) -> bool:
        with self._lock:
            return not self._pieces
