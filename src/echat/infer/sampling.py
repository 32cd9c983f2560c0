"""Sampling of the next id from logits: logits processors as pure functions, in the order of the reference.

repetition penalty -> constraints (age slot, repeat guard) -> temperature -> top-k -> top-p -> softmax.

Legend: `logits` (classes,) float32 of one row; ids are those generated so far in the same id space.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echat.dialogue.tasks import Sampling

BLOCKED = float("-inf")


def penalise_repeats(logits: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Make every id already generated less likely: positive scores divided, negative ones multiplied."""
    if penalty == 1.0 or not ids:
        return logits
    seen = torch.tensor(sorted(set(ids)), device=logits.device)
    scores = logits[seen]
    return logits.index_copy(0, seen, torch.where(scores < 0, scores * penalty, scores / penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Block all but the k best; ids that tie with the k-th stay."""
    if k <= 0 or k >= len(logits):
        return logits
    threshold = torch.topk(logits, k).values[-1]
    return logits.masked_fill(logits < threshold, BLOCKED)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Block the least likely ids whose mass together is at most 1 - p; the best always stays."""
    if p >= 1.0:
        return logits
    ids = _open_ids(logits)  # few after top-k
    ascending, order = torch.sort(logits[ids])
    is_tail = ascending.softmax(dim=0).cumsum(dim=0) <= 1 - p
    is_tail[-1] = False
    return logits.index_fill(0, ids[order[is_tail]], BLOCKED)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, top-k, top-p, softmax; `logits` already carry penalty and rules."""
    return _kept(logits, sampling).softmax(dim=0)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> int:
    """The next id: the best one, or one sampled from `probabilities`."""
    if not sampling.sample:
        return int(logits.argmax())
    kept = _kept(logits, sampling)
    ids = _open_ids(kept)  # sampling from all text ids takes 3 ms, more than a step on a GPU
    return int(ids[torch.multinomial(kept[ids].softmax(dim=0), 1, generator=generator)])


def _kept(logits: Tensor, sampling: Sampling) -> Tensor:
    return keep_top_p(keep_top_k(logits / sampling.temperature, sampling.top_k), sampling.top_p)


def _open_ids(logits: Tensor) -> Tensor:
    """The ids that are not blocked, ascending."""
    return (logits > BLOCKED).nonzero().squeeze(1)


@dataclass(frozen=True)
class LabelSlot:
    """After the ids `trigger` only `allowed` may follow (a word of a label thought), once per reply."""

    trigger: tuple[int, ...]
    allowed: tuple[int, ...]

    def matches(self, ids: Sequence[int]) -> bool:
        """Do the generated ids end with the trigger?"""
        return bool(self.trigger) and tuple(ids[-len(self.trigger) :]) == self.trigger

    def constrain(self, logits: Tensor) -> Tensor:
        """Block everything but the allowed ids."""
        allowed = torch.tensor(self.allowed, device=logits.device)
        return torch.full_like(logits, BLOCKED).index_copy(0, allowed, logits[allowed])


@dataclass(frozen=True)
class RepeatGuard:
    """Blocks a speech id that repeats too long in a row, or too often in a short window.

    The defaults are the limits of the reference for ordinary ids; `special_*` give single ids (such as
    silence) their own. Ids >= `classes` are not speech and are never counted or blocked.
    """

    classes: int
    repeat_times: int = 5  # ids in a row
    window: int = 8  # look-back of the second rule, in ids
    window_repeat: int = 5  # occurrences within the window
    special_repeat: Mapping[int, int] = field(default_factory=dict)
    special_window: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # id -> (window, occurrences)

    def blocked(self, ids: Sequence[int]) -> list[int]:
        """Speech ids that must not come next."""
        if not ids or ids[-1] >= self.classes:
            return []
        blocked = (
            {ids[-1]} if self._tail_run(ids) >= self.special_repeat.get(ids[-1], self.repeat_times) else set()
        )
        longest = max([self.window, *(window for window, _ in self.special_window.values())])
        for candidate in set(ids[-longest:]):
            window, limit = self.special_window.get(candidate, (self.window, self.window_repeat))
            if candidate < self.classes and Counter(ids[-window:])[candidate] >= limit:
                blocked.add(candidate)
        return sorted(blocked)

    def constrain(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        """Block what `blocked` names."""
        blocked = self.blocked(ids)
        if not blocked:
            return logits
        return logits.index_fill(0, torch.tensor(blocked, device=logits.device), BLOCKED)

    @staticmethod
    def _tail_run(ids: Sequence[int]) -> int:
        run = 0
        for previous in reversed(ids):
            if previous != ids[-1]:
                break
            run += 1
        return run


@dataclass(frozen=True)
class LoopGuard:
    """Blocks the text id that would continue a loop: ids that were just repeated several times.

    A model that cannot transcribe the audio may loop for ever. With this block it continues, e.g. with the
    labels after a transcript. Repetitions of natural speech ("no no no") stay below the limits.
    """

    longest: int = 16  # ids of a loop
    times: int = 3  # repetitions
    ids: int = 8  # of all repetitions together, at least

    def constrain(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        """Block the ids that would continue a loop of any length."""
        blocked = {ids[-length] for length in range(1, self.longest + 1) if self._loops(ids, length)}
        if not blocked:
            return logits
        return logits.index_fill(0, torch.tensor(sorted(blocked), device=logits.device), BLOCKED)

    def _loops(self, ids: Sequence[int], length: int) -> bool:
        return is_looping(ids, length, max(self.times, -(-self.ids // length)))


def is_looping(ids: Sequence[int], length: int, times: int) -> bool:
    """Are the last ids `length` ids that repeat `times` times?"""
    if len(ids) < length * times:
        return False
    tail = list(ids[-length * times :])
    return all(tail[i] == tail[i % length] for i in range(len(tail)))


def derived_seed(seed: int, number: int) -> int:
    """The seed of a retry; that of try 0 is the seed itself."""
    return (seed + number * 1_000_003) % 2**63 if number else seed
