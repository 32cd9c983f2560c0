"""The assistant's side of a session: responses, replies begun on trial, and what the model remembers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from echat.audio.vad import VoiceActivity
from echat.dialogue.turns import Turn, UserTurn
from echat.infer.memory import Memory
from echat.serve.items import Entry, Items, turns
from echat.serve.metrics import Metrics
from echat.serve.protocol.session import Session
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.replies import Desk, ReplyStream
from echat.serve.response import CancelReason, Emit, Response, ResponsePlan
from echat.serve.settings import ServeConfig

FOREIGN_VOICES = frozenset(
    {"alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"}
    | {"marin", "nova", "onyx", "sage", "shimmer", "verse"}
)  # names of the public protocol: the model's own voice speaks for them


@dataclass(frozen=True)
class House:
    """What all sessions of a server share."""

    desk: Desk
    config: ServeConfig
    vad: VoiceActivity
    metrics: Metrics

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        return self.desk.engine.name or "echat"


@dataclass(frozen=True)
class Guess:
    """A reply begun before it was sure that the turn is over."""

    entry: Entry  # the user's item as it will be
    stream: ReplyStream


class Answering:
    """Local to one session."""

    def __init__(self, house: House, items: Items, emit: Emit) -> None:
        self.desk, self.config, self.metrics, self.items = house.desk, house.config, house.metrics, items
        self.conversation_id = new_id("conv")
        self.response: Response | None = None  # the newest of the default conversation
        self.has_spoken = False
        self.memory = Memory()
        self.guess: Guess | None = None
        self._emit = emit
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- what is asked of the engine

    def task(self, session: Session, speaks: bool, think: str | None = None) -> str:
        """The row of the task table."""
        thinks = think or session.options.think or self.config.think
        return ("s2s" if speaks else "s2t") + ("" if thinks == "off" else f"_think_{thinks}")

    def voice(self, name: str | None) -> str | None:
        """The voice of the model that a name asks for; an unknown one is refused."""
        token2wav = self.desk.engine.token2wav
        if name is None or name in FOREIGN_VOICES or token2wav is None:
            return self.config.voice
        if name not in token2wav.voices:
            known = ", ".join(token2wav.voices)
            raise ProtocolError(f"voice: expected one of {known}, found {name[:80]!r}", param="voice")
        return name

    def ask(
        self, session: Session, asked: Sequence[Turn], plan: ResponsePlan, held: bool = False
    ) -> ReplyStream:
        """Begin a reply."""
        options = session.options
        return self.desk.reply(
            asked,
            self.task(session, plan.speaks, plan.think),
            held=held,
            max_new_ids=None if plan.max_output_tokens == "inf" else plan.max_output_tokens,
            voice=self.voice(plan.output.voice_name) if plan.speaks else None,
            seed=options.seed,
            memory=self.memory,
            show_thinking=plan.show_thought,
        )

    def plan(self, session: Session, **changes: Any) -> ResponsePlan:
        """A response as the session wants it."""
        values: dict[str, Any] = {
            "speaks": session.speaks,
            "output": session.audio.output,
            "show_thought": session.options.show_thought,
            "max_output_tokens": session.max_output_tokens,
            "conversation_id": self.conversation_id,
        }
        return ResponsePlan(**{**values, **changes})

    # --- replies on trial

    def begin_guess(self, session: Session, entry: Entry) -> None:
        """Work on the answer to what was said so far."""
        self.drop_guess()
        if self.is_busy or not self.config.guess_replies:
            return
        asked = turns([*self.items.entries, entry])
        self.guess = Guess(entry, self.ask(session, asked, self.plan(session), held=True))

    def take_guess(self) -> Guess | None:
        """The guess came true."""
        guess, self.guess = self.guess, None
        if guess is not None:
            self.metrics.guesses.labels("true").inc()
        return guess

    def drop_guess(self) -> None:
        """It did not."""
        if self.guess is not None:
            self.guess.stream.cancel()
            self.guess = None
            self.metrics.guesses.labels("dropped").inc()

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

    def respond(self, plan: ResponsePlan, stream: ReplyStream) -> Response:
        """Tell a reply to the client, in the background."""
        is_default = plan.conversation_id is not None
        response = Response(plan, stream, self._emit, self.items.last_id if is_default else None)
        if is_default:
            self.response = response
            self.items.add(response.entry)
        stream.release()
        self.in_background(self._run(response, is_default))
        return response

    async def _run(self, response: Response, is_default: bool) -> None:
        await response.run()
        self._count(response)
        reply = response.reply
        if is_default and reply is not None and reply.memory is not None:
            self.remember(reply.memory)

    def _count(self, response: Response) -> None:
        timing = response.timing
        self.metrics.responses.labels(response.status).inc()
        self.metrics.audio_dropped.inc(response.dropped_ms / 1000)
        if timing.first_audio is not None:
            self.has_spoken = True
            self.metrics.first_audio.observe(timing.first_audio - timing.began)
            self.metrics.audio_out.inc(response.spoken.audio_ms / 1000)

    def remember(self, memory: Memory) -> None:
        """Keep what was read, if it is not more than a session may."""
        self.memory = memory if memory.n_bytes <= self.config.limits.memory_bytes else Memory()

    async def read_ahead(self, session: Session, asked: Sequence[Turn]) -> None:
        """Read what is known of the next question while nobody waits for it."""
        if not asked:
            return
        task = self.task(session, session.speaks)
        self.remember(await self.desk.read_ahead(asked, task, self.memory))

    def cancel(self, reason: CancelReason) -> Response | None:
        """Stop the response that is under way; which it was."""
        if not self.is_busy:
            return None
        assert self.response is not None
        self.response.cancel(reason)
        return self.response

    def in_background(self, work: Any) -> None:
        """Run a coroutine beside the session, until the session ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait until what is under way has come to its end."""
        while self.is_busy:
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Give up everything."""
        self.drop_guess()
        self.cancel("closing")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.memory = Memory()


def question_in(asked: Sequence[Turn]) -> bool:
    """Is there anything to answer?"""
    return bool(asked) and isinstance(asked[-1], UserTurn)
