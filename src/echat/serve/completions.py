"""`/v1/chat/completions`: sound or text in, text and sound out, whole or streamed."""

from __future__ import annotations

import base64
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from echat.dialogue.thinking import Thought
from echat.dialogue.turns import Turn, UserTurn
from echat.infer import events
from echat.infer.events import Reply
from echat.serve.accounting import thought_values, usage
from echat.serve.answering import voice_name
from echat.serve.completion_request import CompletionRequest, Message, Part
from echat.serve.http_errors import APIError, Places, sse, telling_errors
from echat.serve.inline_sound import inline_bytes
from echat.serve.items import Entry, Spoken, turns
from echat.serve.message_size import check_text
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.wire import new_id
from echat.serve.replies import ReplyStream
from echat.serve.rest import client_of, samples_of
from echat.serve.settings import Limits
from echat.serve.sound_files import FileFormat, whole_file
from echat.serve.state import House
from echat.serve.wire_audio import Encoder

KEPT_ANSWERS = 256
KEPT_SECONDS = 3600


@dataclass(frozen=True)
class Kept:
    """An answer that a later request may refer to."""

    spoken: Spoken
    expires: float


class Answers:
    """Spoken answers by id, the oldest forgotten."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, spoken: Spoken, expires: float, answer_id: str | None = None) -> str:
        answer_id = answer_id or new_id("audio")
        self._kept[answer_id] = Kept(spoken, expires)
        while len(self._kept) > KEPT_ANSWERS:
            self._kept.popitem(last=False)
        return answer_id

    def get(self, answer_id: str) -> Spoken:
        kept = self._kept.get(answer_id)
        if kept is None or kept.expires < time.time():
            message = f"messages: no answer {answer_id[:80]!r} is kept here"
            raise APIError(404, message, "audio_not_found", "messages")
        return kept.spoken


def add_completions(app: FastAPI, house: House, places: Places) -> None:
    """The route."""
    answers = Answers()

    @app.post("/v1/chat/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        _check(asked, house)
        _check_texts(asked.messages, house.config.limits)
        async with places.one(client_of(request)) as place:
            heard = await _turns(asked.messages, house, answers)
            completion = _Completion(asked, _begin(asked, heard, house), house, answers)
            if asked.stream:
                pieces = telling_errors(completion.chunks(), sse("[DONE]"))
                return place.streaming(pieces, "text/event-stream")
            return JSONResponse(await completion.whole())


def _check(asked: CompletionRequest, house: House) -> None:
    if not asked.speaks:
        return
    house.desk.engine.need_token2wav()
    if asked.audio is None:
        message = 'audio: expected {"voice", "format"} with modality audio, found none'
        raise APIError(400, message, param="audio")
    if asked.audio.format == "aac" or (asked.stream and asked.audio.format != "pcm16"):
        known = "pcm16" if asked.stream else "wav, mp3, flac, opus or pcm16"
        message = f"audio.format: expected {known}, found {asked.audio.format}"
        raise APIError(400, message, param="audio.format")


def _check_texts(messages: Sequence[Message], limits: Limits) -> None:
    """Refuse words that are too many before anything is made of them."""
    total = 0
    for place, message in enumerate(messages):
        text = message.text
        check_text(f"messages.{place}.content", text, limits)
        total += len(text)
    if total > limits.context_characters:
        raise APIError(
            400,
            f"messages: expected at most {limits.context_characters} characters in all "
            f"(limits.context_characters), found {total}; leave the oldest out",
            "text_too_long",
            "messages",
        )


async def _turns(messages: Sequence[Message], house: House, answers: Answers) -> list[Turn]:
    entries = [await _entry(message, house, answers) for message in messages]
    made = turns([entry for entry in entries if entry is not None], house.speech_in_history)
    if not made or not isinstance(made[-1], UserTurn):
        raise APIError(400, "messages: expected a message of the user at the end", None, "messages")
    return made


async def _entry(message: Message, house: House, answers: Answers) -> Entry | None:
    """A message as an item of a conversation; system and tool messages are no turns."""
    parts, text = message.parts, message.text
    if message.role == "assistant":
        spoken = answers.get(message.audio.id) if message.audio else Spoken(text=text, is_whole=True)
        return Entry(Item(role="assistant"), spoken=spoken)
    if message.role != "user":
        return None
    heard = [data for part in parts if (data := _sound_bytes(part)) is not None]
    sounds = [await samples_of(house, data, "input_audio") for data in heard]
    content = [ContentPart(type="input_text", text=text)] if text else []
    return Entry(Item(role="user", content=content), sound=np.concatenate(sounds) if sounds else None)


def _sound_bytes(part: Part) -> bytes | None:
    """The sound file in a part of a user's message; None of text, anything else is refused by name."""
    if part.type == "input_audio" and part.input_audio is not None:
        return inline_bytes(part.input_audio.data, "input_audio.data")
    if part.type == "audio_url" and part.audio_url is not None:
        return inline_bytes(part.audio_url.url, "audio_url.url")
    if part.type == "text":
        return None
    message = "messages: expected parts of type text, input_audio with data or audio_url with a data URI, "
    raise APIError(400, f"{message}found {part.type[:40]!r}", "invalid_value", "messages")


