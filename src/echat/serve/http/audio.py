"""HTTP endpoints beside the WebSocket: models, speech from text, text from speech, secrets for browsers."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import read
from echat.dialogue.turns import UserTurn, ask
from echat.infer import events
from echat.infer.events import Reply
from echat.serve.app_state import App
from echat.serve.http.audio_files import MEDIA_TYPES, FileFormat, open_audio_file
from echat.serve.http.errors import APIError, RequestSlots, sse, with_error_event
from echat.serve.http.request_body import form_schema, read_form
from echat.serve.http.web_page import voice_names
from echat.serve.keys import Keys
from echat.serve.protocol.json_text import Body
from echat.serve.protocol.session import Session, Voice
from echat.serve.protocol.session_update import update
from echat.serve.protocol.size_limits import check_text
from echat.serve.protocol.wire_audio import Encoder
from echat.serve.realtime.conversation import to_recording
from echat.serve.realtime.input_buffer import windows
from echat.serve.realtime.response_manager import voice_name
from echat.serve.realtime.session import new_session
from echat.serve.settings import Limits

if TYPE_CHECKING:
    from echat.infer.text_to_speech import SpokenPiece
    from echat.serve.async_engine import AsyncEngine

MAX_CHARACTERS = 4096  # of a text to read
OF_ONE_SESSION = ("id", "object", "expires_at")  # fields that every session gets anew


class SpeechRequest(Body):
    """Read a text aloud."""

    input: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    model: str = ""
    voice: Voice = None
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4)
    stream_format: Literal["audio", "sse"] = "audio"


class TranscriptionRequest(BaseModel):
    """The fields beside the file."""

    model: str = ""
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    stream: bool = False
    granularities: list[str] = Field(default_factory=list, alias="timestamp_granularities[]")


class Expiry(BaseModel):
    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(600, ge=10, le=7200)


class SecretRequest(Body):
    """A short-lived key for a browser."""

    expires_after: Expiry = Expiry()
    session: dict[str, Any] = Field(default_factory=dict)


def add_rest(api: FastAPI, app: App, keys: Keys, slots: RequestSlots) -> None:
    """The routes."""
    born = int(time.time())

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(app, born)]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != app.model:
            raise APIError(404, f"model {name[:80]!r} is not served here", "model_not_found", "model")
        return _model(app, born)

    @api.get("/v1/audio/voices")
    async def voices() -> dict[str, Any]:
        return {"voices": [{"id": name, "name": name} for name in voice_names(app)]}

    @api.post("/v1/audio/speech", response_class=Response)
    async def speech(payload: SpeechRequest, request: Request) -> Response:
        if payload.response_format == "aac":
            message = "response_format: expected mp3, opus, flac, wav or pcm, found aac"
            raise APIError(400, message, param="response_format")
        app.async_engine.engine.need_token2wav()
        voice = voice_name(app, payload.voice)
        async with slots.acquire(client_name(request)) as slot:
            speech = SpeechStream(app.async_engine, payload.input, voice)
            await speech.begin()
            pieces = speech.file(payload.response_format, payload.speed)
            if payload.stream_format == "sse":
                sse_events = with_error_event(_speech_events(payload, speech, pieces))
                return slot.streaming(sse_events, "text/event-stream")
            return slot.streaming(pieces, MEDIA_TYPES[payload.response_format])

    @api.post("/v1/audio/transcriptions", openapi_extra=form_schema(TranscriptionRequest))
    async def transcriptions(request: Request) -> Response:
        payload, data = await read_form(request, TranscriptionRequest, app.config.limits)
        _check_granularities(payload.granularities)
        async with slots.acquire(client_name(request)) as slot:
            samples = await decode_samples(app, data, "file")
            if payload.stream:
                return slot.streaming(
                    with_error_event(_transcription_events(app, samples)), "text/event-stream"
                )
            segments = [segment async for segment in _segments(app, samples)]
        return _transcript(segments, len(samples) / SAMPLE_RATE, payload.response_format, payload.language)

    @api.post("/v1/realtime/client_secrets")
    async def secrets(payload: SecretRequest, request: Request) -> dict[str, Any]:
        session, refused = update(new_session(app), payload.session)
        if refused:
            raise refused[0]
        key = request.scope.get("echat.key")
        secret, made = keys.new_secret(
            payload.expires_after.seconds,
            _secret_session(session, app.config.limits),
            key,
            client_name(request),
            app.config.limits.secrets_per_key,
        )
        return {"value": secret, "expires_at": made.expires, "session": session.dump()}


def _secret_session(session: Session, limits: Limits) -> str:
    """What a secret keeps of the session that it opens: JSON, bounded."""
    check_text("session.instructions", session.instructions, limits)
    text = json.dumps({name: value for name, value in session.dump().items() if name not in OF_ONE_SESSION})
    if len(text) > limits.fields_bytes // 4:
        raise APIError(
            400,
            f"session: expected at most {limits.fields_bytes // 4} bytes (a quarter of limits.fields_bytes), "
            f"found {len(text)}; send less",
            "session_too_large",
            "session",
        )
    return text


def client_name(request: Request) -> str:
    """By what name the use of the server is counted: a key, or an address."""
    return str(request.scope.get("echat.client", ""))


def _model(app: App, born: int) -> dict[str, Any]:
    return {"id": app.model, "object": "model", "created": born, "owned_by": "echat"}


async def decode_samples(app: App, data: bytes, where: str) -> np.ndarray:
    """A sound file's samples (n,) at 16 kHz, int16."""
    most = app.config.limits.question_seconds
    waveform, _ = await app.async_engine.call(
        lambda: read(data, SAMPLE_RATE, max_seconds=most, name=where, allow_silence=True)
    )
    return np.asarray((waveform.clamp(-1, 1) * 32767).round().numpy().astype(np.int16))


