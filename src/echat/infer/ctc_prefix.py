"""How probable it is that a sound begins with certain ids, by CTC, one id after the other.

Watanabe et al. 2017, "Hybrid CTC/attention architecture", algorithm 2, kept for all frames at once.

Legend: D frames of the sound, V text ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEAST = -20.0
"""Log probability of a next id that the sound cannot hold at all: the language model may still insist."""
_NEVER = -1e30


@dataclass(frozen=True)
class Prefix:
    """How probable it is that a sound begins with certain ids: the forward variables of CTC.

    Log probabilities; of all alignments of the ids with frames 0 to t, those whose last frame is the last id
    (`ended`) and those whose last frame is blank (`paused`).
    """

    log_probs: np.ndarray  # (D, V)
    likely: np.ndarray  # ids that can come next at all
    narrow: np.ndarray  # (D, likely ids)
    blank: int
    ended: np.ndarray  # (D,)
    paused: np.ndarray  # (D,)
    last: int | None = None
    total: float = 0.0  # that the sound begins with the ids, whatever follows

    @classmethod
    def of(cls, log_probs: np.ndarray, blank: int) -> Prefix:
        """No ids yet: nothing but blanks.

        An id comes next with at most the sum of its probabilities at all frames. Where that is below `LEAST`
        nothing needs to be summed up, which leaves few ids of a large table.
        """
        likely = np.flatnonzero(log_probs.max(axis=0) > LEAST - np.log(len(log_probs)))
        paused = np.cumsum(log_probs[:, blank])
        return cls(log_probs, likely, log_probs[:, likely], blank, np.full(len(log_probs), _NEVER), paused)

    def after(self, ids: Sequence[int]) -> Prefix:
        """The prefix with these ids at its end."""
        prefix = self
        for id_ in ids:
            prefix = prefix._with(id_)
        return prefix

    def next(self) -> np.ndarray:
        """(V,) log probability of each id to come next, given the prefix."""
        scores = np.full(self.log_probs.shape[1], _NEVER)
        scores[self.likely] = _log_sum(self._reached()[:, None] + self.narrow)
        if self.last is not None:  # the same id again needs a blank between
            scores[self.last] = _log_sum(self._reached(self.last) + self.log_probs[:, self.last])
        return np.asarray(np.maximum(scores - self.total, LEAST))

    @property
    def end(self) -> float:
        """Log probability that nothing comes after the prefix, given the prefix."""
        return float(np.logaddexp(self.ended[-1], self.paused[-1])) - self.total

    def _reached(self, id_: int | None = None) -> np.ndarray:
        """(D,) that the prefix is complete before frame t, and this id may begin there."""
        whole = self.paused if id_ is not None and id_ == self.last else np.logaddexp(self.ended, self.paused)
        return np.concatenate([[0.0 if self.last is None else _NEVER], whole[:-1]])

    def _with(self, id_: int) -> Prefix:
        begins = self._reached(id_) + self.log_probs[:, id_]
        total = float(_log_sum(begins))
        # on(t) = begin(t) + on(t-1) stay(t) and off(t) = (on(t-1) + off(t-1)) rest(t), for all t at once:
        # divided by the product of all stays (rests) so far, both are running sums.
        stays, rests = np.cumsum(self.log_probs[:, id_]), np.cumsum(self.log_probs[:, self.blank])
        ended = np.logaddexp.accumulate(begins - stays) + stays
        paused = np.full(len(ended), _NEVER)
        paused[1:] = np.logaddexp.accumulate(ended - rests)[:-1] + rests[1:]
        return replace(self, ended=ended, paused=paused, last=id_, total=total)


def _log_sum(values: np.ndarray) -> np.ndarray:
    """Logarithm of the sum of exponentials over the first axis."""
    most = values.max(axis=0)
    return np.asarray(most + np.log(np.exp(values - most).sum(axis=0)))
