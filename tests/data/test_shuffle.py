"""Permutations computed by position: complete, keyed, and local in blocks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.data.shuffle import BlockPermutation, Permutation

KEYS = st.integers(0, 2**64)


@given(st.integers(1, 300), KEYS)
def test_every_number_comes_once_and_its_place_is_known(size, key):
    order = Permutation(size, key)
    numbers = [order[position] for position in range(size)]
    assert sorted(numbers) == list(range(size))
    assert [order.index(number) for number in numbers] == list(range(size))


@given(st.integers(1, 300), KEYS, st.integers(1, 40), st.integers(1, 6))
def test_every_number_comes_once_with_blocks_too(size, key, block, window):
    order = BlockPermutation(size, key, block, window)
    assert sorted(order[position] for position in range(size)) == list(range(size))


@given(KEYS, st.integers(1, 12), st.integers(1, 4))
def test_a_window_holds_few_blocks(key, block, window):
    order = BlockPermutation(block * 20, key, block, window)
    numbers = [order[position] // block for position in range(len(order))]
    for start in range(0, len(order), block * window):
        assert len(set(numbers[start : start + block * window])) <= window


def test_keys_and_positions_are_unrelated():
    orders = np.array([[Permutation(1000, key)[i] for i in range(1000)] for key in range(40)])
    assert len({tuple(order) for order in orders}) == 40
    correlations = np.abs(np.corrcoef([*orders, np.arange(1000)]))[np.triu_indices(41, 1)]
    assert correlations.mean() < 0.05 and correlations.max() < 0.2  # 1 / sqrt(1000) is what chance gives
    follows = np.mean([abs(a - b) == 1 for order in orders for a, b in pairwise(order)])
    assert follows < 0.006  # chance: 2 of 1000


def test_a_great_corpus_costs_nothing():
    order = Permutation(10**12, 7)
    assert order.index(order[123_456_789_012]) == 123_456_789_012
    blocks = BlockPermutation(10**12 + 17, 7, 1000)
    assert len({blocks[position] for position in range(5 * 10**11, 5 * 10**11 + 500)}) == 500


def test_a_position_outside_is_refused():
    with pytest.raises(IndexError, match="0..4, found 5"):
        Permutation(5, 0)[5]
