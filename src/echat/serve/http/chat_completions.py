"""`/v1/chat/completions`: audio or text in, text and audio out, whole or streamed as server-sent events."""

from __future__ import annotations

import base64
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from echat.dialogue.tasks import reply_task
from echat.dialogue.thinking import Thought
from echat.dialogue.turns import Turn, UserTurn
from echat.infer import events
from echat.infer.events import Reply
from echat.serve.app_state import App
from echat.serve.async_engine import AsyncReplyStream
from echat.serve.http.audio import decode_samples
from echat.serve.http.audio_files import FileFormat, decode_inline_audio, encode_audio_file
from echat.serve.http.chat_request import CompletionRequest, Message, Part
from echat.serve.http.errors import APIError
from echat.serve.http.request_slots import RequestSlots, client_name, sse, with_error_event
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.size_limits import check_text
from echat.serve.protocol.usage import thought_values, usage
from echat.serve.protocol.wire import new_id
from echat.serve.protocol.wire_audio import AudioEncoder
from echat.serve.realtime.conversation import Entry, GeneratedAnswer, turns
from echat.serve.settings import Limits

KEPT_ANSWERS = 256
KEPT_SECONDS = 3600


class AnswerStore:
    """Spoken answers that later requests may refer to by id; the oldest are dropped."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[GeneratedAnswer, float]] = OrderedDict()  # with time of expiry

    def add(self, generated: GeneratedAnswer, expires: float, answer_id: str | None = None) -> str:
        answer_id = answer_id or new_id("audio")
        self._kept[answer_id] = (generated, expires)
        while len(self._kept) > KEPT_ANSWERS:
            self._kept.popitem(last=False)
        return answer_id

    def get(self, answer_id: str) -> GeneratedAnswer:
        generated, expires = self._kept.get(answer_id, (None, 0.0))
        if generated is None or expires < time.time():
            message = f"messages: no answer {answer_id[:80]!r} is kept here"
            raise APIError(404, message, "audio_not_found", "messages")
        return generated


def add_completions(api: FastAPI, app: App, slots: RequestSlots) -> None:
    """Add the route."""
    answers = AnswerStore()

    @api.post("/v1/chat/completions")
    async def completions(payload: CompletionRequest, request: Request) -> Response:
        _check(payload, app)
        _check_texts(payload.messages, app.config.limits)
        async with slots.acquire(client_name(request)) as slot:
            conversation = await _turns(payload.messages, app, answers)
            completion = _Completion(payload, _start_reply(payload, conversation, app), app, answers)
            if payload.stream:
                pieces = with_error_event(completion.chunks(), sse("[DONE]"))
                return slot.streaming(pieces, "text/event-stream")
            return JSONResponse(await completion.complete())


def _check(payload: CompletionRequest, app: App) -> None:
    if not payload.speaks:
        return
    app.async_engine.engine.need_token2wav()
    if payload.audio is None:
        message = 'audio: expected {"voice", "format"} with modality audio, found none'
        raise APIError(400, message, param="audio")
    if payload.audio.format == "aac" or (payload.stream and payload.audio.format != "pcm16"):
        known = "pcm16" if payload.stream else "wav, mp3, flac, opus or pcm16"
        message = f"audio.format: expected {known}, found {payload.audio.format}"
        raise APIError(400, message, param="audio.format")


def _check_texts(messages: Sequence[Message], limits: Limits) -> None:
    """Refuse texts that are too long before anything is computed."""
    total = 0
    for index, message in enumerate(messages):
        text = message.text
        check_text(f"messages.{index}.content", text, limits)
        total += len(text)
    if total > limits.context_characters:
        raise APIError(
            400,
            f"messages: expected at most {limits.context_characters} characters in all "
            f"(limits.context_characters), found {total}; leave the oldest out",
            "text_too_long",
            "messages",
        )


async def _turns(messages: Sequence[Message], app: App, answers: AnswerStore) -> list[Turn]:
    entries = [await _entry(message, app, answers) for message in messages]
    made = turns([entry for entry in entries if entry is not None], app.speech_in_history)
    if not made or not isinstance(made[-1], UserTurn):
        raise APIError(400, "messages: expected a message of the user at the end", None, "messages")
    return made


async def _entry(message: Message, app: App, answers: AnswerStore) -> Entry | None:
    """A message as a conversation item; system and tool messages are no turns."""
    parts, text = message.parts, message.text
    if message.role == "assistant":
        kept = answers.get(message.audio.id) if message.audio else None
        generated = kept or GeneratedAnswer(text=text, is_whole=True)
        return Entry(Item(role="assistant"), generated=generated)
    if message.role != "user":
        return None
    audio_files = [data for part in parts if (data := _audio_bytes(part)) is not None]
    sounds = [await decode_samples(app, data, "input_audio") for data in audio_files]
    content = [ContentPart(type="input_text", text=text)] if text else []
    return Entry(Item(role="user", content=content), samples=np.concatenate(sounds) if sounds else None)


def _audio_bytes(part: Part) -> bytes | None:
    """The sound file in a content part of a user; None for text, anything else is refused by name."""
    if part.type == "input_audio" and part.input_audio is not None:
        return decode_inline_audio(part.input_audio.data, "input_audio.data")
    if part.type == "audio_url" and part.audio_url is not None:
        return decode_inline_audio(part.audio_url.url, "audio_url.url")
    if part.type == "text":
        return None
    message = "messages: expected parts of type text, input_audio with data or audio_url with a data URI, "
    raise APIError(400, f"{message}found {part.type[:40]!r}", "invalid_value", "messages")


def _start_reply(payload: CompletionRequest, conversation: list[Turn], app: App) -> AsyncReplyStream:
    think = payload.echat.think or app.config.think
    is_typed = all(turn.audio is None for turn in conversation if isinstance(turn, UserTurn))
    is_text_only = is_typed and not payload.speaks and think == "off"
    requested = [n for n in (payload.max_tokens, payload.max_completion_tokens) if n is not None]
    voice = payload.audio.voice if payload.audio and payload.speaks else None
    return app.async_engine.reply(
        conversation,
        "t2t" if is_text_only else reply_task(think, payload.speaks),
        max_new_ids=min([app.config.limits.reply_ids, *requested]),
        seed=payload.seed,
        voice=app.voice_for(voice),
    )


class _Completion:
    """One answer: events of the engine in, the response body or its chunks out."""

    def __init__(
        self, payload: CompletionRequest, stream: AsyncReplyStream, app: App, answers: AnswerStore
    ) -> None:
        self.payload, self.stream, self.app, self.answers = payload, stream, app, answers
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self.expires = self.created + KEPT_SECONDS
        self.generated = GeneratedAnswer()
        self.thought: Thought | None = None
        self.reply: Reply | None = None
        self._encoder: AudioEncoder | None = None

    async def deltas(self) -> AsyncIterator[tuple[str, bytes]]:
        """Pieces of text and of PCM; one of the two is empty."""
        try:
            async for event in self.stream:
                match event:
                    case events.Thought(thought, _):
                        self.thought = thought
                    case events.TextPiece(text):
                        self.generated.text += text
                        yield text, b""
                    case events.Audio(waveform, rate):
                        self._encoder = self._encoder or AudioEncoder("audio/pcm", rate)
                        yield "", self._keep_pcm(self._encoder.push(waveform.numpy()))
                    case events.Done(reply):
                        self.reply = reply
            if self._encoder is not None:
                yield "", self._keep_pcm(self._encoder.push(np.zeros(0, np.float32), last=True))
        finally:
            self.stream.cancel()
        assert self.reply is not None
        if self.reply.is_mute:
            raise APIError(500, f"the model came to an end with {self.reply.defect}; ask again", "no_answer")
        generated, reply = self.generated, self.reply
        generated.text, generated.text_ids, generated.speech_ids = (
            reply.text,
            reply.own_text_ids,
            reply.speech_ids,
        )
        generated.is_whole = True

    def _keep_pcm(self, data: bytes) -> bytes:
        self.generated.pcm += data
        return data

    @property
    def finish_reason(self) -> str:
        return "length" if self.reply is not None and self.reply.finish_reason == "length" else "stop"

    @property
    def _echat_fields(self) -> dict[str, Any]:
        """Extension of the public protocol: how many earlier turns were truncated from the prompt."""
        n_turns = self.reply.counts.get("turns_left_out", 0) if self.reply is not None else 0
        return {"echat": {"turns_left_out": n_turns}} if n_turns else {}

    @property
    def usage(self) -> dict[str, Any]:
        counts = usage(self.reply)
        read, written = counts["input_token_details"], counts["output_token_details"]
        return {
            "prompt_tokens": counts["input_tokens"],
            "completion_tokens": counts["output_tokens"],
            "total_tokens": counts["total_tokens"],
            "prompt_tokens_details": {name: read[name] for name in ("audio_tokens", "cached_tokens")},
            "completion_tokens_details": {"audio_tokens": written["audio_tokens"], "reasoning_tokens": 0},
        }

    async def complete(self) -> dict[str, Any]:
        """The body of the response."""
        async for _ in self.deltas():
            pass
        self._check_audio()
        message: dict[str, Any] = {"role": "assistant", "content": self.generated.text, "refusal": None}
        if self.payload.audio is not None and self.payload.speaks:
            name: FileFormat = self.payload.audio.format  # type: ignore[assignment]
            pcm = bytes(self.generated.pcm)
            data = await self.app.async_engine.call(lambda: encode_audio_file(name, pcm))
            message["content"] = None
            message["audio"] = {
                "id": self.answers.add(self.generated, self.expires),
                "data": base64.b64encode(data).decode(),
                "transcript": self.generated.text,
                "expires_at": self.expires,
            }
        if self.payload.echat.show_thought and self.thought is not None:
            message["thought"] = thought_values(self.thought)
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason, "logprobs": None}
        return {
            **self._frame("chat.completion"),
            "choices": [choice],
            "usage": self.usage,
            **self._echat_fields,
        }

    def _check_audio(self) -> None:
        """Refuse a spoken answer without audio, with the reason."""
        if not self.payload.speaks or self.generated.pcm:
            return
        if self.finish_reason == "length":
            message = (
                "max_tokens: expected enough for a thought, an answer and its speech (25 ids a second), "
                f"found {self.usage['completion_tokens']} used up before the first sound; allow more"
            )
            raise APIError(400, message, "no_sound", "max_tokens")
        raise APIError(500, "the model answered without a sound; ask again, with another seed", "no_sound")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        answer_id = new_id("audio")
        rest: dict[str, Any] = {"audio": {"id": answer_id}} if self.payload.speaks else {"content": ""}
        yield self._chunk({"role": "assistant", **rest})
        async for text, data in self.deltas():
            if text:
                delta = {"audio": {"transcript": text}} if self.payload.speaks else {"content": text}
                yield self._chunk(delta)
            if data:
                yield self._chunk({"audio": {"data": base64.b64encode(data).decode()}})
        last: dict[str, Any] = {}
        if self.payload.speaks:
            self.answers.add(self.generated, self.expires, answer_id)
            last = {"audio": {"expires_at": self.expires}}
        if self.payload.echat.show_thought and self.thought is not None:
            last["thought"] = thought_values(self.thought)
        yield self._chunk(last, self.finish_reason, self._echat_fields)
        if self.payload.stream_options is not None and self.payload.stream_options.include_usage:
            yield sse({**self._frame("chat.completion.chunk"), "choices": [], "usage": self.usage})
        yield sse("[DONE]")

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, own: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return sse({**self._frame("chat.completion.chunk"), "choices": [choice], **(own or {})})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.app.model}
