"""The official Python client, unmodified, with a live server; every event is validated with its types."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import openai
import pytest
from openai.types import realtime as types

MS = 48  # bytes of 24 kHz PCM
EVENTS = {
    get_args(model.model_fields["type"].annotation)[0]: model
    for model in get_args(get_args(types.RealtimeServerEvent)[0])
}


class Talker:
    """A connection and all events that it received, validated."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.received: list[dict[str, Any]] = []

    async def until(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of these kinds."""
        async with asyncio.timeout(600):
            while True:
                event = await self.next()
                if event["type"] in kinds:
                    return event

    async def next(self) -> dict[str, Any]:
        event = (await self.connection.recv()).to_dict()
        EVENTS[event["type"]].model_validate(event)
        self.received.append(event)
        return event

    async def update(self, **session: Any) -> dict[str, Any]:
        await self.connection.session.update(session={"type": "realtime", **session})
        return (await self.until("session.updated"))["session"]

    async def say(self, sound: bytes, chunk_ms: int = 100, pause: float = 0.0) -> None:
        for start in range(0, len(sound), chunk_ms * MS):
            chunk = base64.b64encode(sound[start : start + chunk_ms * MS]).decode()
            await self.connection.input_audio_buffer.append(audio=chunk)
            await asyncio.sleep(pause)

    @property
    def kinds(self) -> list[str]:
        return [event["type"] for event in self.received]

    def sound(self, response_id: str) -> bytes:
        return b"".join(
            base64.b64decode(event["delta"])
            for event in self.received
            if event["type"] == "response.output_audio.delta" and event["response_id"] == response_id
        )


@pytest.fixture
def talking(live: Any) -> Callable[..., None]:
    """Run a dialogue with the shared server."""

    def run(dialogue: Callable[[Talker], Awaitable[None]]) -> None:
        async def connected() -> None:
            client = openai.AsyncOpenAI(api_key="any", base_url=live.url, max_retries=0)
            async with client.realtime.connect(model="echat-tiny") as connection:
                talker = Talker(connection)
                created = await talker.next()
                assert created["type"] == "session.created"
                await dialogue(talker)
            await client.close()

        asyncio.run(connected())

    return run


def in_order(kinds: list[str], *expected: str) -> None:
    """Do the expected kinds occur one after the other?"""
    places = iter(kinds)
    missing = [kind for kind in expected if kind not in places]
    assert not missing, f"expected {missing[0]} after the ones before it, found {kinds}"


TURN = (
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
)
RESPONSE = (
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
)


@pytest.mark.slow
def test_several_turns_found_by_the_server(talking, question, quiet):
    async def dialogue(talker: Talker) -> None:
        for _ in range(3):
            talker.received.clear()
            await talker.say(question + quiet(1.0))
            done = (await talker.until("response.done"))["response"]
            # With a history this small model may have nothing to say; the order of events holds all the same.
            in_order(talker.kinds, *TURN, *(kind for kind in RESPONSE if "delta" not in kind))
            assert done["output"][0]["content"][0]["type"] == "output_audio"
            assert done["usage"]["output_tokens"] > 10
            assert not [kind for kind in talker.kinds if "thought" in kind]
        ids = [event["event_id"] for event in talker.received]
        assert len(set(ids)) == len(ids)

    talking(dialogue)


def test_a_spoken_answer(talking, question, quiet):
    async def dialogue(talker: Talker) -> None:
        await talker.say(question + quiet(1.0))
        done = (await talker.until("response.done"))["response"]
        in_order(talker.kinds, *TURN, *RESPONSE)
        assert done["status"] == "completed"
        deltas = [
            e["delta"] for e in talker.received if e["type"] == "response.output_audio_transcript.delta"
        ]
        assert done["output"][0]["content"][0]["transcript"] == "".join(deltas)
        assert len(talker.sound(done["id"])) > 500 * MS

    talking(dialogue)


def test_transcription_of_the_user(talking, question, quiet):
    async def dialogue(talker: Talker) -> None:
        await talker.update(audio={"input": {"transcription": {"model": "echat-tiny"}}})
        await talker.say(question + quiet(1.0))
        committed = await talker.until("input_audio_buffer.committed")
        words = await talker.until("conversation.item.input_audio_transcription.completed")
        assert words["item_id"] == committed["item_id"]
        assert len(words["transcript"].split()) > 3
        assert words["usage"]["type"] == "duration"

    talking(dialogue)


def test_push_to_talk(talking, question):
    async def dialogue(talker: Talker) -> None:
        session = await talker.update(audio={"input": {"turn_detection": None}})
        assert session["audio"]["input"]["turn_detection"] is None
        await talker.say(question)
        await talker.connection.input_audio_buffer.commit()
        await talker.until("conversation.item.done")
        assert "response.created" not in talker.kinds
        await talker.connection.response.create()
        done = await talker.until("response.done")
        assert done["response"]["status"] == "completed"
        in_order(talker.kinds, *RESPONSE)

    talking(dialogue)


def test_cancelling(talking, question):
    async def dialogue(talker: Talker) -> None:
        await talker.update(audio={"input": {"turn_detection": None}})
        await talker.say(question)
        await talker.connection.input_audio_buffer.commit()
        await talker.connection.response.create()
        await talker.until("response.created")
        await talker.connection.response.cancel()
        done = (await talker.until("response.done"))["response"]
        assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        assert done["output"][0]["status"] == "incomplete"
        await talker.connection.response.cancel(event_id="mine")
        wrong = (await talker.until("error"))["error"]
        assert (wrong["code"], wrong["event_id"]) == ("response_cancel_not_active", "mine")

    talking(dialogue)


def test_barge_in_truncates_the_answer(talking, question, quiet):
    async def dialogue(talker: Talker) -> None:
        await talker.say(question + quiet(1.0))
        delta = await talker.until("response.output_audio.delta")
        item_id, response_id = delta["item_id"], delta["response_id"]
        while "response.done" not in talker.kinds and len(talker.sound(response_id)) < 800 * MS:
            await talker.next()
        await talker.say(question)
        await talker.until("input_audio_buffer.speech_started")
        if "response.done" not in talker.kinds:
            interrupted = await talker.until("response.done")
            assert interrupted["response"]["status_details"]["reason"] == "turn_detected"
        kinds = talker.kinds
        after = kinds[kinds.index("input_audio_buffer.speech_started", kinds.index("response.created")) :]
        assert "response.output_audio.delta" not in after
        await talker.connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=500)
        await talker.until("conversation.item.truncated")
        await talker.connection.conversation.item.retrieve(item_id=item_id)
        item = (await talker.until("conversation.item.retrieved"))["item"]
        part = item["content"][0]
        assert len(base64.b64decode(part["audio"])) == 500 * MS
        whole = next(e for e in talker.received if e["type"] == "response.output_audio_transcript.done")
        assert whole["transcript"].startswith(part["transcript"])
        assert len(part["transcript"]) < len(whole["transcript"])

    talking(dialogue)


def test_errors_leave_the_connection_open(talking):
    async def dialogue(talker: Talker) -> None:
        for event, code in (
            ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
            ({"type": "no.such.event"}, "unknown_event"),
            ({"type": "conversation.item.delete", "item_id": "item_none"}, "item_not_found"),
            ({"type": "session.update", "session": {"type": "realtime", "instructions": 5}}, "invalid_value"),
            ({"type": "input_audio_buffer.append", "audio": "???"}, "invalid_value"),
            ({"type": "response.create", "response": {"max_output_tokens": 0}}, "invalid_value"),
        ):
            await talker.connection.send({**event, "event_id": "e1"})
            error = (await talker.until("error"))["error"]
            assert (error["code"], error["event_id"]) == (code, "e1")
        assert (await talker.update(instructions="still here"))["instructions"] == "still here"

    talking(dialogue)


def test_typed_questions_and_text_answers(talking):
    async def dialogue(talker: Talker) -> None:
        await talker.connection.conversation.item.create(
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "i lost my keys"}],
            }
        )
        await talker.until("conversation.item.done")
        await talker.connection.response.create(response={"output_modalities": ["text"]})
        done = await talker.until("response.done")
        in_order(talker.kinds, "response.output_text.delta", "response.output_text.done", "response.done")
        assert "response.output_audio.delta" not in talker.kinds
        text = next(e["text"] for e in talker.received if e["type"] == "response.output_text.done")
        assert done["response"]["output"][0]["content"][0]["text"] == text

    talking(dialogue)


def test_a_response_outside_the_conversation(talking, question):
    async def dialogue(talker: Talker) -> None:
        part = {"type": "input_audio", "audio": base64.b64encode(question).decode()}
        await talker.connection.response.create(
            response={
                "conversation": "none",
                "metadata": {"for": "test"},
                "input": [{"type": "message", "role": "user", "content": [part]}],
            }
        )
        done = (await talker.until("response.done"))["response"]
        assert done["status"] == "completed" and done["metadata"] == {"for": "test"}
        assert not [kind for kind in talker.kinds if kind.startswith("conversation.")]

    talking(dialogue)


@pytest.mark.parametrize("name", ["audio/pcmu", "audio/pcma"])
def test_g711_audio(talking, question, quiet, name):
    from echat.serve.protocol.wire_audio import AudioDecoder, AudioEncoder

    waveform = AudioDecoder("audio/pcm").push(question + quiet(1.0), last=True) / 32768
    sound = AudioEncoder(name, 16_000).push(waveform, last=True)

    async def dialogue(talker: Talker) -> None:
        form = {"format": {"type": name}}
        await talker.update(audio={"input": form, "output": form})
        for start in range(0, len(sound), 801):
            chunk = base64.b64encode(sound[start : start + 801]).decode()
            await talker.connection.input_audio_buffer.append(audio=chunk)
        done = (await talker.until("response.done"))["response"]
        assert done["status"] == "completed"
        said = AudioDecoder(name).push(talker.sound(done["id"]), last=True)
        assert abs(said).max() > 1000  # louder than noise

    talking(dialogue)


def test_a_thought_for_clients_that_request_it(talking, question, quiet):
    """Events of echat's extensions: not among the client's types."""

    async def dialogue(talker: Talker) -> None:
        for kind in ("response.thought.delta", "response.thought.done"):
            EVENTS[kind] = types.ResponseCreatedEvent.__base__
        await talker.update(echat={"show_thought": True, "think": "label"})
        await talker.say(question + quiet(1.0))
        done = (await talker.until("response.done"))["response"]
        in_order(
            talker.kinds,
            "response.thought.delta",
            "response.thought.done",
            "response.output_audio_transcript.delta",
        )
        thought = done["output"][0]["thought"]
        assert thought["form"] == "label" and thought["transcript"]
        labels = [
            e["labels"] for e in talker.received if e["type"] == "response.thought.delta" and e["labels"]
        ]
        assert labels[-1].items() <= thought.items()

    talking(dialogue)
