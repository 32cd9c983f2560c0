"""Interleaving loses nothing, and a decoder can follow it step by step.

`echat verify` compares it with recorded mixes.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.interleaving import fits_interleaving, interleave, is_speech_next


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    text = draw(st.lists(st.integers(0, 99), min_size=1, max_size=40))
    extra = draw(st.integers(0, 40))
    return text, list(range(3 * len(text) + extra))


@given(pairs())
def test_each_kind_keeps_its_ids_and_their_order(pair: tuple[list[int], list[int]]) -> None:
    chunks = interleave(*pair)
    for is_speech, ids in enumerate(pair):
        assert [id_ for chunk in chunks if chunk.is_speech == is_speech for id_ in chunk.ids] == ids
    assert all(chunk.ids for chunk in chunks)


@given(pairs())
def test_a_decoder_knows_which_kind_comes_next(pair: tuple[list[int], list[int]]) -> None:
    text, speech = pair
    kinds = [chunk.is_speech for chunk in interleave(text, speech) for _ in chunk.ids]
    n_text = n_speech = 0
    for is_speech in kinds:
        assert is_speech_next(n_text, n_speech, n_text == len(text)) == is_speech
        n_speech += is_speech
        n_text += not is_speech


def test_speech_too_short_for_its_text_is_refused() -> None:
    assert fits_interleaving(4, 12) and not fits_interleaving(4, 11)
    with pytest.raises(ValueError, match="found 11 speech ids for 4 text ids"):
        interleave([1, 2, 3, 4], list(range(11)))
