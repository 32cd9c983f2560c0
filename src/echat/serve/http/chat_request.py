"""Request model of a chat completion: the supported fields; others are ignored."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from echat.serve.protocol.json_text import Body
from echat.serve.protocol.session import EchatOptions, Voice


class InputAudio(BaseModel):
    data: str  # base64 or a data URI of a sound file; its format is detected


class AudioURL(BaseModel):
    url: str  # a data URI


class Part(BaseModel):
    """A content part of a message."""

    type: str
    text: str | None = None
    input_audio: InputAudio | None = None
    audio_url: AudioURL | None = None


class EarlierAnswer(BaseModel):
    id: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    audio: EarlierAnswer | None = None

    @property
    def parts(self) -> list[Part]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [Part(type="text", text=self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        """The text of all parts."""
        return " ".join(part.text for part in self.parts if part.text)


class AudioSettings(BaseModel):
    voice: Voice = None
    format: Literal["wav", "mp3", "flac", "opus", "pcm16", "aac"] = "wav"


class StreamOptions(BaseModel):
    include_usage: bool = False


class CompletionRequest(Body):
    """Request of a chat completion: the supported fields; others are ignored."""

    messages: list[Message] = Field(min_length=1, max_length=500)
    model: str = ""
    modalities: list[Literal["text", "audio"]] = Field(default_factory=lambda: ["text"])  # type: ignore[arg-type]
    audio: AudioSettings | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    echat: EchatOptions = EchatOptions()

    @property
    def speaks(self) -> bool:
        return "audio" in self.modalities
