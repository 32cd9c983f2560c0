"""Response manager of a session: responses, speculative replies, cancellation and barge-in, the prompt
(prefix) cache."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from echat.dialogue.tasks import get_task, reply_task
from echat.dialogue.turns import Turn, UserTurn
from echat.infer.prompt_cache import PromptCache
from echat.serve.async_engine import AsyncReplyStream
from echat.serve.protocol.wire import ProtocolError
from echat.serve.realtime.conversation import BYTES_PER_MS, Entry, opening_turn, turns
from echat.serve.realtime.response import CancelReason, Response, ResponseParams
from echat.serve.realtime.session_context import SessionContext

log = logging.getLogger("echat.serve")

MAX_WAITING_ASIDES = 8  # transcriptions and prefills that one session may have waiting


@dataclass(frozen=True)
class SpeculativeResponse:
    """A speculative reply: started at an eager end of turn, before the turn is certainly over."""

    entry: Entry  # the item of the user that it answers
    stream: AsyncReplyStream


class ResponseManager:
    """The responses of one session."""

    def __init__(self, context: SessionContext) -> None:
        self.context, self.async_engine = context, context.app.async_engine
        self.config, self.items = context.config, context.items
        self.response: Response | None = None  # the newest of the default conversation
        self.has_spoken = False
        self.prompt_cache = PromptCache()
        self.speculative: SpeculativeResponse | None = None
        self.on_idle: Callable[[], None] = lambda: None  # called after `idle_timeout_ms` of silence
        self.open: dict[str, Response] = {}  # running or waiting, by id
        limits = self.config.limits
        self.lane = self.async_engine.lane(2)  # while a dropped speculative reply stops, the next one starts
        self.aside_lane = self.async_engine.aside_lane(limits.responses + MAX_WAITING_ASIDES)
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- requests to the engine

    def task(self, speaks: bool, think: str | None = None) -> str:
        """Name of the task."""
        return reply_task(think or self.context.session.options.think or self.config.think, speaks)

    def params(self, **changes: Any) -> ResponseParams:
        """Settings of a response: the session's, with changes."""
        session = self.context.session
        values: dict[str, Any] = {
            "speaks": session.speaks,
            "output": session.audio.output,
            "show_thought": session.options.show_thought,
            "max_output_tokens": session.max_output_tokens,
            "conversation_id": self.context.conversation_id,
            "instructions": session.instructions,
        }
        return ResponseParams(**{**values, **changes})

    def start_reply(
        self, history: Sequence[Turn], params: ResponseParams, is_speculative: bool = False
    ) -> AsyncReplyStream:
        """Start a reply."""
        most = self.config.limits.reply_ids
        task = self.task(params.speaks, params.think)
        if self.config.use_instructions and params.instructions:
            history = self._with_instructions(history, task, params.instructions)
        return self.async_engine.reply(
            history,
            task,
            is_speculative=is_speculative,
            max_new_ids=most if params.max_output_tokens == "inf" else min(most, params.max_output_tokens),
            voice=self.context.app.voice_for(params.output.voice) if params.speaks else None,
            seed=self.context.session.options.seed,
            prompt_cache=self.prompt_cache,
            show_thinking=params.show_thought,
            lane=self.aside_lane if params.conversation_id is None else self.lane,
        )

    def _with_instructions(self, history: Sequence[Turn], task: str, instructions: str) -> list[Turn]:
        """The history, with the client's instructions in the prompt of the question, after the task's own."""
        question = history[-1]
        assert isinstance(question, UserTurn)
        own = get_task(task).prompt_for(self.async_engine.engine.profile)
        prompt = "\n".join(part for part in (own, instructions) if part)
        return [*history[:-1], replace(question, prompt=prompt)]

    # --- speculative replies

    def start_speculative(self, entry: Entry) -> None:
        """Start a reply to the audio so far, if none is running."""
        self.drop_speculative()
        if not self.is_busy and self.config.guess_replies:
            self.speculative = SpeculativeResponse(
                entry, self.start_reply(self.items.turns(entry), self.params(), is_speculative=True)
            )

    def take_speculative(self) -> SpeculativeResponse | None:
        """The turn is over: hand over the speculative reply, if there is one."""
        speculative, self.speculative = self.speculative, None
        if speculative is not None:
            self.context.metrics.speculative_responses.labels("true").inc()
        return speculative

    def drop_speculative(self) -> None:
        """The user goes on: cancel the speculative reply."""
        if self.speculative is not None:
            self.speculative.stream.cancel()
            self.speculative = None
            self.context.metrics.speculative_responses.labels("dropped").inc()

    # --- responses

    @property
    def is_busy(self) -> bool:
        """Is a response of the default conversation running?"""
        return self.response is not None and self.response.is_running

    @property
    def is_playing(self) -> bool:
        """Is an answer running, or probably still being played?"""
        if self.response is None:
            return False
        return self.response.is_running or time.monotonic() < self.response.plays_until

    def create(self, params: ResponseParams, entries: list[Entry] | None = None) -> None:
        """Answer the conversation, or other entries; where there is no new turn of the user, answer an
        opening turn."""
        if len(self.open) >= self.config.limits.responses:
            raise ProtocolError(
                f"response.create: expected at most {self.config.limits.responses} responses under way "
                "(limits.responses), found one more; wait for response.done or cancel one",
                "too_many_responses",
            )
        entries = self.items.entries if entries is None else entries
        history, first = turns(entries, self.items.with_speech), None
        if not history or not isinstance(history[-1], UserTurn):
            first = opening_turn(entries, params.opening)
            history = [*history, first]
            if params.opening:  # the instructions are in the opening turn already
                params = replace(params, instructions=self.context.session.instructions)
        self.drop_speculative()
        self.respond(params, self.start_reply(history, params), first)

    def respond(
        self, params: ResponseParams, stream: AsyncReplyStream, first: UserTurn | None = None
    ) -> None:
        """Send a reply to the client, in the background; `first` is an opening turn that it answers."""
        is_default = params.conversation_id is not None
        response = Response(params, stream, self.context.emit, self.items.last_id if is_default else None)
        response.entry.turn = first
        if is_default:
            self.response = response
            self.items.add(response.entry)
        stream.release()
        self.open[response.id] = response
        self.run_in_background(self._run(response))

    def respond_in_turn(self) -> None:
        """Answer now, or after the answer that is running."""

        async def wait_and_answer() -> None:
            await self.finish()
            self.create(self.params())

        if self.is_busy:
            self.run_in_background(wait_and_answer())
        else:
            self.create(self.params())

    async def _run(self, response: Response) -> None:
        try:
            await response.run()
        finally:
            self.open.pop(response.id, None)
        self._count(response)
        reply = response.reply
        if response.params.conversation_id is None:
            return
        self.context.record(response.entry)
        if reply is not None and reply.prompt_cache is not None:
            self.set_prompt_cache(reply.prompt_cache)
        if response is self.response and not response.cancelled:
            self._schedule_idle_timeout(response)
            await self.prefill(self.items.turns())

    def _schedule_idle_timeout(self, response: Response) -> None:
        """Schedule `on_idle` for a too long silence after the answer, if the session has
        `idle_timeout_ms`."""
        detection = self.context.session.audio.input.turn_detection
        if detection is None or detection.idle_timeout_ms is None:
            return
        wait = max(0.0, response.plays_until - time.monotonic()) + detection.idle_timeout_ms / 1000

        async def idle() -> None:
            await asyncio.sleep(wait)
            if self.response is response:
                self.on_idle()

        self.run_in_background(idle())

    def _count(self, response: Response) -> None:
        timing, metrics = response.timing, self.context.metrics
        metrics.responses.labels(response.status).inc()
        metrics.audio_dropped.inc(response.dropped_ms / 1000)
        if timing.first_audio is not None:
            self.has_spoken = True
            metrics.first_audio.observe(timing.first_audio - timing.began)
            metrics.audio_out.inc(response.generated.audio_ms / 1000)

    def interrupt(self) -> None:
        """Barge-in: stop the answer, remove its unsent audio from the send queue, and truncate it in the
        history to what was played."""
        response = self.response
        if not self.cancel("turn_detected"):
            return
        assert response is not None
        generated = response.generated
        sent_ms = max(0, generated.audio_ms - self.context.send_queue.take_back(response.id))
        generated.played_ms = min(response.played_ms(time.monotonic()), sent_ms)
        del generated.pcm[sent_ms * BYTES_PER_MS :]

    def cancel(self, reason: CancelReason, response_id: str | None = None) -> bool:
        """Stop a response, also one that waits, or that of the conversation; False if none is running."""
        response = self.response if response_id is None else self.open.get(response_id)
        if response is None or not response.is_running:
            return False
        response.cancel(reason)
        return True

    # --- prompt cache

    def set_prompt_cache(self, prompt_cache: PromptCache) -> None:
        """Keep a prompt cache, if its size is within the limit of a session."""
        is_allowed = prompt_cache.n_bytes <= self.config.limits.memory_bytes
        self.prompt_cache = prompt_cache if is_allowed else PromptCache()

    async def prefill(self, history: Sequence[Turn]) -> None:
        """Prefill the known part of the next prompt in the background."""
        if history:
            task, lane = self.task(self.context.session.speaks), self.aside_lane
            self.set_prompt_cache(await self.async_engine.prefill(history, task, self.prompt_cache, lane))

    # --- background tasks

    def run_in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine, at the longest until the session ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ProtocolError):
            self.context.refuse(error)
        elif error is not None:
            self.context.metrics.errors.labels("background").inc()
            log.error("a background task of a session failed", exc_info=error)

    async def finish(self) -> None:
        """Wait for the end of the running response."""
        while self.is_busy:
            assert self.response is not None
            await self.response.ended.wait()

    async def finish_all(self) -> None:
        """Wait for the end of every response, out-of-band ones included."""
        while self.open:
            await next(iter(self.open.values())).ended.wait()

    async def close(self) -> None:
        """Cancel everything."""
        self.drop_speculative()
        for response in self.open.values():
            response.cancel("closing")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.open.clear()  # also those cancelled before they started
        self.prompt_cache = PromptCache()
