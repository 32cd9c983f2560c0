"""Application state: what all sessions and requests of one server share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from echat.audio.vad import VoiceActivityDetector
from echat.serve.async_engine import AsyncEngine
from echat.serve.metrics import Metrics
from echat.serve.protocol.session import Session
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.settings import ServeConfig

PUBLIC_VOICES = frozenset(
    {"alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"}
    | {"marin", "nova", "onyx", "sage", "shimmer", "verse"}
)  # names of the public protocol: the model's default voice stands in for them


@dataclass(frozen=True)
class App:
    """One server."""

    async_engine: AsyncEngine
    config: ServeConfig
    vad: VoiceActivityDetector
    metrics: Metrics
    turn_detector: Callable[[np.ndarray], float] | None = None  # see `realtime.turn_detection`

    @property
    def speech_in_history(self) -> bool:
        """Does the prompt contain the speech ids of earlier answers? The released weights were trained on
        such histories, models of this package on text alone."""
        configured = self.config.speech_in_history
        return self.async_engine.engine.profile != "echat" if configured is None else configured

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        engine = self.async_engine.engine
        return self.config.name or (engine.home.name if engine.home else engine.name) or "echat"

    @property
    def can_speak(self) -> bool:
        return self.async_engine.engine.token2wav is not None

    @property
    def voices(self) -> list[str]:
        """Names of the model's voices, the server's default first."""
        token2wav = self.async_engine.engine.token2wav
        return sorted(token2wav.voices if token2wav else (), key=lambda name: name != self.config.voice)

    def voice_for(self, name: str | None, where: str = "voice") -> str | None:
        """The model's voice for a requested name; an unknown one is refused, as the field `where`."""
        token2wav = self.async_engine.engine.token2wav
        if name is None or name in PUBLIC_VOICES or token2wav is None:
            return self.config.voice
        if name not in token2wav.voices:
            known = ", ".join(token2wav.voices)
            raise ProtocolError(f"{where}: expected one of {known}, found {name[:80]!r}", param=where)
        return name

    def new_session(self) -> Session:
        """A session object with the server's defaults."""
        return Session(
            id=new_id("sess"),
            model=self.model,
            expires_at=int(time.time() + self.config.limits.session_seconds),
            output_modalities=["audio"] if self.can_speak else ["text"],
        )
