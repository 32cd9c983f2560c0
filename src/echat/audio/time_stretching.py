"""Time stretching at constant pitch by waveform similarity overlap-add (WSOLA; Verhelst and Roelands, 1993).

A frame is `2 * step` samples. Frames follow each other by `step` in the output and by `step * speed` in the
input.
"""

from __future__ import annotations

import numpy as np

FRAME_SECONDS = 0.04
SEARCH_SECONDS = 0.008  # how far a frame may move to fit the one before it


class TimeStretcher:
    """Streaming WSOLA; the result does not depend on the chunks."""

    def __init__(self, rate: int, speed: float) -> None:
        if not 0.1 <= speed <= 10:
            raise ValueError(f"speed: expected 0.1 to 10, found {speed}")
        self._step = int(rate * FRAME_SECONDS) // 2  # S
        self._search = int(rate * SEARCH_SECONDS)
        self._speed = speed
        self._window = np.hanning(2 * self._step + 1)[:-1].astype(np.float32)
        self._input = np.zeros(0, np.float32)
        self._begin = 0  # position of the first sample that is kept
        self._frames = 0  # made so far
        self._position = 0  # of the last frame
        self._tail = np.zeros(self._step, np.float32)

    def push(self, waveform: np.ndarray, last: bool = False) -> np.ndarray:
        """The next samples; `last` gives the rest."""
        self._input = np.concatenate([self._input, waveform.astype(np.float32)])
        end = self._begin + len(self._input)
        n_frame = 2 * self._step
        if last:
            self._input = np.concatenate([self._input, np.zeros(2 * n_frame + self._search, np.float32)])
        made = []
        while True:
            ideal = round(self._frames * self._step * self._speed)
            reached = self._begin + len(self._input)
            if max(ideal, self._position + self._step) + self._search + n_frame > reached or (
                last and ideal >= end
            ):
                break
            made.append(self._next(ideal))
        keep = max(self._begin, min(self._position + self._step, ideal - self._search))
        self._input, self._begin = self._input[keep - self._begin :], keep
        return np.concatenate(made) if made else np.zeros(0, np.float32)

    def _next(self, ideal: int) -> np.ndarray:
        """One more step of output, from the frame near `ideal` that continues the one before best."""
        position = ideal
        if self._frames:
            position = self._best(ideal, self._at(self._position + self._step, self._step))
        frame = self._at(position, 2 * self._step) * self._window
        first = self._frames == 0
        sound = self._at(position, self._step) if first else self._tail + frame[: self._step]
        self._tail, self._position, self._frames = frame[self._step :], position, self._frames + 1
        return sound

    def _best(self, ideal: int, template: np.ndarray) -> int:
        begin = max(self._begin, ideal - self._search)
        candidates = self._at(begin, self._search + ideal - begin + len(template))
        products = np.correlate(candidates, template, "valid")
        squares = np.concatenate([[0.0], np.cumsum(candidates.astype(np.float64) ** 2)])
        energy = squares[len(template) :] - squares[: len(squares) - len(template)]
        return begin + int(np.argmax(products / np.sqrt(energy + 1e-9)))

    def _at(self, position: int, length: int) -> np.ndarray:
        start = position - self._begin
        return self._input[start : start + length]
