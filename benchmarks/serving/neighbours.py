"""What one client can do to another: time to the first sound of a session while a neighbour misbehaves.

    python -m benchmarks.serving.neighbours
    python -m benchmarks.serving.neighbours --only "300 responses" "slow bodies"

One user asks the same typed question again and again, with a seed: for each kind of neighbour first alone,
then beside somebody who sends what is sent below. Printed are the median time to the first sound in parts of
that alone (near 1 is good; client and neighbour compute on the same machine as the server), whether the sound
is the same to the last bit, the slowest answer of /healthz, and the memory of the server.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from benchmarks.measuring import RESULTS, write_numbers
from benchmarks.serving.latency import server
from benchmarks.serving.soak import resident_mb
from websockets.asyncio.client import connect

QUESTION = "i passed my exam today and i am so happy"
WORDS = "how are you doing today my friend "


async def ask(url: str) -> tuple[float, str]:
    """Seconds to the first sound, and the hash of the answer."""
    async with connect(url, max_size=None, compression=None) as websocket:
        await websocket.recv()
        await websocket.send(event("session.update", session={"type": "realtime", "echat": {"seed": 0}}))
        await websocket.send(event("conversation.item.create", item=typed(QUESTION)))
        began, first, sound = time.perf_counter(), None, hashlib.sha256()
        await websocket.send(event("response.create"))
        while True:
            received = json.loads(await asyncio.wait_for(websocket.recv(), 150))
            if received["type"] == "response.output_audio.delta":
                first = first or time.perf_counter() - began
                sound.update(base64.b64decode(received["delta"]))
            elif received["type"] == "response.done":
                assert first is not None, received
                return first, sound.hexdigest()[:12]


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def typed(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


# --- neighbours, each until it is cancelled


async def chats(url: str, n_characters: int) -> None:
    """Ask chat completions with a text of so many characters."""
    text = (WORDS * (n_characters // len(WORDS) + 1))[:n_characters]
    body = {"messages": [{"role": "user", "content": text}]}
    async with httpx.AsyncClient(timeout=150) as client:
        while True:
            await client.post(url.replace("ws", "http").replace("/realtime", "/chat/completions"), json=body)
            await asyncio.sleep(0.1)  # 600 a minute are allowed


async def sends(url: str, messages: Callable[[], list[str]], pause: float = 0.05) -> None:
    """Send messages over one session, reading what comes back; again when it is closed."""
    while True:
        with contextlib.suppress(Exception):
            async with connect(url, max_size=None, compression=None) as websocket:
                reading = asyncio.create_task(read_all(websocket))
                while not reading.done():
                    for message in messages():
                        await websocket.send(message)
                    await asyncio.sleep(pause)


async def read_all(websocket: Any) -> None:
    async for _ in websocket:
        pass


async def holds(url: str, head: bytes, count: int) -> None:
    """Open so many connections and send the first bytes of a request; again when they are closed."""
    host, _, port = url.split("/")[2].partition(":")
    held: list[socket.socket] = []
    try:
        while True:
            while len(held) < count:
                one = socket.create_connection((host, int(port)), timeout=5)
                one.setblocking(False)
                with contextlib.suppress(OSError):
                    one.send(head)
                held.append(one)
                if len(held) % 20 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0.5)
            open_ones = [one for one in held if is_open(one)]
            for one in set(held) - set(open_ones):
                one.close()
            held = open_ones
    finally:
        for one in held:
            one.close()


def is_open(one: socket.socket) -> bool:
    try:
        return one.recv(65536) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def aside(url: str) -> Awaitable[None]:
    create = event("response.create", response={"conversation": "none"})
    asked = [event("conversation.item.create", item=typed(QUESTION))] + 300 * [create]
    return sends(url, lambda: asked, 30.0)


NEIGHBOURS: dict[str, Callable[[str], Awaitable[None]]] = {
    "nobody again": lambda url: asyncio.sleep(3600),
    "one like it": lambda url: again(url),
    "200 KB typed": lambda url: chats(url, 200_000),
    "10 KB typed": lambda url: chats(url, 10_000),
    "8 MiB typed": lambda url: sends(
        url,
        lambda: [event("conversation.item.create", item=typed(WORDS * 250_000)), event("response.create")],
        0.5,
    ),
    "15 MiB of []": lambda url: sends(
        url, lambda: ['{"type":"session.update","session":{"x":[' + "[]," * 5_000_000 + "[]]}}"], 0.5
    ),
    "300 responses": aside,
    "half-open": lambda url: holds(url, b"GET /healthz HTTP/1.1\r\nHo", 600),
    "slow bodies": lambda url: holds(
        url,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{",
        256,
    ),
}


async def again(url: str) -> None:
    while True:
        await ask(url)


async def health(url: str, slowest: list[float]) -> None:
    """Ask /healthz every quarter of a second, from a thread; infinite where it did not answer."""
    address = url.replace("ws", "http").replace("/v1/realtime", "/healthz")
    while True:
        slowest.append(await asyncio.to_thread(health_seconds, address))
        await asyncio.sleep(0.25)


def health_seconds(address: str) -> float:
    began = time.perf_counter()
    try:
        httpx.get(address, timeout=30).raise_for_status()
    except httpx.HTTPError:
        return float("inf")
    return time.perf_counter() - began


async def beside(url: str, neighbour: Awaitable[None], times: int, pid: int | None) -> dict[str, Any]:
    """The user's experience while a neighbour does what it does."""
    seconds: list[float] = [0.0]
    tasks = [asyncio.ensure_future(neighbour), asyncio.ensure_future(health(url, seconds))]
    await asyncio.sleep(2.0)
    try:
        found = [await ask(url) for _ in range(times)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    memory = {} if pid is None else {"server MB": round(resident_mb(pid))}
    return {
        "first sound, s": round(statistics.median(first for first, _ in found), 3),
        "slowest, s": round(max(first for first, _ in found), 3),
        "sounds": sorted({sound for _, sound in found}),
        "slowest /healthz, s": round(max(seconds), 3),
        **memory,
    }


async def measure(args: argparse.Namespace, pid: int | None) -> dict[str, Any]:
    for _ in range(2):
        await ask(args.url)  # warm
    numbers: dict[str, Any] = {}
    for name in args.only or NEIGHBOURS:
        alone = await beside(args.url, asyncio.sleep(3600), args.times, pid)
        found = await beside(args.url, NEIGHBOURS[name](args.url), args.times, pid)
        found["alone, s"] = alone["first sound, s"]
        found["times as long"] = round(found["first sound, s"] / alone["first sound, s"], 2)
        found["same sound"] = found.pop("sounds") == alone["sounds"]
        numbers[name] = found
        print(f"{name}: {found}", flush=True)
        await asyncio.sleep(1.0)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(NEIGHBOURS))
    parser.add_argument("--times", type=int, default=5, help="that the user asks")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--model", default="echat-tiny")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    args = parser.parse_args()
    with server(args) as pid:
        numbers = asyncio.run(measure(args, pid))
    write_numbers(RESULTS / "serve-neighbours.json", numbers)


if __name__ == "__main__":
    main()
