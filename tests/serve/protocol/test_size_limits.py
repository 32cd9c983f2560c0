"""Size limits are checked before anything is computed, and named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from echat.serve.protocol import client
from echat.serve.protocol.size_limits import UNCHECKED_CHARACTERS, check_sizes, check_values
from echat.serve.protocol.wire import ProtocolError
from echat.serve.settings import Limits

LIMITS = Limits(message_values=1000, fields_bytes=100_000, text_characters=5000)


def event(values: dict[str, Any]) -> tuple[client.ClientEvent, int]:
    return client.parse_event(values), len(json.dumps(values))


def item(**part: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [part]}


@pytest.mark.parametrize("one", ["[]", "{}", "0", '""', "[[[[0]]]]"])
@pytest.mark.parametrize("kind", [str, bytes])
def test_too_many_values_are_refused_before_parsing(one: str, kind: type) -> None:
    text = "[" + ",".join([one] * UNCHECKED_CHARACTERS) + "]"
    with pytest.raises(ProtocolError, match="at most 1000 values"):
        check_values(text if kind is str else text.encode(), LIMITS)


def test_audio_does_not_count_as_values(question: bytes) -> None:
    check_values('{"audio": "' + "A" * 10 * UNCHECKED_CHARACTERS + '"}', LIMITS)
    check_values("[" + "0," * 10_000 + "0]", LIMITS)  # too small to matter


@pytest.mark.parametrize(
    ("values", "param"),
    [
        (
            {"type": "conversation.item.create", "item": item(type="input_text", text="a" * 5001)},
            "item.content.0.text",
        ),
        (
            {"type": "response.create", "response": {"input": [item(type="input_text", text="a" * 5001)]}},
            "response.input.0.content.0.text",
        ),
        ({"type": "response.create", "response": {"instructions": "a" * 5001}}, "response.instructions"),
        ({"type": "session.update", "session": {"instructions": "a" * 5001}}, "session.instructions"),
    ],
)
def test_a_long_text_is_refused_with_its_path(values: dict[str, Any], param: str) -> None:
    with pytest.raises(
        ProtocolError, match=r"at most 5000 characters \(limits.text_characters\), found 5001"
    ):
        check_sizes(*event(values), LIMITS)
    try:
        check_sizes(*event(values), LIMITS)
    except ProtocolError as error:
        assert (error.param, error.code) == (param, "text_too_long")


@pytest.mark.parametrize(
    "values",
    [
        {"type": "session.update", "session": {"tools": ["a" * 100_000]}},
        {"type": "session.update", "session": {"audio": "A" * 100_000}},
        {"type": "response.create", "response": {"metadata": {"a": "a" * 100_000}}},
        {"type": "conversation.item.create", "item": {**item(type="input_text"), "arguments": "a" * 100_000}},
    ],
)
def test_fields_besides_audio_are_limited_together(values: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=r"limits.fields_bytes"):
        check_sizes(*event(values), LIMITS)


@pytest.mark.parametrize(
    "values",
    [
        {"type": "input_audio_buffer.append", "audio": "A" * 200_000},
        {"type": "conversation.item.create", "item": item(type="input_audio", audio="A" * 200_000)},
        {"type": "response.create", "response": {"input": [item(type="input_audio", audio="A" * 200_000)]}},
    ],
)
def test_audio_may_be_large(values: dict[str, Any]) -> None:
    parsed, size = event(values)
    check_sizes(parsed, size, LIMITS)
    assert size > LIMITS.fields_bytes
