"""What the voice server makes of odd questions, over a socket and in real time.

    flite -t no -o no.wav
    python -m benchmarks.serving.unusual_input corpus/test/manifest.jsonl --word no.wav --music song.ogg
    python -m benchmarks.serving.unusual_input corpus/test/manifest.jsonl --only "60 s" "two in a row"
    python -m benchmarks.serving.unusual_input --url wss://host:8443/v1/realtime ...

A question of 60 s and one of 5 min (recordings 0.2 s apart), a single short word, three minutes of silence, a
minute of music, and two questions in a row, the second while the first is thought about.
For each: the turns that the server made of it, and what came back. docs/serving.md says what should.
"""

import argparse
import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measuring import RESULTS, write_numbers
from benchmarks.serving.client import RATE, User, session
from benchmarks.serving.latency import EXAMPLE, server
from benchmarks.serving.questions import Question, questions
from benchmarks.serving.soak import resident_mb

from echat.audio.waveform import read

PAUSE = bytes(2 * (RATE // 5))  # 0.2 s, less than what ends a turn
AFTERWARDS = 4.0  # seconds in which nothing more must come


@dataclass
class Seen:
    """What came back."""

    turns: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # of sound
    first_audio: float | None = None  # seconds after the end of the last turn
    words: int = 0  # in the transcripts of the user

    def __str__(self) -> str:
        after = "" if self.first_audio is None else f", first sound {1000 * self.first_audio:.0f} ms after it"
        answers = ", ".join(f"{count} {status}" for status, count in self.statuses.items()) or "no answer"
        return f"{self.turns} turns of {self.words} words; {answers}; {self.seconds:.1f} s of sound{after}"


def joined(asked: list[Question], seconds: float) -> bytes:
    """One long question."""
    pcm = b""
    while len(pcm) < 2 * RATE * seconds:
        pcm += asked[len(pcm) % len(asked)].pcm + PAUSE
    return pcm[: int(2 * RATE * seconds)]


async def watch(user: User, seen: Seen, said: asyncio.Event) -> None:
    """Until all is said and answered, and nothing has come for a while."""
    stopped, open_answers = time.perf_counter(), 0
    while True:
        try:
            async with asyncio.timeout(120 if open_answers else AFTERWARDS):
                came, event = await user.events.get()
        except TimeoutError:
            if said.is_set():
                return
            continue
        kind = event["type"]
        if kind in ("error", "closed"):
            raise RuntimeError(str(event))
        if kind == "input_audio_buffer.speech_stopped":
            seen.turns, stopped, seen.first_audio = seen.turns + 1, came, None
        elif kind == "response.created":
            open_answers += 1
        elif kind == "response.output_audio.delta":
            seen.first_audio = seen.first_audio if seen.first_audio is not None else came - stopped
            seen.seconds += len(event["delta"]) * 3 / 4 / 2 / RATE
        elif kind == "response.done":
            open_answers -= 1
            seen.statuses[event["response"]["status"]] += 1
        elif kind == "conversation.item.input_audio_transcription.completed":
            seen.words += len(event["transcript"].split())


async def ask(url: str, sounds: list[bytes], apart: float = 0.0) -> Seen:
    """Say the sounds, so many seconds apart; what comes back while they are said and afterwards."""
    seen, said = Seen(), asyncio.Event()
    async with session(url, "label", transcribes=True) as user:
        watching = asyncio.create_task(watch(user, seen, said))
        for sound in sounds:
            user.say(Question(sound, 0.0))
            await user.spoken.wait()
            await asyncio.sleep(apart)
        said.set()
        await watching
    return seen


def pcm_of(path: Path) -> bytes:
    """At most a minute of a recording."""
    samples = read(str(path), RATE, end_seconds=60.0)[0].numpy()
    return bytes(np.round(0.9 * samples / np.abs(samples).max() * 32767).astype("<i2").tobytes())


def oddities(args: argparse.Namespace) -> dict[str, tuple[list[bytes], float]]:
    asked = questions(args.wavs or [EXAMPLE])
    found: dict[str, tuple[list[bytes], float]] = {
        "two in a row": ([asked[0].pcm, asked[-1].pcm], 0.75),
        "60 s": ([joined(asked, 60.0)], 0.0),
        "3 min of silence": ([bytes(2 * RATE * 180)], 0.0),
        "5 min": ([joined(asked, 300.0)], 0.0),
    }
    if args.word:
        found["a short word"] = ([pcm_of(args.word)], 0.0)
    if args.music:
        found["music"] = ([pcm_of(args.music)], 0.0)
    return {name: found[name] for name in args.only or found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wavs", nargs="*", type=Path, help="or manifests; default: the example that ships")
    parser.add_argument("--word", type=Path, help="recording of a short word")
    parser.add_argument("--music", type=Path)
    parser.add_argument("--only", nargs="+", help="of the oddities, by their names")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--model", default="echat-tiny")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    args = parser.parse_args()
    numbers: dict[str, Any] = {}
    with server(args) as pid:
        for name, (sounds, apart) in oddities(args).items():
            seen = asyncio.run(ask(args.url, sounds, apart))
            memory = f"; server {resident_mb(pid):.0f} MB" if pid else ""
            print(f"{name}: {seen}{memory}", flush=True)
            numbers[name] = str(seen)
    write_numbers(RESULTS / "serve-odd.json", numbers)


if __name__ == "__main__":
    main()
