"""The loss of a beginning is the sum over all alignments of it, and forgets what follows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from echat.train.extras.prefix_ctc import prefix_losses

BLANK, CLASSES = 0, 4


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(unit for unit, _ in itertools.groupby(path) if unit != BLANK)


def summed(log_probs: torch.Tensor, beginning: tuple[int, ...]) -> float:
    """-log of the sum over every path of (T, V) whose text begins so."""
    total = 0.0
    for path in itertools.product(range(CLASSES), repeat=len(log_probs)):
        if collapsed(path)[: len(beginning)] == beginning:
            total += math.exp(float(sum(log_probs[t, unit] for t, unit in enumerate(path))))
    return -math.log(total)


@pytest.fixture
def log_probs() -> torch.Tensor:
    return torch.randn(6, 3, CLASSES, generator=torch.Generator().manual_seed(1)).log_softmax(-1).double()


@pytest.mark.parametrize("beginning", [(1,), (1, 2), (3, 3), (2, 2, 1)])
def test_it_is_the_sum_over_all_alignments(log_probs, beginning):
    units = torch.tensor([beginning]).expand(3, -1)
    lens = torch.tensor([6, 5, 4])
    losses = prefix_losses(log_probs, units, lens, torch.full((3,), len(beginning)), BLANK)
    wanted = [summed(log_probs[:length, row], beginning) for row, length in enumerate(lens.tolist())]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-6)


def test_clips_of_one_batch_do_not_change_each_other(log_probs):
    units, unit_lens = torch.tensor([[1, 2, 3], [2, 0, 0], [3, 1, 0]]), torch.tensor([3, 1, 2])
    lens = torch.tensor([6, 3, 5])
    together = prefix_losses(log_probs, units, lens, unit_lens, BLANK)
    for row in range(3):
        alone = prefix_losses(
            log_probs[: lens[row], row : row + 1],
            units[row : row + 1, : unit_lens[row]],
            lens[row : row + 1],
            unit_lens[row : row + 1],
            BLANK,
        )
        assert float(alone) == pytest.approx(float(together[row]), rel=1e-9)


def test_no_whole_text_is_likelier_than_its_beginning(log_probs):
    units, lens = torch.tensor([[1, 2]] * 3), torch.full((3,), 6)
    whole = F.ctc_loss(log_probs, units, lens, torch.full((3,), 2), BLANK, reduction="none")
    assert (prefix_losses(log_probs, units, lens, torch.full((3,), 2), BLANK) <= whole).all()


def test_its_gradient_is_that_of_the_probability():
    scores = torch.randn(5, 2, CLASSES, dtype=torch.double, generator=torch.Generator().manual_seed(2))

    def of(logits: torch.Tensor) -> torch.Tensor:
        units, unit_lens = torch.tensor([[1, 1], [2, 3]]), torch.tensor([2, 2])
        return prefix_losses(logits.log_softmax(-1), units, torch.tensor([5, 4]), unit_lens, BLANK)

    assert torch.autograd.gradcheck(of, scores.requires_grad_())
