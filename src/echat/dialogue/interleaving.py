"""Interleaving of text and speech ids: 6 text ids, 18 speech ids, … until the text ends, then only speech.

18 speech ids are 0.72 s of audio, more than 6 text ids take to say, so the text of speech always comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TEXT_CHUNK = 6
SPEECH_CHUNK = 18


@dataclass(frozen=True)
class Chunk:
    """A stretch of one kind: text ids, or speech ids (not offset)."""

    is_speech: bool
    ids: tuple[int, ...]


def fits_interleaving(n_text: int, n_speech: int) -> bool:
    """Does the speech outlast the text? Counts include the text end and both speech boundaries."""
    return n_text * SPEECH_CHUNK <= n_speech * TEXT_CHUNK


def interleave(text_ids: Sequence[int], speech_ids: Sequence[int], lead: int = 0) -> list[Chunk]:
    """Mix a text (its end id included) with its speech (both boundaries included).

    ``lead`` text ids, e.g. those of a thought, come first and bring no speech with them.
    """
    if not fits_interleaving(len(text_ids) - lead, len(speech_ids)):
        raise ValueError(
            f"interleaving: expected at least {SPEECH_CHUNK // TEXT_CHUNK} speech ids per text id, found "
            f"{len(speech_ids)} speech ids for {len(text_ids) - lead} text ids; "
            "drop the sample or speak the text more slowly"
        )
    return list(_mix(tuple(text_ids), tuple(speech_ids), lead))


def _mix(text_ids: tuple[int, ...], speech_ids: tuple[int, ...], lead: int) -> Iterator[Chunk]:
    text_position, speech_position, text_stop = 0, 0, lead + TEXT_CHUNK
    while text_position < len(text_ids):
        yield Chunk(False, text_ids[text_position:text_stop])
        text_position, text_stop = text_stop, text_stop + TEXT_CHUNK
        if text_position >= len(text_ids):
            break
        yield Chunk(True, speech_ids[speech_position : speech_position + SPEECH_CHUNK])
        speech_position += SPEECH_CHUNK
    if speech_position < len(speech_ids):
        yield Chunk(True, speech_ids[speech_position:])


def is_speech_next(n_text: int, n_speech: int, text_ended: bool) -> bool:
    """Decoding: is the next id speech, after so many text ids (without lead) and speech ids?"""
    return text_ended or n_text >= TEXT_CHUNK * (n_speech // SPEECH_CHUNK + 1)
