"""Responses without a new turn of the user: first, again, or out of band."""

from __future__ import annotations

from typing import Any

import pytest

from echat.dialogue.prompts import typed_turn
from echat.dialogue.turns import AssistantTurn, UserTurn
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.realtime.conversation import Entry, GeneratedAnswer, opening_turn, turns

TEXT = {"output_modalities": ["text"]}
KEYS = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "i lost my keys"}]}


@pytest.fixture
def asked(monkeypatch):
    """The turns of every reply that the engine gets."""
    from echat.serve.async_engine import AsyncEngine

    asked: list[list[Any]] = []
    reply = AsyncEngine.reply

    def record(self: AsyncEngine, turns: Any, *args: Any, **settings: Any) -> Any:
        asked.append(list(turns))
        return reply(self, turns, *args, **settings)

    monkeypatch.setattr(AsyncEngine, "reply", record)
    return asked


def typed(text: str) -> UserTurn:
    return UserTurn(text=text, is_pseudo_audio=True)


async def respond(client: Any, **response: Any) -> dict[str, Any]:
    await client.send("response.create", response={**TEXT, **response})
    done = (await client.until("response.done"))["response"]
    assert done["status"] in ("completed", "incomplete")
    return done


def test_a_greeting_stays_in_the_conversation(talking, asked):
    async def dialogue(client: Any) -> None:
        done = await respond(client)
        assert asked == [[typed(typed_turn("greet"))]]
        said = done["output"][0]["content"][0]["text"]
        assert said
        await client.send("conversation.item.create", item=KEYS)
        await respond(client)
        before, answer, question = asked[1]
        assert before == UserTurn(text=typed_turn("greet")) and question == typed("i lost my keys")
        assert isinstance(answer, AssistantTurn) and answer.text == said

    talking(dialogue)


def test_a_spoken_greeting(talking):
    async def dialogue(client: Any) -> None:
        await client.send("response.create")
        done = (await client.until("response.done"))["response"]
        assert done["status"] == "completed" and done["output"][0]["content"][0]["transcript"]
        assert "response.output_audio.delta" in client.kinds

    talking(dialogue)


def test_instructions_become_the_opening_turn(talking, asked):
    """Some clients put the session's instructions before those of the response."""

    async def dialogue(client: Any) -> None:
        await client.send("session.update", session={"type": "realtime", "instructions": "You are kind."})
        await respond(client, instructions="Greet the user")
        await respond(client, instructions="You are kind.\nSay goodbye")
        assert asked[0] == [typed("Greet the user")]
        assert asked[1][-1] == typed("Say goodbye") and len(asked[1]) == 3

    talking(dialogue)


@pytest.mark.parametrize("given", [[], [{"type": "function_call_output", "call_id": "c", "output": "{}"}]])
def test_an_empty_context_is_greeted_outside_the_conversation(talking, asked, given):
    async def dialogue(client: Any) -> None:
        done = await respond(client, conversation="none", input=given)
        assert "conversation_id" not in done
        assert asked == [[typed(typed_turn("greet"))]]
        assert not [kind for kind in client.kinds if kind.startswith("conversation.item")]

    talking(dialogue)


def said(role: str, text: str) -> Entry:
    part = ContentPart(type="output_text" if role == "assistant" else "input_text", text=text)
    generated = GeneratedAnswer(text=text, is_whole=True) if role == "assistant" else None
    return Entry(Item(id=text, role=role, content=[part]), generated=generated)


def test_system_messages_since_the_last_turn_become_the_opening_turn():
    entries = [said("system", "Be kind."), said("user", "hi"), said("assistant", "hello")]
    assert opening_turn(entries) == typed(typed_turn("greet"))
    entries += [said("developer", "Ask for the name"), said("system", "and smile")]
    assert opening_turn(entries) == typed("Ask for the name\nand smile")
    assert opening_turn(entries, "Say goodbye") == typed("Say goodbye")
    assert turns(entries) == [UserTurn(text="hi"), AssistantTurn("hello")]


def test_a_greeting_that_was_not_played_is_no_turn():
    entry = said("assistant", "hello")
    entry.turn = typed("greet")
    assert turns([entry]) == [UserTurn(text="greet"), AssistantTurn("hello")]
    assert entry.generated is not None
    entry.generated.played_ms, entry.generated.speech_ids = 0, (1, 2)
    assert turns([entry]) == []


def test_after_a_cut_answer_to_a_typed_question_prefill_works(talking):
    """Nothing of the answer was played, so the history ends with a question without audio."""

    async def dialogue(client: Any) -> None:
        await client.send("conversation.item.create", item=KEYS)
        response_manager = client.session.response_manager
        await response_manager.prefill(client.session.context.items.turns())
        assert response_manager.prompt_cache.n_bytes > 0
        done = await respond(client)
        assert done["usage"]["input_token_details"]["cached_tokens"] > 0

    talking(dialogue)


@pytest.mark.parametrize("most", [0, -5, 4097, 1.5, "5", True])
def test_an_impossible_length_is_refused_by_name(talking, most):
    async def dialogue(client: Any) -> None:
        await client.send("response.create", event_id="e", response={"max_output_tokens": most})
        error = (await client.until("error"))["error"]
        assert (error["param"], error["event_id"]) == ("response.max_output_tokens", "e")
        assert error["message"] == 'response.max_output_tokens: expected 1 to 4096 or "inf"'
        assert client.waiting() == []

    talking(dialogue)
