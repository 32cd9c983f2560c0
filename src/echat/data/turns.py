"""The earlier turns of a dialogue as samples of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from echat.data.sample import Sample
from echat.dialogue.labels import Labels


def prefixes(sample: Sample) -> Iterator[Sample]:
    """The dialogue as it stood after each earlier turn, the first turn first.

    Only what a turn says of itself is kept: cues, thought and reply emotion belong to the last question.
    """
    for number, turn in enumerate(sample.history):
        yield replace(
            sample,
            key=f"{sample.key}#{number + 1}",
            audio=turn.audio,
            text=turn.text,
            labels=Labels(),
            prompt=None,
            target=None,
            reply=turn.reply,
            reply_emotion=None,
            reply_audio=None,
            speech_ids=turn.speech_ids,
            thought=None,
            history=sample.history[:number],
            seconds=None,
        )
