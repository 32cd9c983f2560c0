"""Fair scheduling: requests of one session do not delay another, and are limited."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from tests.serve.session_client import SessionClient

from echat.audio.vad import VoiceActivityDetector
from echat.serve.app_state import App
from echat.serve.async_engine import AsyncEngine
from echat.serve.metrics import Metrics
from echat.serve.realtime.send_queue import SendQueue
from echat.serve.realtime.session import RealtimeSession
from echat.serve.settings import ServeConfig

TYPED = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "i passed my exam"}]}


class Client(SessionClient):
    """A client of one of several sessions."""

    def __init__(self, app: App) -> None:
        super().__init__(RealtimeSession(app, SendQueue(2**23)))

    def held(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind that wait to be taken."""
        waiting = [json.loads(message.text) for message in self.session.context.send_queue._messages]
        return [event for event in waiting if event["type"] == kind]

    async def ask_beside(self, times: int) -> None:
        await self.send("conversation.item.create", item=TYPED)
        for _ in range(times):
            await self.send("response.create", response={"conversation": "none"})
        await asyncio.sleep(0)  # so that each of them says that it is there


@pytest.fixture
def app(tiny: Any) -> Any:
    async_engine = AsyncEngine(tiny, threads=4, asides=1)
    yield App(async_engine, ServeConfig(), VoiceActivityDetector(), Metrics())
    async_engine.close()


@pytest.fixture
def busy(app: App) -> Any:
    """Occupies the one thread for asides until this is set."""
    go = threading.Event()
    app.async_engine.aside_lane(1).submit(go.wait)
    yield go
    go.set()


def test_three_hundred_responses_are_refused_by_name_and_starve_nobody(app: App, busy: Any) -> None:
    async def run() -> tuple[Client, Client]:
        greedy, modest = Client(app), Client(app)
        await greedy.ask_beside(300)
        await modest.send("session.update", session={"type": "realtime", "echat": {"seed": 0}})
        await modest.send("conversation.item.create", item=TYPED)
        await modest.send("response.create")
        done = await modest.until("response.done")  # nothing of the other one was even begun
        assert done["response"]["status"] == "completed"
        assert not greedy.held("response.done")
        created, errors = greedy.held("response.created"), greedy.held("error")
        for one in (greedy, modest):
            await one.session.close()
        assert len(created) == app.config.limits.responses
        assert len(created) + len(errors) == 300
        assert {error["error"]["code"] for error in errors} == {"too_many_responses"}
        assert "limits.responses" in errors[0]["error"]["message"]
        return greedy, modest

    asyncio.run(run())


def test_a_waiting_response_can_be_cancelled_and_frees_its_slot(app: App, busy: Any) -> None:
    async def run() -> None:
        client = Client(app)
        most = app.config.limits.responses
        await client.ask_beside(most + 1)
        ids = [event["response"]["id"] for event in client.held("response.created")]
        assert len(client.held("error")) == 1
        await client.send("response.cancel", response_id=ids[3])
        done = await client.until("response.done")
        assert (done["response"]["id"], done["response"]["status"]) == (ids[3], "cancelled")
        await client.send("response.create", response={"conversation": "none"})
        assert len(client.session.response_manager.open) == most
        await client.send("response.cancel", response_id="resp_none")
        assert client.held("error")[-1]["error"]["code"] == "response_cancel_not_active"
        lane = client.session.response_manager.aside_lane
        assert len(lane.waiting) == most  # what was cancelled has left the line
        await client.session.close()
        assert not lane.waiting and not client.session.response_manager.open

    asyncio.run(run())


def test_transcriptions_and_prefills_are_limited(app: App, busy: Any, question: bytes) -> None:
    async def run() -> list[str]:
        import base64

        client = Client(app)
        update = {"type": "realtime", "audio": {"input": {"transcription": {}, "turn_detection": None}}}
        await client.send("session.update", session=update)
        lane = client.session.response_manager.aside_lane
        for _ in range(lane.most_waiting + 3):  # type: ignore[operator]
            sound = base64.b64encode(question[: 24_000 // 5 * 2]).decode()
            await client.send("input_audio_buffer.append", audio=sound)
            await client.send("input_audio_buffer.commit")
            await asyncio.sleep(0)
        failed = [await client.until("conversation.item.input_audio_transcription.failed") for _ in range(3)]
        assert len(lane.waiting) == lane.most_waiting
        await client.session.close()
        return [event["error"]["message"] for event in failed]

    assert all("at most" in message for message in asyncio.run(run()))


def test_the_text_of_a_conversation_is_limited(app: App) -> None:
    async def run() -> None:
        client, limits = Client(app), app.config.limits
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a" * 30_000}]}
        for _ in range(12):
            await client.send("conversation.item.create", item=item)
        items = client.session.context.items
        assert sum(entry.n_characters for entry in items.entries) <= limits.context_characters
        assert len(items.entries) == limits.context_characters // 30_000
        call = {"type": "function_call", "name": "f", "call_id": "c", "arguments": "b" * 200_000}
        for _ in range(12):
            await client.send("conversation.item.create", item=call)
        assert sum(entry.n_bytes for entry in items.entries) <= limits.context_bytes
        assert not client.held("error")
        await client.send("response.create")
        part = {"type": "input_text", "text": "a" * 2**23}
        await client.send("conversation.item.create", item={**TYPED, "content": [part]})
        assert client.held("error")[-1]["error"]["code"] == "text_too_long"
        await client.session.close()

    asyncio.run(run())


def test_a_typed_question_beyond_the_positions_fails_by_name(app: App) -> None:
    async def run() -> dict[str, Any]:
        client = Client(app)
        long = {"type": "input_text", "text": "how are you " * 2500}
        await client.send("conversation.item.create", item={**TYPED, "content": [long]})
        await client.send("response.create")
        done = await client.until("response.done")
        await client.session.close()
        return dict(done["response"])

    response = asyncio.run(run())
    assert response["status"] == "failed"
    assert "question: expected at most 3072 text ids" in response["status_details"]["error"]["message"]
