"""Nonsense and broken connections leave the server running, other sessions unaffected, and no RAM allocated.

ECHAT_FUZZ_MESSAGES and ECHAT_FUZZ_DISCONNECTS say how many; the defaults suit a test of every day.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import gc
import json
import os
import random
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

MESSAGES = int(os.environ.get("ECHAT_FUZZ_MESSAGES", "300"))
DISCONNECTS = int(os.environ.get("ECHAT_FUZZ_DISCONNECTS", "6"))
KINDS = [
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "output_audio_buffer.clear",
    "response.create",
    "response.cancel",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "conversation.item.delete",
    "no.such.event",
]
FIELDS = ["session", "audio", "response", "item", "item_id", "content_index", "audio_end_ms", "event_id"]
WORDS = [
    "",
    "realtime",
    "audio/pcm",
    "auto",
    "none",
    "root",
    "message",
    "user",
    "input_audio",
    "inf",
    "\ud800",
    "x" * 99,
]


def anything(chance: random.Random, depth: int = 0) -> Any:
    """A random JSON value, sometimes an almost valid one."""
    pick = chance.randrange(9 if depth < 4 else 6)
    if pick == 0:
        return chance.choice([None, True, False])
    if pick == 1:
        return chance.choice([0, -1, 2**63, 10**30, 1e308, -0.5, chance.random()])
    if pick in (2, 3):
        return chance.choice(WORDS)
    if pick == 4:
        return base64.b64encode(chance.randbytes(chance.randrange(6000))).decode()
    if pick == 5:
        return "y" * chance.choice([1, 1000, 50_000])
    if pick == 6:
        return [anything(chance, depth + 1) for _ in range(chance.randrange(4))]
    names = [
        "type",
        "role",
        "content",
        "audio",
        "input",
        "output",
        "format",
        "turn_detection",
        "id",
        "text",
        "speed",
    ]
    return {chance.choice(names): anything(chance, depth + 1) for _ in range(chance.randrange(5))}


def message(chance: random.Random) -> str | bytes:
    """A frame that a hostile or broken client might send."""
    pick = chance.randrange(10)
    if pick == 0:
        return chance.randbytes(chance.randrange(2000))
    if pick == 1:
        return chance.choice(["", "{", "null", "[]", "[" * 5000, '{"type":', "\x00", '"text"', "9" * 5000])
    if pick == 2:
        return json.dumps(anything(chance))
    event = {"type": chance.choice(KINDS)}
    event |= {name: anything(chance) for name in chance.sample(FIELDS, chance.randrange(4))}
    if chance.random() < 0.3:
        event["audio"] = base64.b64encode(chance.randbytes(chance.randrange(20_000))).decode()
    return json.dumps(event)


def resident_mb() -> float:
    """Resident RAM, after the allocator has returned what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


async def answer(url: str, question: bytes) -> bytes:
    """The sound of a fixed answer to a fixed question."""
    async with connect(url, max_size=None) as connection:
        session = {"type": "realtime", "echat": {"seed": 7}, "audio": {"input": {"turn_detection": None}}}
        part = {"type": "input_audio", "audio": base64.b64encode(question).decode()}
        item = {"type": "message", "role": "user", "content": [part]}
        for event in (
            {"type": "session.update", "session": session},
            {"type": "conversation.item.create", "item": item},
            {"type": "response.create"},
        ):
            await connection.send(json.dumps(event))
        sound = b""
        while (event := json.loads(await connection.recv()))["type"] != "response.done":
            if event["type"] == "response.output_audio.delta":
                sound += base64.b64decode(event["delta"])
        return sound


async def read_all(connection: ClientConnection) -> None:
    try:
        async for _ in connection:
            pass
    except ConnectionClosed:
        pass


async def pester(url: str, chance: random.Random, count: int) -> None:
    """Send nonsense, over as many connections as it takes."""
    while count > 0:
        try:
            async with connect(url, max_size=None) as connection:
                reader = asyncio.create_task(read_all(connection))
                for _ in range(min(count, chance.randrange(20, 200))):
                    await connection.send(message(chance))
                    count -= 1
                reader.cancel()
        except (ConnectionClosed, InvalidStatus, OSError):
            count -= 1


async def hang_up(url: str, port: int, question: bytes, chance: random.Random) -> None:
    """Leave in the middle of an answer, politely or not, or in the middle of a frame."""
    connection = await connect(url, max_size=None)
    part = {"type": "input_audio", "audio": base64.b64encode(question).decode()}
    item = {"type": "message", "role": "user", "content": [part]}
    await connection.send(json.dumps({"type": "conversation.item.create", "item": item}))
    await connection.send(json.dumps({"type": "response.create"}))
    while json.loads(await connection.recv())["type"] != chance.choice(
        ["response.created", "response.output_audio.delta"]
    ):
        pass
    if chance.random() < 0.5:
        connection.transport.abort()
    else:
        await connection.close()
    half = socket.create_connection(("127.0.0.1", port))
    half.sendall(b"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n")
    half.shutdown(socket.SHUT_WR)
    half.close()


@pytest.mark.slow
def test_nonsense_and_broken_connections(serving, question):
    async def ordeal(url: str, port: int) -> tuple[bytes, list[bytes]]:
        chance = random.Random(0)
        undisturbed = await answer(url, question)
        await pester(url, random.Random(1), 50)  # warm
        before = resident_mb()
        nonsense = asyncio.create_task(pester(url, chance, MESSAGES))
        sounds = []
        for _ in range(DISCONNECTS):
            await asyncio.wait_for(hang_up(url, port, question, chance), 240)
            if len(sounds) < 3:
                sounds.append(await asyncio.wait_for(answer(url, question), 240))
        await nonsense
        sounds.append(await answer(url, question))
        print(f"resident before {before:.0f} MB, after {resident_mb():.0f} MB")
        assert resident_mb() - before < 60
        return undisturbed, sounds

    with serving(
        limits={"sessions": 32, "requests_per_minute": 100_000, "events_per_second": 10_000}
    ) as live:
        url = live.url.replace("http", "ws") + "/realtime"
        undisturbed, sounds = asyncio.run(ordeal(url, live.port))
        health = httpx.get(live.url.replace("/v1", "/healthz")).json()
        numbers = httpx.get(live.url.replace("/v1", "/metrics")).text
    assert len(undisturbed) > 24_000
    assert all(sound == undisturbed for sound in sounds)
    assert health == {"status": "ok", "sessions": 0}
    errors = [line for line in numbers.splitlines() if line.startswith("echat_errors_total{")]
    assert not errors, errors
