"""A soak test: users who ask, interrupt, leave in the middle of a word or of an answer, and come back."""

import asyncio
import os
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.serving.client import User, session
from benchmarks.serving.questions import Question

SAMPLE_SECONDS = 10.0  # between two looks at the memory
WARM_UP_SECONDS = 300.0  # at most, and at most a third of it all: caches fill, threads start


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


async def visit(one: User, questions: list[Question], chance: random.Random) -> str:
    """A few turns; how it ended."""
    for _ in range(chance.randint(1, 3)):
        asked, fate = chance.choice(questions), chance.random()
        if fate < 0.2:
            one.say(asked)
            await asyncio.sleep(chance.uniform(0.1, 2.0))
            one.hang_up()
            return "left in a question"
        if fate < 0.4:
            one.say(asked)
            await one.until("input_audio_buffer.speech_stopped")
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            one.hang_up()
            return "left in an answer"
        await one.turn(asked)
        if fate < 0.6:
            await one.interrupt(chance.choice(questions))
    return "said goodbye"


async def come_and_go(
    url: str, think: str, questions: list[Question], chance: random.Random, end: float
) -> Counter[str]:
    """One user until the end; how the visits ended."""
    ends: Counter[str] = Counter()
    while time.monotonic() < end:
        try:
            async with session(url, think) as one:
                ends[await visit(one, questions, chance)] += 1
        except (RuntimeError, TimeoutError, OSError) as error:
            print(f"lost: {type(error).__name__} {error}", file=sys.stderr)
            ends["lost"] += 1
        await asyncio.sleep(chance.uniform(0.0, 2.0))
    return ends


async def watch(pid: int, end: float) -> list[float]:
    """The memory of the server, MB, every 10 s."""
    memory = []
    while time.monotonic() < end:
        await asyncio.sleep(SAMPLE_SECONDS)
        memory.append(round(resident_mb(pid), 1))
        print(f"{len(memory) * SAMPLE_SECONDS:5.0f} s {memory[-1]:9.1f} MB", flush=True)
    return memory


def growth_percent(memory: list[float]) -> float:
    """From the first minute after the warm-up to the last one."""
    warm = memory[int(min(WARM_UP_SECONDS / SAMPLE_SECONDS, len(memory) / 3)) :]
    minute = min(int(60 / SAMPLE_SECONDS), max(1, len(warm) // 2))
    return 100 * (statistics.mean(warm[-minute:]) / statistics.mean(warm[:minute]) - 1)


async def soak(
    url: str, pid: int | None, think: str, questions: list[Question], users: int, minutes: float
) -> dict[str, Any]:
    """So many users for so many minutes; what became of their visits, and of the memory."""
    end = time.monotonic() + 60 * minutes
    visits = [come_and_go(url, think, questions, random.Random(f"soak {user}"), end) for user in range(users)]
    watching = asyncio.create_task(watch(pid, end)) if pid is not None else None
    ends = sum(await asyncio.gather(*visits), Counter())
    found: dict[str, Any] = {"visits": dict(ends)}
    if watching is not None and (memory := await watching):
        found |= {"resident MB": memory, "growth after warm-up, %": round(growth_percent(memory), 2)}
    return found
