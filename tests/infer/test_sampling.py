"""Logits processors, each on a few logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.tasks import Sampling
from echat.infer import sampling
from echat.infer.sampling import LabelSlot, LoopGuard, RepeatGuard

LOGITS = torch.tensor([2.0, -1.0, 0.5, 2.0, 0.0])


def test_penalty_divides_positive_and_multiplies_negative_scores() -> None:
    found = sampling.penalise_repeats(LOGITS, [0, 1, 1], 2.0)
    assert found.tolist() == [1.0, -2.0, 0.5, 2.0, 0.0]
    assert LOGITS[0] == 2.0  # pure


def test_top_k_keeps_ties() -> None:
    assert torch.isfinite(sampling.keep_top_k(LOGITS, 1)).tolist() == [True, False, False, True, False]
    assert torch.equal(sampling.keep_top_k(LOGITS, 0), LOGITS)
    assert torch.equal(sampling.keep_top_k(LOGITS, 9), LOGITS)


def test_top_p_keeps_the_id_that_crosses() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert torch.isfinite(sampling.keep_top_p(logits, 0.6)).tolist() == [True, True, False]
    assert torch.isfinite(sampling.keep_top_p(logits, 0.01)).tolist() == [True, False, False]


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=30), st.integers(0, 10), st.floats(0.05, 1))
def test_probabilities_are_probabilities_and_keep_the_best(values: list[float], k: int, p: float) -> None:
    logits = torch.tensor(values)
    found = sampling.probabilities(logits, Sampling(sample=True, top_k=k, top_p=p, temperature=0.7))
    assert found.sum().item() == pytest.approx(1, abs=1e-4)
    assert logits[found > 0].max() == logits.max()


def test_seeded_samples_repeat() -> None:
    rule = Sampling(sample=True)
    samples = [
        [sampling.choose(LOGITS, rule, generator) for _ in range(20)]
        for generator in (torch.Generator().manual_seed(s) for s in (5, 5, 6))
    ]
    assert samples[0] == samples[1] != samples[2]


def test_age_slot() -> None:
    slot = LabelSlot(trigger=(7, 8), allowed=(1, 3))
    assert slot.matches([0, 7, 8]) and not slot.matches([7, 8, 0]) and not slot.matches([8])
    assert not LabelSlot((), (1,)).matches([1])
    assert torch.isfinite(slot.constrain(LOGITS)).tolist() == [False, True, False, True, False]


def test_guard_blocks_runs_and_frequent_ids() -> None:
    guard = RepeatGuard(classes=10, special_repeat={7: 10}, special_window={7: (13, 10)})
    assert guard.blocked([3] * 4) == []
    assert guard.blocked([3] * 5) == [3]
    assert guard.blocked([3] * 5 + [12]) == []  # not speech
    assert guard.blocked([7] * 9) == []
    assert guard.blocked([3, 1, 3, 3, 2, 3, 3]) == [3]
    assert guard.constrain(LOGITS.repeat(2), [3] * 5)[3] == sampling.BLOCKED
    assert torch.equal(guard.constrain(LOGITS, [1, 2]), LOGITS)


def test_loops_are_detected() -> None:
    assert sampling.is_looping([9, 1, 2, 3, 1, 2, 3], length=3, times=2)
    assert not sampling.is_looping([9, 1, 2, 3, 1, 2, 4], length=3, times=2)
    assert not sampling.is_looping([1, 2], length=3, times=2)


def blocked(ids: list[int]) -> set[int]:
    logits = LoopGuard(longest=4, times=3, ids=8).constrain(torch.zeros(10), ids)
    return set((logits == sampling.BLOCKED).nonzero()[:, 0].tolist())


def test_loops_of_text_are_blocked() -> None:
    """Blocked is the id that would repeat the loop once more, and nothing before it has repeated enough."""
    assert blocked([9, *[1, 2, 3] * 3]) == {1}
    assert blocked([9, *[1, 2, 3] * 3, 1]) == {2}  # the loop of another phase
    assert blocked([1, 2, 3] * 2) == set()
    assert blocked([5] * 7) == set() and blocked([5] * 8) == {5}
    assert blocked([1, 2] * 3) == set() and blocked([1, 2] * 4) == {1}
    assert blocked([*[1, 2, 3, 4, 5] * 4]) == set()  # longer than the guard looks


def test_the_guard_ends_a_loop() -> None:
    """Logits that always prefer the same cycle end in another id."""
    guard, ids = LoopGuard(), [0]
    for _ in range(40):
        scores = torch.zeros(6)
        scores[(ids[-1] + 1) % 3] = 1.0
        scores[5] = 0.5
        ids.append(int(guard.constrain(scores, ids).argmax()))
    assert 5 in ids