# --- speech


async def _speech_events(
    payload: SpeechRequest, speech: SpeechStream, pieces: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
    n_words = len(payload.input.split())
    usage = {"input_tokens": n_words, "output_tokens": 0, "total_tokens": n_words}
    done = {"type": "speech.audio.done", "usage": usage}
    yield sse({**done, "echat": {"doubtful": speech.doubtful}} if speech.doubtful else done)


# --- transcriptions


async def _segments(app: App, samples: np.ndarray) -> AsyncIterator[dict[str, Any]]:
    """The words of each window of a sound, with its times."""
    start = 0
    for number, window in enumerate(windows(samples)):
        text = await app.async_engine.transcribe(to_recording(window))
        end = start + len(window)
        if text:
            yield {"id": number, "start": start / SAMPLE_RATE, "end": end / SAMPLE_RATE, "text": text}
        start = end


async def _transcription_events(app: App, samples: np.ndarray) -> AsyncIterator[bytes]:
    """Words as they are recognised."""
    transcript = ""
    for window in windows(samples):
        stream = app.async_engine.reply([UserTurn(audio=to_recording(window))], "asr")
        try:
            separator = " " if transcript else ""
            async for event in stream:
                if isinstance(event, events.TextPiece):
                    transcript += separator + event.text
                    yield sse({"type": "transcript.text.delta", "delta": separator + event.text})
                    separator = ""
        finally:
            stream.cancel()
    yield sse(
        {"type": "transcript.text.done", "text": transcript, "usage": _duration(len(samples) / SAMPLE_RATE)}
    )


def _check_granularities(granularities: list[str]) -> None:
    if other := [name for name in granularities if name != "segment"]:
        name = "timestamp_granularities[]"
        raise APIError(
            400, f"{name}: expected segment, found {other[0][:40]}: no words are timed here", None, name
        )


def _duration(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(seconds, 3)}


def _transcript(segments: list[dict[str, Any]], seconds: float, form: str, language: str | None) -> Response:
    text = " ".join(segment["text"] for segment in segments).strip()
    if form == "text":
        return PlainTextResponse(text + "\n")
    if form in ("srt", "vtt"):
        return PlainTextResponse(_subtitles(segments, form))
    if form == "verbose_json":
        values = {"task": "transcribe", "language": language or "unknown", "duration": seconds, "text": text}
        return JSONResponse({**values, "segments": segments, "usage": _duration(seconds)})
    return JSONResponse({"text": text, "usage": _duration(seconds)})


def _subtitles(segments: list[dict[str, Any]], form: str) -> str:
    point = "," if form == "srt" else "."
    lines = ["WEBVTT", ""] if form == "vtt" else []
    for segment in segments:
        if form == "srt":
            lines.append(str(segment["id"] + 1))
        lines += [f"{_time(segment['start'], point)} --> {_time(segment['end'], point)}", segment["text"], ""]
    return "\n".join(lines)


def _time(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


# --- A text read aloud for one request: pieces of the engine in, bytes of a sound file out.

log = logging.getLogger("echat.serve")


class SpeechStream:
    """Local to one request. `begin` first: what cannot be read aloud is refused there, before any answer."""

    def __init__(self, async_engine: AsyncEngine, text: str, voice: str | None) -> None:
        self.doubtful: list[str] = []  # pieces whose length does not fit their words
        self._async_engine, self._stop = async_engine, threading.Event()
        self._reply_cancel: threading.Event | None = None  # ends the reply that is being written
        self._pieces = async_engine.engine.read_aloud(text, voice, cancel=self._stop, write=self._write)
        self._first_piece: SpokenPiece | None = None

    async def begin(self) -> None:
        """Speak the first piece. Raises ValueError where there is nothing to say."""
        self._first_piece = await self._next()

    async def file(self, name: FileFormat, speed: float) -> AsyncIterator[bytes]:
        """Bytes of the file while it is spoken."""
        file, encoder = open_audio_file(name), None
        piece = self._first_piece
        try:
            while piece is not None:
                encoder = encoder or Encoder("audio/pcm", piece.rate, speed)
                if data := file.push(encoder.push(piece.waveform.numpy())):
                    yield data
                piece = await self._next()
        finally:
            self.cancel()
        rest = encoder.push(np.zeros(0, np.float32), last=True) if encoder else b""
        if data := file.push(rest) + file.finish():
            yield data

    def cancel(self) -> None:
        """Speak no further."""
        self._stop.set()
        if self._reply_cancel is not None:
            self._reply_cancel.set()

    async def _next(self) -> SpokenPiece | None:
        piece = await self._async_engine.call(lambda: next(self._pieces, None))
        if piece is not None and piece.is_doubtful:
            self.doubtful.append(piece.text)
            log.warning("speech: the length of a piece of %d characters does not fit it", len(piece.text))
        return piece

    def _write(self, text: str, seed: int | None) -> Reply:
        """The ids of a piece, beside other replies."""
        self._reply_cancel = cancel = threading.Event()
        if self._stop.is_set():
            cancel.set()
        answer = self._async_engine.scheduler.submit(
            ask(text=text), "tts", seed=seed, speak=False, cancel=cancel
        )
        return answer.reply()
