"""A conversation through LiveKit's realtime plugin, with its defaults: a greeting, a spoken question, new
instructions and tools, a typed question, an interruption.

    python livekit_talk.py http://127.0.0.1:8080/v1 question.pcm

Prints what was experienced as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from livekit import rtc
from livekit.agents import llm
from livekit.plugins import openai
from sounds import frames


@llm.function_tool
async def get_weather(city: str) -> str:
    """The weather of a city."""
    return "sun"


async def spoken(generation: Any) -> dict[str, Any]:
    """The words of a reply and the seconds of its sound."""
    text, seconds = "", 0.0

    async def read(message: Any) -> None:
        nonlocal text
        async for piece in message.text_stream:
            text += str(piece)

    async for message in generation.message_stream:
        reading = asyncio.create_task(read(message))
        async for frame in message.audio_stream:
            seconds += frame.samples_per_channel / frame.sample_rate
        await reading
    return {"text": text, "seconds": seconds}


async def interrupted(session: Any) -> float:
    """Stop a reply after its first half second; seconds that came."""
    generation = await session.generate_reply()
    message = await anext(aiter(generation.message_stream))
    seconds = 0.0
    async for frame in message.audio_stream:
        seconds += frame.samples_per_channel / frame.sample_rate
        if seconds > 0.5:
            break
    session.interrupt()
    session.truncate(
        message_id=message.message_id, modalities=["audio", "text"], audio_end_ms=400, audio_transcript="x"
    )
    return seconds


async def main(url: str, question: str) -> None:
    errors: list[str] = []
    words: list[str] = []
    answers: asyncio.Queue[Any] = asyncio.Queue()
    session = openai.realtime.RealtimeModel(base_url=url, api_key="any").session()
    session.on("error", lambda event: errors.append(str(event)))
    session.on("input_audio_transcription_completed", lambda event: words.append(event.transcript))
    session.on("generation_created", lambda event: event.user_initiated or answers.put_nowait(event))
    await session.update_instructions("You are kind.")
    await session.update_tools([get_weather])
    received = {"greeting": await spoken(await session.generate_reply(instructions="Greet the user"))}
    for frame in frames(question):
        session.push_audio(
            rtc.AudioFrame(data=frame, sample_rate=24_000, num_channels=1, samples_per_channel=480)
        )
        await asyncio.sleep(0.001)
    received["answer"] = await spoken(await answers.get())
    context = session.chat_ctx.copy()
    context.add_message(role="user", content="i lost my keys")
    await session.update_chat_ctx(context)
    received["typed"] = await spoken(await session.generate_reply(instructions="be brief"))
    received["interrupted"] = {"text": "", "seconds": await interrupted(session)}
    roles = [item.role for item in session.chat_ctx.items if item.type == "message"]
    await session.aclose()
    print(json.dumps({**received, "errors": errors, "words": words, "roles": roles}))


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 150))
