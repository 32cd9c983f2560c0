"""Settings of a server: address, access, limits, turn detection."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from echat.config import Config
from echat.serve.realtime.turn_detection import TurnConfig

LOOPBACK = ("127.0.0.1", "::1", "localhost")
KiB, MiB = 2**10, 2**20
SWITCH_SECONDS = 0.001  # interval at which Python switches between threads; the default is 5 ms


class Limits(Config):
    """Limits of one server, one address, one client and one session."""

    sessions: int = Field(16, ge=1, description="realtime sessions at once; more are refused as 'busy'")
    sessions_per_address: int = Field(8, ge=1, description="of them from one network address")
    connections: int = Field(256, ge=1, description="sockets at once; idle ones are closed for new ones")
    connections_per_address: int = Field(128, ge=1, description="of them from one network address")
    header_seconds: float = Field(10.0, gt=0, description="for a TLS handshake, and for request headers")
    body_seconds: float = Field(15.0, gt=0, description="for a request body; more at 16 KiB/s or faster")
    write_seconds: float = Field(60.0, gt=0, description="in which a client must read some of a response")
    requests: int = Field(16, ge=1, description="HTTP requests that compute at once; more get 429")
    requests_per_client: int = Field(8, ge=1, description="of them one key or address; more get 429")
    requests_per_minute: int = Field(600, ge=1, description="per key, or per address without keys")
    secrets_per_key: int = Field(
        100, ge=1, description="client secrets of one key or address; oldest dropped"
    )
    events_per_second: int = Field(400, ge=1, description="events of one session, averaged over 10 s")
    upload_bytes: int = Field(25 * MiB, ge=1, description="largest HTTP body")
    message_bytes: int = Field(16 * MiB, ge=1, description="largest WebSocket message")
    message_values: int = Field(20_000, ge=1, description="values in one JSON message or body")
    fields_bytes: int = Field(256 * KiB, ge=1, description="one message or body of JSON, without audio")
    text_characters: int = Field(32_768, ge=1, description="one typed text, or instructions")
    context_characters: int = Field(131_072, ge=1, description="text of a conversation that is kept")
    context_bytes: int = Field(1 * MiB, ge=1, description="items of a conversation, without audio")
    question_seconds: float = Field(600.0, gt=0, description="longest question")
    reply_ids: int = Field(1500, ge=1, description="longest answer, text and speech ids (25 a second)")
    context_seconds: float = Field(900.0, gt=0, description="audio of a conversation that is kept")
    items: int = Field(500, ge=1, description="items of a conversation that are kept")
    responses: int = Field(8, ge=1, description="of one session, running or waiting; more are refused")
    asides: int = Field(2, ge=1, description="out-of-band responses, transcriptions, prefills of all at once")
    memory_bytes: int = Field(256 * MiB, ge=0, description="prompt cache of one session")
    unsent_bytes: int = Field(8 * MiB, ge=1, description="queued for a slow reader; then audio is dropped")
    idle_seconds: float = Field(300.0, gt=0, description="without an event of the client")
    session_seconds: float = Field(3600.0, gt=0, description="of any session")
    shutdown_seconds: float = Field(10.0, ge=0, description="for running responses to finish")


class ServeConfig(Config):
    """A server."""

    host: str = Field("127.0.0.1", description="address to bind; by default loopback")
    port: int = Field(8080, ge=0, le=65535)
    name: str | None = Field(None, description="of the model, for clients; None: that of its folder")
    keys: Path | None = Field(None, description="file of API keys (echat keys); None: no key needed")
    origins: tuple[str, ...] = Field((), description="web pages of other origins that may connect")
    hosts: tuple[str, ...] = Field((), description="host names of the server, besides its own")
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    think: Literal["off", "label", "language"] = Field("label", description="default of sessions")
    voice: str | None = Field(None, description="default of sessions")
    speech_in_history: bool | None = Field(
        None, description="answers in the history as text and speech; None: as the model was trained"
    )
    use_instructions: bool = Field(False, description="put a client's instructions before its question")
    guess_replies: bool = Field(True, description="start speculative replies before a turn is over")
    recording: Path | None = Field(None, description="folder that keeps conversations; announced to clients")
    turn_detector: str | None = Field(None, description="module:function; is a turn complete?")
    turns: TurnConfig = TurnConfig()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ServeConfig:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls: expected certificate and key, found one of them; give both or none")
        return self
