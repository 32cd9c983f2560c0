"""The assistant's side of a session: responses, replies begun on trial, and what the model remembers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from echat.dialogue.tasks import get_task
from echat.dialogue.turns import Turn, UserTurn
from echat.infer.memory import Memory
from echat.serve.items import BYTES_PER_MS, Entry, opening, turns
from echat.serve.protocol.wire import ProtocolError
from echat.serve.replies import ReplyStream
from echat.serve.response import CancelReason, Response, ResponsePlan
from echat.serve.state import House, Talk

log = logging.getLogger("echat.serve")

MOST_NOTES = 8  # transcripts and reading ahead that one session may have waiting

FOREIGN_VOICES = frozenset(
    {"alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"}
    | {"marin", "nova", "onyx", "sage", "shimmer", "verse"}
)  # names of the public protocol: the model's own voice speaks for them


@dataclass(frozen=True)
class Guess:
    """A reply begun before it was sure that the turn is over."""

    entry: Entry  # the user's item as it will be
    stream: ReplyStream


def voice_name(house: House, name: str | None, where: str = "voice") -> str | None:
    """The voice of the model that a name asks for; an unknown one is refused, as the field `where`."""
    token2wav = house.desk.engine.token2wav
    if name is None or name in FOREIGN_VOICES or token2wav is None:
        return house.config.voice
    if name not in token2wav.voices:
        known = ", ".join(token2wav.voices)
        raise ProtocolError(f"{where}: expected one of {known}, found {name[:80]!r}", param=where)
    return name


class Answering:
    """Local to one session."""

    def __init__(self, talk: Talk) -> None:
        self.talk, self.desk, self.config, self.items = talk, talk.house.desk, talk.config, talk.items
        self.response: Response | None = None  # the newest of the default conversation
        self.has_spoken = False
        self.memory = Memory()
        self.guess: Guess | None = None
        self.on_idle: Callable[[], None] = lambda: None  # nobody said anything after an answer
        self.open: dict[str, Response] = {}  # all that are under way or waiting, by id
        limits = self.config.limits
        self.lane = self.desk.lane(2)  # a reply on trial that is dropped may still be stopping
        self.aside_lane = self.desk.aside_lane(limits.responses + MOST_NOTES)
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- what is asked of the engine

    def task(self, speaks: bool, think: str | None = None) -> str:
        """The row of the task table."""
        thinks = think or self.talk.session.options.think or self.config.think
        return ("s2s" if speaks else "s2t") + ("" if thinks == "off" else f"_think_{thinks}")

    def voice(self, name: str | None, where: str = "voice") -> str | None:
        """The voice of the model that a name asks for."""
        return voice_name(self.talk.house, name, where)

    def plan(self, **changes: Any) -> ResponsePlan:
        """A response as the session wants it."""
        session = self.talk.session
        values: dict[str, Any] = {
            "speaks": session.speaks,
            "output": session.audio.output,
            "show_thought": session.options.show_thought,
            "max_output_tokens": session.max_output_tokens,
            "conversation_id": self.talk.conversation_id,
            "instructions": session.instructions,
        }
        return ResponsePlan(**{**values, **changes})

    def ask(self, asked: Sequence[Turn], plan: ResponsePlan, held: bool = False) -> ReplyStream:
        """Begin a reply."""
        most = self.config.limits.reply_ids
        task = self.task(plan.speaks, plan.think)
        if self.config.use_instructions and plan.instructions:
            asked = self._instructed(asked, task, plan.instructions)
        return self.desk.reply(
            asked,
            task,
            held=held,
            max_new_ids=most if plan.max_output_tokens == "inf" else min(most, plan.max_output_tokens),
            voice=self.voice(plan.output.voice) if plan.speaks else None,
            seed=self.talk.session.options.seed,
            memory=self.memory,
            show_thinking=plan.show_thought,
            lane=self.aside_lane if plan.conversation_id is None else self.lane,
        )

    def _instructed(self, asked: Sequence[Turn], task: str, instructions: str) -> list[Turn]:
        """The question with the client's instructions before its sound, after the task's own."""
        question = asked[-1]
        assert isinstance(question, UserTurn)
        own = get_task(task).prompt_for(self.desk.engine.profile)
        prompt = "\n".join(part for part in (own, instructions) if part)
        return [*asked[:-1], replace(question, prompt=prompt)]

    # --- replies on trial

    def begin_guess(self, entry: Entry) -> None:
        """Work on the answer to what was said so far."""
        self.drop_guess()
        if not self.is_busy and self.config.guess_replies:
            self.guess = Guess(entry, self.ask(self.items.turns(entry), self.plan(), held=True))

    def take_guess(self) -> Guess | None:
        """The guess came true."""
        guess, self.guess = self.guess, None
        if guess is not None:
            self.talk.metrics.guesses.labels("true").inc()
        return guess

    def drop_guess(self) -> None:
        """It did not."""
        if self.guess is not None:
            self.guess.stream.cancel()
            self.guess = None
            self.talk.metrics.guesses.labels("dropped").inc()

    # --- responses

    @property
    def is_busy(self) -> bool:
        """Is a response of the default conversation under way?"""
        return self.response is not None and self.response.is_running

    @property
    def is_sounding(self) -> bool:
        """Is an answer under way, or probably still being played?"""
        if self.response is None:
            return False
        return self.response.is_running or time.monotonic() < self.response.plays_until

    def create(self, plan: ResponsePlan, entries: list[Entry] | None = None) -> None:
        """Answer the conversation, or other entries; where the user has said nothing new, speak first."""
        if len(self.open) >= self.config.limits.responses:
            raise ProtocolError(
                f"response.create: expected at most {self.config.limits.responses} responses under way "
                "(limits.responses), found one more; wait for response.done or cancel one",
                "too_many_responses",
            )
        entries = self.items.entries if entries is None else entries
        asked, first = turns(entries, self.items.with_speech), None
        if not asked or not isinstance(asked[-1], UserTurn):
            first = opening(entries, plan.opening)
            asked = [*asked, first]
            if plan.opening:  # it is said once
                plan = replace(plan, instructions=self.talk.session.instructions)
        self.drop_guess()
        self.respond(plan, self.ask(asked, plan), first)

    def respond(self, plan: ResponsePlan, stream: ReplyStream, first: UserTurn | None = None) -> None:
        """Tell a reply to the client, in the background; `first` is what it answers in place of a user."""
        is_default = plan.conversation_id is not None
        response = Response(plan, stream, self.talk.emit, self.items.last_id if is_default else None)
        response.entry.turn = first
        if is_default:
            self.response = response
            self.items.add(response.entry)
        stream.release()
        self.open[response.id] = response
        self.in_background(self._run(response))

    def respond_in_turn(self) -> None:
        """Answer now, or after the answer that is under way."""

        async def wait_and_answer() -> None:
            await self.finish()
            self.create(self.plan())

        if self.is_busy:
            self.in_background(wait_and_answer())
        else:
            self.create(self.plan())

    async def _run(self, response: Response) -> None:
        try:
            await response.run()
        finally:
            self.open.pop(response.id, None)
        self._count(response)
        reply = response.reply
        if response.plan.conversation_id is None:
            return
        self.talk.record(response.entry)
        if reply is not None and reply.memory is not None:
            self.remember(reply.memory)
        if response is self.response and not response.cancelled:
            self._wait_for_user(response)
            await self.read_ahead(self.items.turns())

    def _wait_for_user(self, response: Response) -> None:
        """Where the session says so: when a silence after the answer gets too long, take it for a turn."""
        detection = self.talk.session.audio.input.turn_detection
        if detection is None or detection.idle_timeout_ms is None:
            return
        wait = max(0.0, response.plays_until - time.monotonic()) + detection.idle_timeout_ms / 1000

        async def idle() -> None:
            await asyncio.sleep(wait)
            if self.response is response:
                self.on_idle()

        self.in_background(idle())

    def _count(self, response: Response) -> None:
        timing, metrics = response.timing, self.talk.metrics
        metrics.responses.labels(response.status).inc()
        metrics.audio_dropped.inc(response.dropped_ms / 1000)
        if timing.first_audio is not None:
            self.has_spoken = True
            metrics.first_audio.observe(timing.first_audio - timing.began)
            metrics.audio_out.inc(response.spoken.audio_ms / 1000)

    def interrupt(self) -> None:
        """The user speaks: stop, take back what is not sent, remember no more of the answer than was
        heard."""
        response = self.response
        if not self.cancel("turn_detected"):
            return
        assert response is not None
        spoken = response.spoken
        sent_ms = max(0, spoken.audio_ms - self.talk.outbox.take_back(response.id))
        spoken.heard_ms = min(response.heard_ms(time.monotonic()), sent_ms)
        del spoken.pcm[sent_ms * BYTES_PER_MS :]

    def cancel_by_id(self, response_id: str) -> bool:
        """Stop any response, also one that waits its turn; was there one?"""
        response = self.open.get(response_id)
        if response is None or not response.is_running:
            return False
        response.cancel("client_cancelled")
        return True

    def cancel(self, reason: CancelReason) -> bool:
        """Stop the response of the conversation that is under way; was there one?"""
        if self.response is None or not self.response.is_running:
            return False
        self.response.cancel(reason)
        return True

    # --- what the model remembers

    def remember(self, memory: Memory) -> None:
        """Keep what was read, if it is not more than a session may."""
        self.memory = memory if memory.n_bytes <= self.config.limits.memory_bytes else Memory()

    async def read_ahead(self, asked: Sequence[Turn]) -> None:
        """Read what is known of the next question while nobody waits for it."""
        if asked:
            task = self.task(self.talk.session.speaks)
            self.remember(await self.desk.read_ahead(asked, task, self.memory, self.aside_lane))

    # --- work beside the session

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run until the session ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ProtocolError):
            self.talk.refuse(error)
        elif error is not None:
            self.talk.metrics.errors.labels("background").inc()
            log.error("work beside a session failed", exc_info=error)

    async def finish(self) -> None:
        """Wait until the response that is under way has come to its end."""
        while self.is_busy:
            assert self.response is not None
            await self.response.ended.wait()

    async def finish_all(self) -> None:
        """Wait for every response, those beside the conversation too."""
        while self.open:
            await next(iter(self.open.values())).ended.wait()

    async def close(self) -> None:
        """Give up everything."""
        self.drop_guess()
        for response in self.open.values():
            response.cancel("closing")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.open.clear()  # also those that were cancelled before they began
        self.memory = Memory()
