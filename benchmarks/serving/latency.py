"""Latency of the voice server as a client experiences it: real recordings, streamed in real time.

    python -m benchmarks.serving.latency                       # one user, without and with a thought
    python -m benchmarks.serving.latency corpus/test/manifest.jsonl --users 8 --turns 3
    python -m benchmarks.serving.latency --soak 30             # minutes, with reconnects; is memory flat?
    python -m benchmarks.serving.latency --url ws://host:8080/v1/realtime

Without --url it starts `echat serve` as a process of its own. This is *the* way we quote latency:

first audio   from the event `speech_stopped` to the first sample of the answer, both at the client
after speech  from the last sample of speech that was sent to the first sample of the answer: this includes
              the silence after which a turn is over (server VAD, --silence milliseconds)
pause         from the onset of speech that interrupts to `speech_suspected`, on which clients that ask for
              `pause` (our page and terminal) are silent
barge-in      from the same onset to `speech_started`, on which every client stops its playback
gaps          milliseconds in which a client that plays at once would have run dry

The onset of speech is found by its energy (`serving/questions.py`), so give clean recordings. It counts from
when it reaches the microphone: a client sends 20 ms at once, when they are over.
"""

import argparse
import asyncio
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from benchmarks.measuring import RESULTS, write_numbers
from benchmarks.serving.client import session
from benchmarks.serving.questions import Question, questions
from benchmarks.serving.soak import resident_mb, soak

import echat

EXAMPLE = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"


async def converse(
    args: argparse.Namespace, think: str, asked: list[Question], chance: random.Random
) -> dict[str, Any]:
    """The turns of one user, one session each so that every question is a first one; then an interruption."""
    turns, stops, lost = [], [], 0
    for _ in range(args.turns):
        await asyncio.sleep(chance.random())
        try:
            async with session(args.url, think, args.silence) as one:
                await asyncio.sleep(0.3)
                turns.append(await one.turn(chance.choice(asked)))
                await asyncio.sleep(0.2)
                stops.append(await one.interrupt(chance.choice(asked)))
        except (RuntimeError, TimeoutError, OSError) as error:
            print(f"lost a turn: {type(error).__name__} {error}", file=sys.stderr)
            lost += 1
    return {"turns": turns, "stops": stops, "lost": lost}


async def load(args: argparse.Namespace, think: str, asked: list[Question]) -> dict[str, Any]:
    """All users at once; what they experienced, in milliseconds."""
    users = [converse(args, think, asked, random.Random(number)) for number in range(args.users)]
    found = await asyncio.gather(*users)
    turns = [turn for one in found for turn in one["turns"]]
    stops = [stop for one in found for stop in one["stops"] if stop is not None]
    answered = [turn for turn in turns if turn.arrivals]
    return {
        "turns": len(turns),
        "answered with sound": len(answered),
        "lost": sum(one["lost"] for one in found),
        "first text": spread([turn.first_text - turn.stopped for turn in answered if turn.first_text]),
        "first audio": spread([turn.first_audio - turn.stopped for turn in answered]),
        "after speech": spread([turn.first_audio - turn.speech_end for turn in answered]),
        "interruptions": len(stops),
        "pause": spread([stop.paused for stop in stops]),
        "barge-in": spread([stop.stopped for stop in stops]),
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


def cpu_seconds(pid: int) -> float:
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def show(name: str, found: dict[str, Any]) -> None:
    print(
        f"\n{name}: {found['turns']} turns, {found['answered with sound']} with sound, {found['lost']} lost"
    )
    for key, value in found.items():
        if isinstance(value, dict) and value:
            print(f"  {key:<14}{value['median']:>9.0f} ms median {value['p95']:>9.0f} ms p95")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wavs", nargs="*", type=Path, help="or manifests; default: the example that ships")
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
    asked = questions(args.wavs or [EXAMPLE])
    numbers: dict[str, Any] = {
        "about": {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    }
    with server(args) as pid:
        if args.soak:
            soaking = soak(args.url, pid, args.think[-1], asked, args.users, args.soak)
            numbers["soak"] = asyncio.run(soaking)
            print(numbers["soak"])
        else:
            for think in args.think:
                began, computed = time.perf_counter(), cpu_seconds(pid) if pid else 0.0
                numbers[think] = asyncio.run(load(args, think, asked))
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
