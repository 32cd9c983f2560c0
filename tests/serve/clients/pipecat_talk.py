"""A conversation through Pipecat's realtime service, with its defaults: it greets, then answers a spoken
question.

    python pipecat_talk.py ws://127.0.0.1:8080/v1/realtime question.pcm

Prints what was experienced as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    InputAudioRawFrame,
    LLMFullResponseEndFrame,
    LLMRunFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from sounds import frames


class ReplyCollector(FrameProcessor):
    """Collects replies, and lets everything pass."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.errors: list[str] = []
        self.text, self.seconds = "", 0.0

    async def process_frame(self, frame: Any, direction: Any) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSTextFrame):
            self.text += frame.text
        elif isinstance(frame, TTSAudioRawFrame):
            self.seconds += len(frame.audio) / 2 / frame.sample_rate
        elif isinstance(frame, ErrorFrame):
            self.errors.append(str(frame.error))
        elif isinstance(frame, LLMFullResponseEndFrame):
            self.replies.put_nowait({"text": self.text, "seconds": self.seconds})
            self.text, self.seconds = "", 0.0
        await self.push_frame(frame, direction)


async def main(url: str, question: str) -> None:
    service = OpenAIRealtimeLLMService(api_key="any", base_url=url)
    context = LLMContext([])
    pair = LLMContextAggregatorPair(context)
    before, after = ReplyCollector(), ReplyCollector()
    pipeline = Pipeline([before, pair.user(), service, after, pair.assistant()])
    params = PipelineParams(audio_in_sample_rate=24_000, audio_out_sample_rate=24_000)
    task = PipelineTask(pipeline, params=params)
    received = {}

    async def dialogue() -> None:
        await task.queue_frames([LLMRunFrame()])
        received["greeting"] = await after.replies.get()
        for frame in frames(question):
            await task.queue_frames([InputAudioRawFrame(audio=frame, sample_rate=24_000, num_channels=1)])
            await asyncio.sleep(0.001)
        received["answer"] = await after.replies.get()
        await task.queue_frames([EndFrame()])

    await asyncio.gather(PipelineRunner(handle_sigint=False).run(task), dialogue())
    roles = [message["role"] for message in context.get_messages()]
    print(json.dumps({**received, "errors": before.errors + after.errors, "roles": roles}))


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 150))
