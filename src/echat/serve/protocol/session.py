"""The session object in its present shape. An update is a part of it, merged in depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from echat.config import merge
from echat.serve.protocol.wire import ProtocolError, Wire, refusal

Modality = Literal["audio", "text"]
FormatName = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
Think = Literal["off", "label", "language"]
PCM_RATE = 24_000
EAGERNESS_SECONDS = {"low": 8.0, "medium": 4.0, "high": 2.0, "auto": 4.0}  # longest wait for more speech


class AudioFormat(Wire):
    """How sound is written in base64."""

    type: FormatName = "audio/pcm"
    rate: int | None = None

    @model_validator(mode="after")
    def _has_its_rate(self) -> AudioFormat:
        if self.type == "audio/pcm":
            if self.rate not in (None, PCM_RATE):
                raise ValueError(f"expected rate {PCM_RATE} for audio/pcm, found {self.rate}")
            self.rate = PCM_RATE
        else:
            self.rate = None
        return self


class TurnDetection(Wire):
    """How the server finds the end of a turn."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float | None = Field(None, ge=0, le=1)
    prefix_padding_ms: int | None = Field(None, ge=0, le=5000)
    silence_duration_ms: int | None = Field(None, ge=0, le=20_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = Field(None, ge=100, le=600_000)
    eagerness: Literal["low", "medium", "high", "auto"] | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> TurnDetection:
        if self.type == "server_vad":
            self.threshold = 0.5 if self.threshold is None else self.threshold
            self.prefix_padding_ms = 300 if self.prefix_padding_ms is None else self.prefix_padding_ms
            self.silence_duration_ms = 500 if self.silence_duration_ms is None else self.silence_duration_ms
        else:
            self.eagerness = self.eagerness or "auto"
        return self


class Transcription(Wire):
    """Shall the user's words be told?"""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class AudioInput(Wire):
    format: AudioFormat = Field(default_factory=AudioFormat)
    noise_reduction: Any = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = Field(default_factory=TurnDetection)


class AudioOutput(Wire):
    format: AudioFormat = Field(default_factory=AudioFormat)
    voice: str | dict[str, Any] | None = None
    speed: float = Field(1.0, ge=0.25, le=1.5)

    @property
    def voice_name(self) -> str | None:
        """The name of the voice, however it was given."""
        return self.voice.get("id") if isinstance(self.voice, dict) else self.voice


class SessionAudio(Wire):
    input: AudioInput = Field(default_factory=AudioInput)
    output: AudioOutput = Field(default_factory=AudioOutput)


class EchatOptions(Wire):
    """What only this server has; foreign clients never send it and see nothing of it."""

    think: Think | None = None  # how the model thinks before it answers; None: as the server was started
    show_thought: bool = False  # send the thought: events `response.thought.*` and the item's `thought`
    pause: bool = False  # tell of suspected speech, so that a client can pause before it knows
    interrupt_ms: int | None = Field(None, ge=0, le=5000)  # speech shorter than this does not interrupt
    seed: int | None = None  # the same seed gives the same answers


def _audio() -> list[Modality]:
    return ["audio"]


class Session(Wire):
    """A session as the client sees it."""

    type: Literal["realtime", "transcription"] = "realtime"
    object: Literal["realtime.session", "realtime.transcription_session"] = "realtime.session"
    id: str = ""
    model: str = ""
    expires_at: int = 0
    output_modalities: list[Modality] = Field(default_factory=_audio, min_length=1)
    instructions: str = ""
    max_output_tokens: int | Literal["inf"] = "inf"
    audio: SessionAudio = Field(default_factory=SessionAudio)
    tools: list[Any] = Field(default_factory=list)
    tool_choice: Any = "auto"
    truncation: Any = "auto"
    tracing: Any = None
    include: list[str] | None = None
    echat: EchatOptions | None = None

    @model_validator(mode="after")
    def _speaks_or_writes(self) -> Session:
        if len(self.output_modalities) > 1:
            raise ValueError('output_modalities: expected ["audio"] (with transcript) or ["text"]')
        if isinstance(self.max_output_tokens, int) and not 1 <= self.max_output_tokens <= 4096:
            raise ValueError('max_output_tokens: expected 1 to 4096 or "inf"')
        return self

    @property
    def speaks(self) -> bool:
        return self.output_modalities == ["audio"]

    @property
    def options(self) -> EchatOptions:
        return self.echat or EchatOptions()

    def dump(self) -> dict[str, Any]:
        """The whole object; None is said, because it means "off". Of echat's own options nothing is said to
        those who did not ask."""
        values = self.model_dump(mode="json")
        if self.echat is None:
            del values["echat"]
        for side in ("input", "output"):
            form = values["audio"][side]["format"]
            if form["rate"] is None:
                del form["rate"]
        return values

    def updated(self, changes: Mapping[str, Any]) -> Session:
        """This session with changes merged in; what cannot change is refused by name."""
        for key in ("id", "object", "expires_at"):
            if changes.get(key) not in (None, getattr(self, key)):
                changes = {name: value for name, value in changes.items() if name != key}
        if changes.get("model") not in (None, self.model):
            raise ProtocolError("session.model: the model of a session cannot change", param="session.model")
        merged = merge(self.model_dump(mode="json"), _without_switched(self, changes))
        try:
            return Session.model_validate(merged)
        except ValidationError as error:
            raise refusal(error, "session") from error


def _without_switched(session: Session, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A format or turn detection of another type starts from its own defaults, not from what was there."""
    kept = {key: value for key, value in changes.items() if value is not None or key in _NULLABLE}
    audio = kept.get("audio")
    if not isinstance(audio, Mapping):
        return kept
    sides = {name: dict(side) if isinstance(side, Mapping) else side for name, side in audio.items()}
    for name, old in (("input", session.audio.input), ("output", session.audio.output)):
        side = sides.get(name)
        if not isinstance(side, dict):
            continue
        if isinstance(side.get("format"), Mapping) and side["format"].get("type") != old.format.type:
            side["format"] = {"rate": None, **side["format"]}
        detection = side.get("turn_detection")
        before = session.audio.input.turn_detection
        if isinstance(detection, Mapping) and before and detection.get("type", before.type) != before.type:
            blank = {
                key: None for key in ("threshold", "prefix_padding_ms", "silence_duration_ms", "eagerness")
            }
            side["turn_detection"] = {**blank, **detection}
    return {**kept, "audio": sides}


_NULLABLE = {"tracing", "include", "echat"}
