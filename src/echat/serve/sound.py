"""What the user said, as long as it may still be needed: samples by their place in the session."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.vad import FRAME

WINDOW = 30 * SAMPLE_RATE  # a long question is heard in pieces of this length
MIN_WINDOW = SAMPLE_RATE  # a rest shorter than this is heard with the piece before it


class Sound:
    """16 kHz int16 samples that arrive, are looked at frame by frame, and are dropped from the front."""

    def __init__(self) -> None:
        self._pieces: deque[np.ndarray] = deque()
        self.begin = 0  # place of the first sample that is kept
        self.end = 0  # place behind the last one
        self._looked_at = 0

    @property
    def seconds(self) -> float:
        """Received in this session."""
        return self.end / SAMPLE_RATE

    def push(self, samples: np.ndarray) -> None:
        """Add what came."""
        if len(samples):
            self._pieces.append(samples)
            self.end += len(samples)

    def frames(self) -> Iterator[tuple[np.ndarray, float]]:
        """Whole frames (512,) not looked at yet, and the time at which each ends."""
        while self._looked_at + FRAME <= self.end:
            start = self._looked_at
            self._looked_at += FRAME
            yield self.take(start, self._looked_at), self._looked_at / SAMPLE_RATE

    def take(self, begin: int, end: int) -> np.ndarray:
        """A copy of the samples from `begin` to `end`, as far as they are kept."""
        begin, end = max(begin, self.begin), min(end, self.end)
        parts, place = [], self.end
        for piece in reversed(self._pieces):  # what is wanted lies at the end
            place -= len(piece)
            if place >= end:
                continue
            parts.append(piece[max(0, begin - place) : end - place])
            if place <= begin:
                break
        return np.concatenate(parts[::-1]) if parts else np.zeros(0, np.int16)

    def drop_before(self, place: int) -> None:
        """Forget what lies before."""
        while self._pieces and self.begin + len(self._pieces[0]) <= min(place, self.end):
            self.begin += len(self._pieces.popleft())

    def skip(self) -> None:
        """Nothing that has come needs to be looked at any more."""
        self._looked_at = self.end


def windows(samples: np.ndarray) -> list[np.ndarray]:
    """Cut (n,) samples into windows; each but the last has the same length whatever comes after it."""
    cuts = list(range(0, len(samples), WINDOW)) or [0]
    if len(cuts) > 1 and len(samples) - cuts[-1] < MIN_WINDOW:
        cuts.pop()
    return [samples[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(samples)])]
