"""Input audio buffer of a session: bytes in, signals of turn detection out, and the samples of a turn on
demand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.vad import FRAME, VoiceActivityDetector
from echat.serve.protocol.session import EAGERNESS_SECONDS, AudioInput, EchatOptions, TurnDetection
from echat.serve.protocol.wire_audio import BYTES_PER_SAMPLE, AudioDecoder, rate_of
from echat.serve.realtime.turn_detection import Signal, TurnConfig, TurnPhase, TurnStateMachine

SLICE_SECONDS = 0.5  # of audio processed before other tasks of the event loop run
KEPT_SECONDS = 6.0  # of audio before a turn: the longest prefix, and a margin


class InputAudioBuffer:
    """AudioDecoder, voice activity detection, turn detection and recent audio of one session."""

    def __init__(self, vad: VoiceActivityDetector, base: TurnConfig, max_seconds: float) -> None:
        self._vad, self._base = vad, base
        self._state = vad.begin()
        self._decoder = AudioDecoder("audio/pcm")
        self._max_seconds = max_seconds
        self._seconds_before = 0.0  # seconds received in other formats
        self.audio = AudioBuffer()
        self.turns: TurnStateMachine | None = TurnStateMachine(base)  # None: the client commits turns itself
        self.turn_begin = 0  # index of the first sample of the next turn
        self.replying = False  # is an answer being played? set by the session
        self.is_full = False

    def configure(self, audio_input: AudioInput, options: EchatOptions) -> None:
        """Apply changed session settings; a switch between server and client turn detection restarts the
        turn."""
        if audio_input.format.type != self._decoder.name:
            self.audio.push(self._decoder.push(b"", last=True))
            self._seconds_before += self._decoder.seconds
            self._decoder = AudioDecoder(audio_input.format.type)
        config = self._config(audio_input.turn_detection, options)
        if config is None:
            if self.turns is not None:
                self.turns = None
                self.turn_begin = self.audio.end
        elif self.turns is None:
            self.turns = TurnStateMachine(config)
            self.audio.skip()
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
        """Duration of the audio received in this session."""
        return int(1000 * (self._seconds_before + self._decoder.seconds))

    async def process(self, data: bytes) -> AsyncIterator[Signal]:
        """Decode bytes of the client's format and yield the signals in order, each before the audio after it
        is processed."""
        name = self._decoder.name
        step = int(SLICE_SECONDS * rate_of(name)) * BYTES_PER_SAMPLE[name]
        for offset in range(0, len(data), step):
            if offset:
                await asyncio.sleep(0)
            samples = self._decoder.push(data[offset : offset + step])
            if self.turns is None:
                self._append_manual(samples)
                continue
            self.audio.push(samples)
            for frame, end in self.audio.frames():
                probability, self._state = self._vad.step(frame, self._state)
                for signal in self.turns.process(probability, end, self.replying):
                    yield signal
            self._drop_old()

    def _append_manual(self, samples: np.ndarray) -> None:
        """Push-to-talk: keep everything until it is committed, up to the longest question."""
        room = int(self._max_seconds * SAMPLE_RATE) - (self.audio.end - self.turn_begin)
        self.is_full = len(samples) > room
        self.audio.push(samples[: max(0, room)])
        self.audio.skip()

    def _drop_old(self) -> None:
        if self.turns is not None and self.turns.phase is TurnPhase.QUIET:
            self.audio.drop_before(self.audio.end - int(KEPT_SECONDS * SAMPLE_RATE))

    def begin_turn(self, seconds: float) -> int:
        """Set the start of a turn, at the earliest the end of the last one; returns it in milliseconds."""
        self.turn_begin = max(self.turn_begin, round(seconds * SAMPLE_RATE), self.audio.begin)
        return self.turn_begin * 1000 // SAMPLE_RATE

    def turn_samples(self, end_seconds: float | None = None) -> np.ndarray:
        """The samples (n,) of the turn up to a time, or all."""
        end = self.audio.end if end_seconds is None else round(end_seconds * SAMPLE_RATE)
        return self.audio.take(self.turn_begin, end)

    def commit(self) -> np.ndarray:
        """The client ends the turn: all samples of it."""
        self.audio.push(self._decoder.push(b"", last=True))
        samples = self.turn_samples()
        self.end_turn()
        if self.turns is not None:
            self.turns.reset()
        return samples

    def end_turn(self, end_seconds: float | None = None) -> None:
        """Mark the audio up to a time, or all, as consumed."""
        end = self.audio.end if end_seconds is None else round(end_seconds * SAMPLE_RATE)
        self.turn_begin = max(self.turn_begin, end)
        self.is_full = False
        if self.turns is None:
            self.audio.drop_before(self.turn_begin)

    @property
    def is_in_turn(self) -> bool:
        """Does audio that arrives now belong to a turn?"""
        return self.turns is None or self.turns.phase is TurnPhase.SPEAKING

    def clear(self) -> None:
        """Drop the audio that is not committed."""
        self.end_turn()
        self.audio.skip()
        if self.turns is not None:
            self.turns.reset()


# --- recent audio of the user, by sample index in the session


class AudioBuffer:
    """FIFO of 16 kHz int16 samples, read frame by frame, dropped from the front."""

    def __init__(self) -> None:
        self._pieces: deque[np.ndarray] = deque()
        self.begin = 0  # index of the first sample that is kept
        self.end = 0  # index behind the last one
        self._n_framed = 0

    def push(self, samples: np.ndarray) -> None:
        """Append samples."""
        if len(samples):
            self._pieces.append(samples)
            self.end += len(samples)

    def frames(self) -> Iterator[tuple[np.ndarray, float]]:
        """Whole frames (512,) not yielded yet, and the time at which each ends."""
        while self._n_framed + FRAME <= self.end:
            start = self._n_framed
            self._n_framed += FRAME
            yield self.take(start, self._n_framed), self._n_framed / SAMPLE_RATE

    def take(self, begin: int, end: int) -> np.ndarray:
        """A copy of the samples from `begin` to `end`, as far as they are kept."""
        begin, end = max(begin, self.begin), min(end, self.end)
        parts, position = [], self.end
        for piece in reversed(self._pieces):  # most reads are near the end
            position -= len(piece)
            if position >= end:
                continue
            parts.append(piece[max(0, begin - position) : end - position])
            if position <= begin:
                break
        return np.concatenate(parts[::-1]) if parts else np.zeros(0, np.int16)

    def drop_before(self, position: int) -> None:
        """Drop pieces that end before an index."""
        while self._pieces and self.begin + len(self._pieces[0]) <= min(position, self.end):
            self.begin += len(self._pieces.popleft())

    def skip(self) -> None:
        """Yield no frames of the audio so far."""
        self._n_framed = self.end
