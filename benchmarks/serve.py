"""Latency of the voice server as a client experiences it: real recordings, streamed in real time.

    python benchmarks/serve.py                              # one user, without and with a thought
    python benchmarks/serve.py --users 8 --turns 3
    python benchmarks/serve.py --soak 30                    # minutes, with reconnects; is memory flat?
    python benchmarks/serve.py --url ws://host:8080/v1/realtime

Without --url it starts `echat serve` as a process of its own. This is *the* way we quote latency:

first audio   from the event `speech_stopped` to the first sample of the answer, both at the client
after speech  from the last sample of speech that was sent to the first sample of the answer: this includes
              the silence after which a turn is over (server VAD, --silence milliseconds)
barge-in      from the onset of an interrupting question to `speech_started`, on which a client stops its
              playback
gaps          milliseconds in which a client that plays at once would have run dry
"""

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from measuring import RESULTS, write_numbers
from serve_user import RATE, User
from websockets.asyncio.client import connect

import echat
from echat.audio.waveform import read

EXAMPLE = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"


@asynccontextmanager
async def user(args: argparse.Namespace, think: str) -> AsyncIterator[User]:
    """A session that is ready."""
    async with connect(args.url, max_size=None, compression=None) as talk:
        one = User(talk)
        await one.until("session.created")
        detection = {"type": "server_vad", "silence_duration_ms": args.silence}
        session = {
            "type": "realtime",
            "echat": {"think": think, "seed": 0},
            "audio": {"input": {"turn_detection": detection}},
        }
        await talk.send(json.dumps({"type": "session.update", "session": session}))
        await one.until("session.updated")
        try:
            yield one
        finally:
            await one.close()


async def converse(
    args: argparse.Namespace, think: str, sounds: list[bytes], chance: random.Random
) -> dict[str, Any]:
    """The turns of one user, one session each so that every question is a first one; then an interruption."""
    turns, stops, lost = [], [], 0
    for _ in range(args.turns):
        await asyncio.sleep(chance.random())
        try:
            async with user(args, think) as one:
                await asyncio.sleep(0.3)
                turns.append(await one.turn(chance.choice(sounds)))
                await asyncio.sleep(0.2)
                stops.append(await one.interrupt(chance.choice(sounds)))
        except (RuntimeError, TimeoutError, OSError) as error:
            print(f"lost a turn: {type(error).__name__} {error}", file=sys.stderr)
            lost += 1
    return {"turns": turns, "stops": stops, "lost": lost}


async def load(args: argparse.Namespace, think: str, sounds: list[bytes]) -> dict[str, Any]:
    """All users at once; what they experienced, in milliseconds."""
    users = [converse(args, think, sounds, random.Random(number)) for number in range(args.users)]
    found = await asyncio.gather(*users)
    turns = [turn for one in found for turn in one["turns"]]
    answered = [turn for turn in turns if turn.arrivals]
    return {
        "turns": len(turns),
        "answered with sound": len(answered),
        "lost": sum(one["lost"] for one in found),
        "first text": spread([turn.first_text - turn.stopped for turn in answered if turn.first_text]),
        "first audio": spread([turn.first_audio - turn.stopped for turn in answered]),
        "after speech": spread([turn.first_audio - turn.speech_end for turn in answered]),
        "barge-in": spread([stop for one in found for stop in one["stops"]]),
        "gaps": spread([turn.gap for turn in answered]),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile, milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": round(1000 * statistics.median(ordered), 1), "p95": round(1000 * high, 1)}


# --- the server


@contextmanager
def server(args: argparse.Namespace) -> Any:
    """`echat serve` in a process of its own; its id."""
    if args.url:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = ["limits.sessions=64", "limits.sessions_per_address=64", "limits.requests_per_minute=100000"]
    start = "import sys; from echat.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", start, "serve", "--port", str(port), "-m", args.model, *limits]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)})
    args.url = f"ws://127.0.0.1:{port}/v1/realtime"
    try:
        for _ in range(600):
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


async def soak(args: argparse.Namespace, pid: int | None, sounds: list[bytes]) -> dict[str, Any]:
    """Users come and go for so many minutes; memory once a minute."""
    end, memory, lost, turns = time.monotonic() + 60 * args.soak, [], 0, 0
    args.turns, number = 1, 0
    while time.monotonic() < end:
        until = time.monotonic() + 60
        while time.monotonic() < min(until, end):
            number += 1
            chances = [random.Random(f"{number} {n}") for n in range(args.users)]
            found = await asyncio.gather(
                *(converse(args, args.think[-1], sounds, chance) for chance in chances)
            )
            lost += sum(one["lost"] for one in found)
            turns += sum(len(one["turns"]) for one in found)
        if pid is not None:
            memory.append(round(resident_mb(pid), 1))
            print(f"minute {len(memory)}: {memory[-1]} MB, {turns} turns, {lost} lost", flush=True)
    warm = memory[min(len(memory) - 1, 5)] if memory else 0.0
    growth = (memory[-1] / warm - 1) if warm else 0.0
    return {"turns": turns, "lost": lost, "resident MB": memory, "growth after warm-up": round(growth, 4)}


def speech(paths: list[Path]) -> list[bytes]:
    """Recordings as 24 kHz PCM, from the first to the last 10 ms louder than a tenth of the loudest."""
    sounds = []
    for path in paths:
        waveform, _ = read(str(path), RATE)
        samples, step = waveform.numpy(), RATE // 100
        loudness = np.sqrt((samples[: len(samples) // step * step].reshape(-1, step) ** 2).mean(1))
        loud = np.flatnonzero(loudness > 0.1 * loudness.max())
        samples = samples[loud[0] * step : (loud[-1] + 1) * step]
        sounds.append(np.round(samples * 32767).astype("<i2").tobytes())
    return sounds


def show(name: str, found: dict[str, Any]) -> None:
    print(
        f"\n{name}: {found['turns']} turns, {found['answered with sound']} with sound, {found['lost']} lost"
    )
    for key, value in found.items():
        if isinstance(value, dict) and value:
            print(f"  {key:<14}{value['median']:>9.0f} ms median {value['p95']:>9.0f} ms p95")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wavs", nargs="*", type=Path, help="questions; default: the example that ships")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--model", default="echat-tiny")
    parser.add_argument("--think", nargs="+", default=["off", "label"], choices=("off", "label", "language"))
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--turns", type=int, default=10, help="of each user")
    parser.add_argument("--silence", type=int, default=500, help="milliseconds that end a turn")
    parser.add_argument("--soak", type=float, default=0, help="minutes")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sounds = speech(args.wavs or [EXAMPLE])
    numbers: dict[str, Any] = {
        "about": {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    }
    with server(args) as pid:
        if args.soak:
            numbers["soak"] = asyncio.run(soak(args, pid, sounds))
            print(numbers["soak"])
        else:
            for think in args.think:
                began, computed = time.perf_counter(), cpu_seconds(pid) if pid else 0.0
                numbers[think] = asyncio.run(load(args, think, sounds))
                if pid:
                    share = (cpu_seconds(pid) - computed) / (time.perf_counter() - began)
                    numbers[think] |= {
                        "server CPUs used": round(share, 3),
                        "resident MB": round(resident_mb(pid), 1),
                    }
                    print(f"server: {share:.2f} CPUs, {resident_mb(pid):.0f} MB", flush=True)
                show(f"think {think}, {args.users} users", numbers[think])
    write_numbers(args.json or RESULTS / f"serve-{args.users}.json", numbers)


if __name__ == "__main__":
    main()
