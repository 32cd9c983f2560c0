"""The user's side of a session: bytes in, signals of turn-taking out, and the sound of a turn when asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.vad import VoiceActivity
from echat.serve.protocol.session import EAGERNESS_SECONDS, AudioInput, EchatOptions, TurnDetection
from echat.serve.sound import Sound
from echat.serve.turn_taking import Phase, Signal, TurnConfig, TurnTaking
from echat.serve.wire_audio import BYTES_PER_SAMPLE, Decoder, rate_of

SLICE_SECONDS = 0.5  # of sound looked at without letting others have their turn
KEPT_SECONDS = 6.0  # of sound before a turn: the longest prefix, and a little


class Listener:
    """Local to one session."""

    def __init__(self, vad: VoiceActivity, base: TurnConfig, max_seconds: float) -> None:
        self._vad, self._base = vad, base
        self._state = vad.begin()
        self._decoder = Decoder("audio/pcm")
        self._max_seconds = max_seconds
        self._heard_before = 0.0  # seconds received in other formats
        self.sound = Sound()
        self.turns: TurnTaking | None = TurnTaking(base)  # None: the client says when a turn is over
        self.turn_begin = 0  # place of the first sample that belongs to the next turn
        self.replying = False  # does an answer sound? kept up to date by the session
        self.is_full = False

    def configure(self, heard: AudioInput, options: EchatOptions) -> None:
        """Take over a changed session; a turn that is under way starts anew where its rules change."""
        if heard.format.type != self._decoder.name:
            self.sound.push(self._decoder.push(b"", last=True))
            self._heard_before += self._decoder.seconds
            self._decoder = Decoder(heard.format.type)
        config = self._config(heard.turn_detection, options)
        if config is None:
            if self.turns is not None:
                self.turns = None
                self.turn_begin = self.sound.end
        elif self.turns is None:
            self.turns = TurnTaking(config)
            self.sound.skip()
            self._state = self._vad.begin()
        else:
            self.turns.config = config

    def _config(self, detection: TurnDetection | None, options: EchatOptions) -> TurnConfig | None:
        if detection is None:
            return None
        changes: dict[str, float | bool] = {"max_turn_seconds": self._max_seconds}
        if detection.type == "semantic_vad":
            changes |= {
                "adaptive": True,
                "max_wait_seconds": EAGERNESS_SECONDS[detection.eagerness or "auto"],
            }
        else:
            assert detection.silence_duration_ms is not None and detection.prefix_padding_ms is not None
            changes |= {
                "adaptive": False,
                "threshold": detection.threshold or 0.0,
                "prefix_seconds": detection.prefix_padding_ms / 1000,
                "silence_seconds": detection.silence_duration_ms / 1000,
            }
        if options.interrupt_ms is not None:
            changes["interrupt_seconds"] = options.interrupt_ms / 1000
        return self._base.model_copy(update=changes)

    @property
    def received_ms(self) -> int:
        """Sound received in this session."""
        return int(1000 * (self._heard_before + self._decoder.seconds))

    async def hear(self, data: bytes) -> AsyncIterator[Signal]:
        """Take in bytes of the client's format; signals in their order, each before what follows it is
        heard."""
        name = self._decoder.name
        step = int(SLICE_SECONDS * rate_of(name)) * BYTES_PER_SAMPLE[name]
        for place in range(0, len(data), step):
            if place:
                await asyncio.sleep(0)
            samples = self._decoder.push(data[place : place + step])
            if self.turns is None:
                self._gather(samples)
                continue
            self.sound.push(samples)
            for frame, end in self.sound.frames():
                probability, self._state = self._vad.step(frame, self._state)
                for signal in self.turns.hear(probability, end, self.replying):
                    yield signal
            self._forget()

    def _gather(self, samples: np.ndarray) -> None:
        """Push-to-talk: everything is kept until it is committed, up to the longest question."""
        room = int(self._max_seconds * SAMPLE_RATE) - (self.sound.end - self.turn_begin)
        self.is_full = len(samples) > room
        self.sound.push(samples[: max(0, room)])
        self.sound.skip()

    def _forget(self) -> None:
        if self.turns is not None and self.turns.phase is Phase.quiet:
            self.sound.drop_before(self.sound.end - int(KEPT_SECONDS * SAMPLE_RATE))

    def begin_turn(self, seconds: float) -> int:
        """A turn begins at this time, but not before the end of the last one; milliseconds."""
        self.turn_begin = max(self.turn_begin, round(seconds * SAMPLE_RATE), self.sound.begin)
        return self.turn_begin * 1000 // SAMPLE_RATE

    def so_far(self, end_seconds: float | None = None) -> np.ndarray:
        """The samples (n,) of the turn up to a time, or all."""
        end = self.sound.end if end_seconds is None else round(end_seconds * SAMPLE_RATE)
        return self.sound.take(self.turn_begin, end)

    def commit(self) -> np.ndarray:
        """The client ends the turn: its samples, to the last one received."""
        self.sound.push(self._decoder.push(b"", last=True))
        samples = self.so_far()
        self.end_turn()
        if self.turns is not None:
            self.turns.reset()
        return samples

    def end_turn(self, end_seconds: float | None = None) -> None:
        """What was said until then is done with."""
        end = self.sound.end if end_seconds is None else round(end_seconds * SAMPLE_RATE)
        self.turn_begin = max(self.turn_begin, end)
        self.is_full = False
        if self.turns is None:
            self.sound.drop_before(self.turn_begin)

    @property
    def is_in_turn(self) -> bool:
        """Does what comes now belong to a turn?"""
        return self.turns is None or self.turns.phase is Phase.speaking

    def clear(self) -> None:
        """Forget what is not committed."""
        self.end_turn()
        self.sound.skip()
        if self.turns is not None:
            self.turns.reset()
