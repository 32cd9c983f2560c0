"""The session object of the protocol, in its present form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from echat.serve.protocol.wire import Wire

Modality = Literal["audio", "text"]
FormatName = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
Think = Literal["off", "label", "language"]
PCM_RATE = 24_000
MAX_TOKENS = 4096  # that a client may ask for
EAGERNESS_SECONDS = {"low": 8.0, "medium": 4.0, "high": 2.0, "auto": 4.0}  # longest wait for more speech


def _name(voice: Any) -> Any:
    """A voice is a name, or an object with the name as `id`."""
    name = voice.get("id") if isinstance(voice, Mapping) else voice
    if voice is not None and not isinstance(name, str):
        raise ValueError('expected the name of a voice, or {"id": name}')
    return name


def _tokens(most: Any) -> Any:
    is_number = isinstance(most, int) and not isinstance(most, bool)
    if most != "inf" and not (is_number and 1 <= most <= MAX_TOKENS):
        raise ValueError(f'expected 1 to {MAX_TOKENS} or "inf"')
    return most


Voice = Annotated[str | None, BeforeValidator(_name)]
MaxTokens = Annotated[int | Literal["inf"], BeforeValidator(_tokens)]
Modalities = Annotated[list[Modality], Field(min_length=1, max_length=1)]  # audio has its transcript with it


class AudioFormat(Wire):
    """Encoding of the audio in base64."""

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
    """How the server detects the end of a turn."""

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
    """Settings of input transcription; given means on."""

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
    voice: Voice = None
    speed: float = Field(1.0, ge=0.25, le=1.5)


class SessionAudio(Wire):
    input: AudioInput = Field(default_factory=AudioInput)
    output: AudioOutput = Field(default_factory=AudioOutput)


class EchatOptions(Wire):
    """Extensions of this server; sent only to clients that use them."""

    think: Think | None = None  # form of the thought before an answer; None: the server's default
    show_thought: bool = False  # send the thought: events `response.thought.*` and the item's `thought`
    pause: bool = False  # send `speech_suspected`, so that a client can pause early
    interrupt_ms: int | None = Field(None, ge=0, le=5000)  # speech shorter than this does not interrupt
    seed: int | None = None  # the same seed gives the same answers


def _audio() -> list[Modality]:
    return ["audio"]


class Session(Wire):
    """The session object."""

    type: Literal["realtime", "transcription"] = "realtime"
    object: Literal["realtime.session", "realtime.transcription_session"] = "realtime.session"
    id: str = ""
    model: str = ""
    expires_at: int = 0
    output_modalities: Modalities = Field(default_factory=_audio)
    instructions: str = ""
    max_output_tokens: MaxTokens = "inf"
    audio: SessionAudio = Field(default_factory=SessionAudio)
    tools: list[Any] = Field(default_factory=list)
    tool_choice: Any = "auto"
    truncation: Any = "auto"
    tracing: Any = None
    include: list[str] | None = None
    echat: EchatOptions | None = None

    @property
    def speaks(self) -> bool:
        return self.output_modalities == ["audio"]

    @property
    def options(self) -> EchatOptions:
        return self.echat or EchatOptions()

    def dump(self) -> dict[str, Any]:
        """The whole object as JSON values, with nulls, which mean "off"; without `echat` for clients that do
        not use it."""
        values = self.model_dump(mode="json")
        if self.echat is None:
            del values["echat"]
        for side in ("input", "output"):
            form = values["audio"][side]["format"]
            if form["rate"] is None:
                del form["rate"]
        return values
