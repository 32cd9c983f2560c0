"""HTTP endpoints beside the WebSocket: models, speech from text, text from speech, secrets for browsers."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import read
from echat.dialogue.turns import UserTurn
from echat.infer import events
from echat.serve.answering import voice_name
from echat.serve.http_errors import APIError, Places, sse, telling_errors
from echat.serve.items import recording
from echat.serve.keys import Keys
from echat.serve.message_size import check_text
from echat.serve.protocol.json_text import Body
from echat.serve.protocol.session import Session, Voice
from echat.serve.protocol.updating import update
from echat.serve.session import new_session
from echat.serve.settings import Limits
from echat.serve.sound import windows
from echat.serve.sound_files import MEDIA_TYPES
from echat.serve.speech import Speech
from echat.serve.state import House
from echat.serve.uploads import form_schema, read_form
from echat.serve.web_page import voice_names

MOST_CHARACTERS = 4096  # of a text to read
OF_ONE_SESSION = ("id", "object", "expires_at")  # fields that every session gets anew


class SpeechRequest(Body):
    """Read a text aloud."""

    input: str = Field(min_length=1, max_length=MOST_CHARACTERS)
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


def add_rest(app: FastAPI, house: House, keys: Keys, places: Places) -> None:
    """The routes."""
    born = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(house, born)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != house.model:
            raise APIError(404, f"model {name[:80]!r} is not served here", "model_not_found", "model")
        return _model(house, born)

    @app.get("/v1/audio/voices")
    async def voices() -> dict[str, Any]:
        return {"voices": [{"id": name, "name": name} for name in voice_names(house)]}

    @app.post("/v1/audio/speech", response_class=Response)
    async def speech(asked: SpeechRequest, request: Request) -> Response:
        if asked.response_format == "aac":
            message = "response_format: expected mp3, opus, flac, wav or pcm, found aac"
            raise APIError(400, message, param="response_format")
        house.desk.engine.need_token2wav()
        voice = voice_name(house, asked.voice)
        async with places.one(client_of(request)) as place:
            speech = Speech(house.desk, asked.input, voice)
            await speech.begin()
            pieces = speech.file(asked.response_format, asked.speed)
            if asked.stream_format == "sse":
                told = telling_errors(_speech_events(asked, speech, pieces))
                return place.streaming(told, "text/event-stream")
            return place.streaming(pieces, MEDIA_TYPES[asked.response_format])

    @app.post("/v1/audio/transcriptions", openapi_extra=form_schema(TranscriptionRequest))
    async def transcriptions(request: Request) -> Response:
        asked, data = await read_form(request, TranscriptionRequest, house.config.limits)
        _refuse_word_times(asked.granularities)
        async with places.one(client_of(request)) as place:
            samples = await samples_of(house, data, "file")
            if asked.stream:
                return place.streaming(telling_errors(_told(house, samples)), "text/event-stream")
            segments = [segment async for segment in _segments(house, samples)]
        return _transcript(segments, len(samples) / SAMPLE_RATE, asked.response_format, asked.language)

    @app.post("/v1/realtime/client_secrets")
    async def secrets(asked: SecretRequest, request: Request) -> dict[str, Any]:
        session, refused = update(new_session(house), asked.session)
        if refused:
            raise refused[0]
        key = request.scope.get("echat.key")
        secret, made = keys.new_secret(
            asked.expires_after.seconds,
            _kept(session, house.config.limits),
            key,
            client_of(request),
            house.config.limits.secrets_per_key,
        )
        return {"value": secret, "expires_at": made.expires, "session": session.dump()}


def _kept(session: Session, limits: Limits) -> str:
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


def client_of(request: Request) -> str:
    """By what name the use of the server is counted: a key, or an address."""
    return str(request.scope.get("echat.client", ""))


def _model(house: House, born: int) -> dict[str, Any]:
    return {"id": house.model, "object": "model", "created": born, "owned_by": "echat"}


async def samples_of(house: House, data: bytes, where: str) -> np.ndarray:
    """A sound file's samples (n,) at 16 kHz, int16."""
    most = house.config.limits.question_seconds
    waveform, _ = await house.desk.call(
        lambda: read(data, SAMPLE_RATE, max_seconds=most, name=where, allow_silence=True)
    )
    return np.asarray((waveform.clamp(-1, 1) * 32767).round().numpy().astype(np.int16))


# --- speech


async def _speech_events(
    asked: SpeechRequest, speech: Speech, pieces: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
    n_words = len(asked.input.split())
    usage = {"input_tokens": n_words, "output_tokens": 0, "total_tokens": n_words}
    done = {"type": "speech.audio.done", "usage": usage}
    yield sse({**done, "echat": {"doubtful": speech.doubtful}} if speech.doubtful else done)


# --- transcriptions


async def _segments(house: House, samples: np.ndarray) -> AsyncIterator[dict[str, Any]]:
    """The words of each window of a sound, with its times."""
    start = 0
    for number, window in enumerate(windows(samples)):
        text = await house.desk.transcribe(recording(window))
        end = start + len(window)
        if text:
            yield {"id": number, "start": start / SAMPLE_RATE, "end": end / SAMPLE_RATE, "text": text}
        start = end


async def _told(house: House, samples: np.ndarray) -> AsyncIterator[bytes]:
    """Words as they are recognised."""
    told = ""
    for window in windows(samples):
        stream = house.desk.reply([UserTurn(audio=recording(window))], "asr")
        try:
            separator = " " if told else ""
            async for event in stream:
                if isinstance(event, events.TextPiece):
                    told += separator + event.text
                    yield sse({"type": "transcript.text.delta", "delta": separator + event.text})
                    separator = ""
        finally:
            stream.cancel()
    yield sse({"type": "transcript.text.done", "text": told, "usage": _duration(len(samples) / SAMPLE_RATE)})


def _refuse_word_times(granularities: list[str]) -> None:
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
