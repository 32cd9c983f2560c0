"""Mixing loses nothing, repeats the recorded mixes, and a decoder can follow it step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.interleaving import Chunk, deinterleave, fits_interleaving, interleave, is_speech_next

PROCESSORS = json.loads(
    (Path(__file__).parent.parent / "assets" / "model" / "processors.json").read_text(encoding="utf-8")
)


def flat(chunks: list[Chunk], offset: int) -> list[int]:
    return [id_ + offset * chunk.is_speech for chunk in chunks for id_ in chunk.ids]


def recorded(name: str) -> list[tuple[list[int], list[int], int, list[int]]]:
    return [
        (text, speech, case["speech_offset"], result)
        for case in PROCESSORS[name]
        if not isinstance(case["result"], str)
        for text, speech, result in zip(case["text"], case["speech"], case["result"], strict=True)
    ]


@pytest.mark.parametrize("text,speech,offset,result", recorded("interleave"))
def test_recorded_mixes(text: list[int], speech: list[int], offset: int, result: list[int]) -> None:
    assert flat(interleave(text, speech), offset) == result


@pytest.mark.parametrize("text,speech,offset,result", recorded("interleave_think"))
def test_recorded_mixes_after_a_thought(
    text: list[int], speech: list[int], offset: int, result: list[int]
) -> None:
    lead = text.index(29) + 1 if 29 in text else 0
    assert flat(interleave(text, speech, lead), offset) == result


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    text = draw(st.lists(st.integers(0, 99), min_size=1, max_size=40))
    extra = draw(st.integers(0, 40))
    return text, list(range(3 * len(text) + extra))


@given(pairs())
def test_deinterleave_undoes_interleave(pair: tuple[list[int], list[int]]) -> None:
    text, speech = pair
    chunks = interleave(text, speech)
    assert deinterleave(chunks) == (text, speech)
    assert all(chunk.ids for chunk in chunks)


@given(pairs())
def test_decoder_can_tell_what_comes_next(pair: tuple[list[int], list[int]]) -> None:
    text, speech = pair
    kinds = [chunk.is_speech for chunk in interleave(text, speech) for _ in chunk.ids]
    n_text = n_speech = 0
    for is_speech in kinds:
        assert is_speech_next(n_text, n_speech, n_text == len(text)) == is_speech
        n_speech += is_speech
        n_text += not is_speech


def test_speech_too_short_for_its_text_is_refused() -> None:
    refused = [case for case in PROCESSORS["interleave"] if isinstance(case["result"], str)]
    assert not any(fits_interleaving(len(case["text"][0]), len(case["speech"][0])) for case in refused)
    assert not fits_interleaving(4, 11)
    with pytest.raises(ValueError, match="found 11 speech ids for 4 text ids"):
        interleave([1, 2, 3, 4], list(range(11)))
