"""What is understood of a request for a chat completion; the rest of it is let pass."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from echat.serve.protocol.json_text import Body
from echat.serve.protocol.session import EchatOptions, Voice


class InputAudio(BaseModel):
    data: str  # base64 or a data URI of a sound file; what it is, its bytes tell


class AudioURL(BaseModel):
    url: str  # a data URI


class Part(BaseModel):
    """A piece of a message."""

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
        """What it consists of."""
        if isinstance(self.content, str):
            return [Part(type="text", text=self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        """Its words."""
        return " ".join(part.text for part in self.parts if part.text)


class AudioSettings(BaseModel):
    voice: Voice = None
    format: Literal["wav", "mp3", "flac", "opus", "pcm16", "aac"] = "wav"


class StreamOptions(BaseModel):
    include_usage: bool = False


class CompletionRequest(Body):
    """What of the public request is understood; the rest is let pass."""

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