def _begin(asked: CompletionRequest, heard: list[Turn], house: House) -> ReplyStream:
    think = asked.echat.think or house.config.think
    is_typed = all(turn.audio is None for turn in heard if isinstance(turn, UserTurn))
    task = "s2s" if asked.speaks else "s2t"
    if think != "off":
        task += f"_think_{think}"
    elif is_typed and not asked.speaks:
        task = "t2t"
    asked_for = [n for n in (asked.max_tokens, asked.max_completion_tokens) if n is not None]
    voice = asked.audio.voice if asked.audio and asked.speaks else None
    return house.desk.reply(
        heard,
        task,
        max_new_ids=min([house.config.limits.reply_ids, *asked_for]),
        seed=asked.seed,
        voice=voice_name(house, voice),
    )


class _Completion:
    """One answer on its way out."""

    def __init__(self, asked: CompletionRequest, stream: ReplyStream, house: House, answers: Answers) -> None:
        self.asked, self.stream, self.house, self.answers = asked, stream, house, answers
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self.expires = self.created + KEPT_SECONDS
        self.spoken = Spoken()
        self.thought: Thought | None = None
        self.reply: Reply | None = None
        self._encoder: Encoder | None = None

    async def told(self) -> AsyncIterator[tuple[str, bytes]]:
        """The next words, the next sound; either may be empty."""
        try:
            async for event in self.stream:
                match event:
                    case events.Thought(thought, _):
                        self.thought = thought
                    case events.TextPiece(text):
                        self.spoken.text += text
                        yield text, b""
                    case events.Audio(waveform, rate):
                        self._encoder = self._encoder or Encoder("audio/pcm", rate)
                        yield "", self._sound(self._encoder.push(waveform.numpy()))
                    case events.Done(reply):
                        self.reply = reply
            if self._encoder is not None:
                yield "", self._sound(self._encoder.push(np.zeros(0, np.float32), last=True))
        finally:
            self.stream.cancel()
        assert self.reply is not None
        if self.reply.is_mute:
            raise APIError(500, f"the model came to an end with {self.reply.defect}; ask again", "no_answer")
        self.spoken = replace(
            self.spoken,
            text=self.reply.text,
            speech_ids=self.reply.speech_ids,
            is_whole=True,
            text_ids=self.reply.own_text_ids,
        )

    def _sound(self, data: bytes) -> bytes:
        self.spoken.pcm += data
        return data

    @property
    def finish_reason(self) -> str:
        return "length" if self.reply is not None and self.reply.finish_reason == "length" else "stop"

    @property
    def _own(self) -> dict[str, Any]:
        """What the public protocol has no field for: earlier turns that the model was not given."""
        n_turns = self.reply.counts.get("turns_left_out", 0) if self.reply is not None else 0
        return {"echat": {"turns_left_out": n_turns}} if n_turns else {}

    @property
    def usage(self) -> dict[str, Any]:
        counts = usage(self.reply)
        return {
            "prompt_tokens": counts["input_tokens"],
            "completion_tokens": counts["output_tokens"],
            "total_tokens": counts["total_tokens"],
            "prompt_tokens_details": {
                "audio_tokens": counts["input_token_details"]["audio_tokens"],
                "cached_tokens": counts["input_token_details"]["cached_tokens"],
            },
            "completion_tokens_details": {
                "audio_tokens": counts["output_token_details"]["audio_tokens"],
                "reasoning_tokens": 0,
            },
        }

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        async for _ in self.told():
            pass
        self._check_sound()
        message: dict[str, Any] = {"role": "assistant", "content": self.spoken.text, "refusal": None}
        if self.asked.audio is not None and self.asked.speaks:
            name: FileFormat = self.asked.audio.format  # type: ignore[assignment]
            data = await self.house.desk.call(lambda: whole_file(name, bytes(self.spoken.pcm)))
            message["content"] = None
            message["audio"] = {
                "id": self.answers.keep(self.spoken, self.expires),
                "data": base64.b64encode(data).decode(),
                "transcript": self.spoken.text,
                "expires_at": self.expires,
            }
        if self.asked.echat.show_thought and self.thought is not None:
            message["thought"] = thought_values(self.thought)
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason, "logprobs": None}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": self.usage, **self._own}

    def _check_sound(self) -> None:
        """An answer in sound without sound is no answer: say why there is none."""
        if not self.asked.speaks or self.spoken.pcm:
            return
        if self.finish_reason == "length":
            message = (
                "max_tokens: expected enough for a thought, an answer and its speech (25 ids a second), "
                f"found {self.usage['completion_tokens']} used up before the first sound; allow more"
            )
            raise APIError(400, message, "no_sound", "max_tokens")
        raise APIError(500, "the model answered without a sound; ask again, with another seed", "no_sound")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer in pieces, as server-sent events."""
        answer_id = new_id("audio")
        rest: dict[str, Any] = {"audio": {"id": answer_id}} if self.asked.speaks else {"content": ""}
        yield self._chunk({"role": "assistant", **rest})
        async for text, data in self.told():
            if text:
                yield self._chunk({"audio": {"transcript": text}} if self.asked.speaks else {"content": text})
            if data:
                yield self._chunk({"audio": {"data": base64.b64encode(data).decode()}})
        last: dict[str, Any] = {}
        if self.asked.speaks:
            self.answers.keep(self.spoken, self.expires, answer_id)
            last = {"audio": {"expires_at": self.expires}}
        if self.asked.echat.show_thought and self.thought is not None:
            last["thought"] = thought_values(self.thought)
        yield self._chunk(last, self.finish_reason, self._own)
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield sse({**self._frame("chat.completion.chunk"), "choices": [], "usage": self.usage})
        yield sse("[DONE]")

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, own: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return sse({**self._frame("chat.completion.chunk"), "choices": [choice], **(own or {})})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.house.model}
