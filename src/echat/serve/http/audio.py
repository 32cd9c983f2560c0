"""HTTP endpoints for audio: text to speech and speech to text."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import read, to_int16
from echat.dialogue.turns import UserTurn, ask
from echat.infer import events
from echat.infer.events import Reply
from echat.serve.app_state import App
from echat.serve.http.audio_files import MEDIA_TYPES, FileFormat, open_audio_file
from echat.serve.http.errors import APIError
from echat.serve.http.request_body import form_schema, read_form
from echat.serve.http.request_slots import RequestSlots, client_name, sse, with_error_event
from echat.serve.protocol.json_text import Body
from echat.serve.protocol.session import Voice
from echat.serve.protocol.wire_audio import AudioEncoder
from echat.serve.realtime.conversation import to_recording, windows

if TYPE_CHECKING:
    from echat.infer.text_to_speech import SpokenPiece
    from echat.serve.async_engine import AsyncEngine

MAX_CHARACTERS = 4096  # of a text to synthesize

log = logging.getLogger("echat.serve")


class SpeechRequest(Body):
    """Text to speech."""

    input: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    model: str = ""
    voice: Voice = None
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4)
    stream_format: Literal["audio", "sse"] = "audio"


class TranscriptionRequest(BaseModel):
    """Speech to text: the form fields beside the file."""

    model: str = ""
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    stream: bool = False
    granularities: list[str] = Field(default_factory=list, alias="timestamp_granularities[]")


def add_audio(api: FastAPI, app: App, slots: RequestSlots) -> None:
    """Add the routes."""

    @api.post("/v1/audio/speech", response_class=Response)
    async def speech(payload: SpeechRequest, request: Request) -> Response:
        if payload.response_format == "aac":
            message = "response_format: expected mp3, opus, flac, wav or pcm, found aac"
            raise APIError(400, message, param="response_format")
        app.async_engine.engine.need_token2wav()
        voice = app.voice_for(payload.voice)
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
                sse_events = with_error_event(_transcription_events(app, samples))
                return slot.streaming(sse_events, "text/event-stream")
            segments = [segment async for segment in _segments(app, samples)]
        return _transcript(segments, len(samples) / SAMPLE_RATE, payload.response_format, payload.language)


async def decode_samples(app: App, data: bytes, where: str) -> np.ndarray:
    """The samples (n,) int16 at 16 kHz of a sound file."""
    most = app.config.limits.question_seconds
    waveform, _ = await app.async_engine.call(
        lambda: read(data, SAMPLE_RATE, max_seconds=most, name=where, allow_silence=True)
    )
    return to_int16(waveform)


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
    """The transcript of each window of a recording, with its times."""
    start = 0
    for number, window in enumerate(windows(samples)):
        text = await app.async_engine.transcribe(to_recording(window))
        end = start + len(window)
        if text:
            yield {"id": number, "start": start / SAMPLE_RATE, "end": end / SAMPLE_RATE, "text": text}
        start = end


async def _transcription_events(app: App, samples: np.ndarray) -> AsyncIterator[bytes]:
    """The transcript as server-sent events while it is decoded."""
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
        message = f"{name}: expected segment, found {other[0][:40]}: there are no word timestamps"
        raise APIError(400, message, param=name)


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


# --- streaming synthesis for one request: pieces of the engine in, bytes of a sound file out


class SpeechStream:
    """The synthesis of one request. Call `begin` first: a text that cannot be read aloud is refused there,
    before the response starts."""

    def __init__(self, async_engine: AsyncEngine, text: str, voice: str | None) -> None:
        self.doubtful: list[str] = []  # pieces whose duration is implausible for their text
        self._async_engine, self._stop = async_engine, threading.Event()
        self._reply_cancel: threading.Event | None = (
            None  # cancels the reply that generates the present piece
        )
        self._pieces = async_engine.engine.read_aloud(text, voice, cancel=self._stop, write=self._write)
        self._first_piece: SpokenPiece | None = None

    async def begin(self) -> None:
        """Synthesize the first piece. Raises ValueError for a text without words."""
        self._first_piece = await self._next()

    async def file(self, name: FileFormat, speed: float) -> AsyncIterator[bytes]:
        """Bytes of the file while it is synthesized."""
        file, encoder = open_audio_file(name), None
        piece = self._first_piece
        try:
            while piece is not None:
                encoder = encoder or AudioEncoder("audio/pcm", piece.rate, speed)
                if data := file.push(encoder.push(piece.waveform.numpy())):
                    yield data
                piece = await self._next()
        finally:
            self.cancel()
        rest = encoder.push(np.zeros(0, np.float32), last=True) if encoder else b""
        if data := file.push(rest) + file.finish():
            yield data

    def cancel(self) -> None:
        """Stop the synthesis."""
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
        """Generate the speech ids of a piece, batched with other replies."""
        self._reply_cancel = cancel = threading.Event()
        if self._stop.is_set():
            cancel.set()
        answer = self._async_engine.scheduler.submit(
            ask(text=text), "tts", seed=seed, speak=False, cancel=cancel
        )
        return answer.reply()
