"""Any valid JSON is answered: the session stays, works, and answers as if nothing had been.

ECHAT_FUZZ_MESSAGES says how many messages; the default suits a test of every day.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
from typing import Any

import pytest
from tests.serve.mutations import mutated, nested

MESSAGES = int(os.environ.get("ECHAT_FUZZ_MESSAGES", "120"))
SESSION: dict[str, Any] = {
    "type": "realtime",
    "model": "gpt-realtime",
    "output_modalities": ["text"],
    "instructions": "Be kind.",
    "max_output_tokens": 8,
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "noise_reduction": {"type": "near_field"},
            "transcription": {"model": "whisper-1", "language": "en"},
            "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 400},
        },
        "output": {"format": {"type": "audio/pcmu"}, "voice": {"id": "alloy"}, "speed": 1.0},
    },
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}],
    "tool_choice": "auto",
    "tracing": {"workflow_name": "w"},
    "echat": {"think": "label", "show_thought": False, "seed": 7, "interrupt_ms": 90},
}
OLD: dict[str, Any] = {
    "modalities": ["text"],
    "voice": "alloy",
    "input_audio_format": "g711_ulaw",
    "output_audio_format": "pcm16",
    "input_audio_transcription": {"model": "whisper-1"},
    "turn_detection": {"type": "server_vad", "threshold": 0.5},
    "max_response_output_tokens": 8,
}
ITEM: dict[str, Any] = {
    "id": "item_a",
    "type": "message",
    "role": "user",
    "content": [
        {"type": "input_text", "text": "i lost my keys"},
        {"type": "input_audio", "audio": "AAAA" * 999},
    ],
}
RESPONSE: dict[str, Any] = {
    "conversation": "none",
    "output_modalities": ["text"],
    "instructions": "hello",
    "max_output_tokens": 4,
    "metadata": {"a": "b"},
    "audio": {"output": {"voice": "alloy", "format": {"type": "audio/pcma"}}},
    "input": [ITEM],
}
MESSAGES_THAT_FIT: list[dict[str, Any]] = [
    {"type": "session.update", "event_id": "e", "session": SESSION},
    {"type": "session.update", "event_id": "e", "session": SESSION},
    {"type": "session.update", "event_id": "e", "session": OLD},
    {"type": "transcription_session.update", "session": {"input_audio_format": "pcm16"}},
    {"type": "input_audio_buffer.append", "event_id": "e", "audio": "AAAA" * 99},
    {"type": "input_audio_buffer.commit", "event_id": "e"},
    {"type": "input_audio_buffer.clear"},
    {"type": "conversation.item.create", "event_id": "e", "previous_item_id": "root", "item": ITEM},
    {"type": "conversation.item.create", "item": {**ITEM, "role": "system"}},
    {"type": "conversation.item.retrieve", "event_id": "e", "item_id": "item_a"},
    {"type": "conversation.item.truncate", "item_id": "item_a", "content_index": 0, "audio_end_ms": 20},
    {"type": "conversation.item.delete", "item_id": "item_a"},
    {"type": "response.create", "event_id": "e", "response": RESPONSE},
    {"type": "response.cancel", "event_id": "e", "response_id": "resp_a"},
]

ANSWERED_LATER = ("input_audio_buffer.append", "response.create", "response.cancel")


async def answer(client: Any, question: bytes) -> list[dict[str, Any]]:
    """The text and sound of an answer outside the conversation, in a session set back to its start."""
    audio = {
        "input": {"format": {"type": "audio/pcm", "rate": 24000}},
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "speed": 1.0},
    }
    options = {"think": "label", "show_thought": False, "seed": 7, "pause": False, "interrupt_ms": None}
    session = {"type": "realtime", "audio": audio, "max_output_tokens": "inf", "echat": options}
    await client.send("session.update", session=session)
    part = {"type": "input_audio", "audio": base64.b64encode(question).decode()}
    asked = {"conversation": "none", "output_modalities": ["audio"], "metadata": {"for": "test"}}
    item = {"type": "message", "role": "user", "content": [part]}
    await client.send(
        "response.create", response={**asked, "input": [item], "audio": {"output": {"voice": None}}}
    )
    while (done := (await client.until("response.done"))["response"]).get("metadata") != {"for": "test"}:
        pass
    assert done["status"] == "completed"
    return [
        event["delta"]
        for event in client.received
        if event.get("response_id") == done["id"]
        and event["type"].endswith(("audio.delta", "transcript.delta"))
    ]


@pytest.mark.parametrize("beta", [False, True], ids=["present", "old names"])
@pytest.mark.slow
def test_almost_valid_messages_change_nothing_for_the_next_question(talking, question, beta):
    answers, chance = [], random.Random(beta)

    async def undisturbed(client: Any) -> None:
        answers.append(await answer(client, question))

    async def pestered(client: Any) -> None:
        for _ in range(MESSAGES):
            message = mutated(chance.choice(MESSAGES_THAT_FIT), chance)
            before = client.session.context._n_events
            await client.session.handle(json.dumps(message))
            if message.get("type") not in ANSWERED_LATER:
                assert client.session.context._n_events > before, message
            client.session.response_manager.cancel("client_cancelled")
        await asyncio.gather(*client.session.response_manager._tasks, return_exceptions=True)
        answers.append(await answer(client, question))
        kinds = client.kinds
        assert kinds.count("response.created") == kinds.count("response.done")
        assert kinds.count("error") > MESSAGES // 10
        assert b"errors_total{" not in client.session.context.metrics.text()

    talking(undisturbed, beta)
    talking(pestered, beta)
    assert answers[0] == answers[1] and len(answers[0]) > 3


@pytest.mark.parametrize(
    "message",
    [
        {"type": "session.update", "event_id": "\ud800", "session": {"instructions": "\udfff"}},
        {"type": "session.update", "session": {"tools": [{"name": "\ud83d"}], "prompt": {"\ud800": 1}}},
        {
            "type": "conversation.item.create",
            "item": {**ITEM, "content": [{"type": "input_text", "text": "\ud800"}]},
        },
        {"type": "response.create", "response": {**RESPONSE, "input": [], "metadata": {"\ud800": "\udc00"}}},
        {"type": "response.create", "response": {**RESPONSE, "input": [], "metadata": nested(60)}},
        {"type": "\ud800"},
    ],
)
def test_a_lone_surrogate_does_not_break_a_session(talking, message):
    async def dialogue(client: Any) -> None:
        await client.session.handle(json.dumps(message))
        if message["type"] == "response.create":
            await client.until("response.done")
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        for event in client.received:
            json.dumps(event, ensure_ascii=False).encode()  # as a socket sends it

    talking(dialogue)


def test_an_error_of_the_server_in_one_event_ends_no_session(talking, monkeypatch):
    async def dialogue(client: Any) -> None:
        def broken(event: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(client.session.input_manager.input_buffer, "clear", lambda: 1 / 0)
        await client.send("input_audio_buffer.clear", event_id="mine")
        error = (await client.until("error"))["error"]
        assert (error["type"], error["code"], error["event_id"]) == ("server_error", "internal_error", "mine")
        monkeypatch.undo()
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        assert b'errors_total{where="event"} 1.0' in client.session.context.metrics.text()

    talking(dialogue)


def test_a_response_with_failing_events_still_ends(talking, monkeypatch):
    from echat.serve.realtime.response import Response

    monkeypatch.setattr(Response, "_close", lambda self: 1 / 0)

    async def dialogue(client: Any) -> None:
        await client.send("response.create", response={"output_modalities": ["text"]})
        done = await client.until("response.done")
        assert done["response"]["status"] == "failed"
        assert not client.session.response_manager.is_busy

    talking(dialogue)
