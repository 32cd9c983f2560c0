"""Any JSON over HTTP is answered with what it asks for or an error of the client, never one of the server.

ECHAT_FUZZ_MESSAGES says how many requests; the default suits a test of every day.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import httpx
import pytest
from tests.serve.mutations import mutated, nested

REQUESTS = int(os.environ.get("ECHAT_FUZZ_MESSAGES", "60"))
THAT_FIT: list[tuple[str, dict[str, Any]]] = [
    (
        "/chat/completions",
        {
            "model": "gpt-4o-audio-preview",
            "messages": [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "i lost my keys"}]},
                {"role": "assistant", "content": "where?", "audio": {"id": "audio_a"}},
                {"role": "user", "content": "at home"},
            ],
            "modalities": ["text"],
            "audio": {"voice": {"id": "alloy"}, "format": "wav"},
            "max_completion_tokens": 2,
            "metadata": {"a": "b"},
            "stream_options": {"include_usage": True},
        },
    ),
    (
        "/audio/speech",
        {"model": "tts-1", "input": "", "voice": {"id": "alloy"}, "speed": 1.0, "instructions": "calm"},
    ),
    (
        "/realtime/client_secrets",
        {
            "session": {"type": "realtime", "model": "gpt-realtime", "audio": {"output": {"voice": "marin"}}},
            "expires_after": {"anchor": "created_at", "seconds": 600},
        },
    ),
]


def post(live: Any, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(live.url + path, content=json.dumps(body), headers=headers, timeout=120)


@pytest.mark.slow
def test_almost_valid_requests(live):
    chance = random.Random(0)
    codes = set()
    for _ in range(REQUESTS):
        path, body = chance.choice(THAT_FIT)
        body = mutated(body, chance)
        answer = post(live, path, body)
        codes.add(answer.status_code)
        if answer.status_code != 200:
            assert answer.status_code < 500 or answer.json()["error"]["code"] == "no_answer", (
                path,
                body,
                answer.text,
            )
            assert answer.json()["error"]["message"]
    assert codes >= {200, 400}


@pytest.mark.parametrize("voice", [5, ["alloy"], {"id": 5}, {"id": None}, {}, {"id": ["a"]}])
def test_a_voice_with_a_wrong_type_is_refused_by_name(live, voice):
    for path, body in (
        ("/audio/speech", {"input": "hi", "voice": voice}),
        ("/chat/completions", {**THAT_FIT[0][1], "audio": {"voice": voice}}),
        ("/realtime/client_secrets", {"session": {"audio": {"output": {"voice": voice}}}}),
    ):
        answer = post(live, path, body)
        assert answer.status_code == 400 and "voice" in answer.json()["error"]["param"], (path, answer.text)


@pytest.mark.parametrize("words", ["\ud800", "half \udc00 a pair"])
def test_a_lone_surrogate_is_no_server_error(live, words):
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 200}
    assert post(live, "/chat/completions", body).status_code in (200, 400)
    asked = {"session": {"instructions": words}}
    assert (
        post(live, "/realtime/client_secrets", asked).json()["session"]["instructions"].count("\ufffd") == 1
    )


def test_too_deep_nesting_is_refused(live):
    for depth in (70, 400):
        answer = post(live, "/realtime/client_secrets", {"session": {"tools": [nested(depth)]}})
        assert answer.status_code == 400 and "nested" in answer.json()["error"]["message"]
