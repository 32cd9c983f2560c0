"""Between an event loop and the engine: replies as asynchronous streams, each told in a thread of its own.

async_engine = AsyncEngine(engine, threads=32)
stream = async_engine.reply(turns, "s2s", seed=0)
async for event in stream: ...      # as those of Engine.reply
stream.cancel()
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from echat.dialogue.tasks import get_task
from echat.dialogue.turns import Conversation, Turn, UserTurn
from echat.infer import events
from echat.infer.events import Event
from echat.infer.prompt_cache import PromptCache
from echat.infer.scheduler import Scheduler
from echat.infer.truncation import ContextWindow
from echat.serve.work_queue import Lane, LaneFull, Result, WorkQueue

if TYPE_CHECKING:
    from echat.infer.engine import Engine

# Of the HTTP request that is being answered: where it came in is far from where its work is asked for.
request_lane: ContextVar[Lane | None] = ContextVar("request_lane", default=None)


@dataclass(frozen=True)
class Failed:
    """The reply ended with an error of its own."""

    error: BaseException


class AsyncReplyStream:
    """One reply. Iterate once, in the loop that asked for it."""

    def __init__(self, is_speculative: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Failed | None] = asyncio.Queue()
        self.stop = threading.Event()  # for the engine, which sets it itself when a reply is over
        self.is_cancelled = False
        self.withdraw: Callable[[], None] = lambda: None  # takes it out of the line, if it has not begun
        self._released = threading.Event()
        if not is_speculative:
            self._released.set()

    def release(self) -> None:
        """A reply on trial is wanted: make all of its sound."""
        self._released.set()

    def cancel(self) -> None:
        """Stop. What waits is not told any more; iteration ends at once."""
        self.is_cancelled = True
        self.stop.set()
        self._released.set()
        self.withdraw()
        self._events.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None and not self.is_cancelled:
            if isinstance(event, Failed):
                raise event.error
            yield event

    # --- from the thread that tells the reply

    def produce(self, answer: Callable[[], Any]) -> None:
        """Post every event; a reply on trial waits behind its first sound."""
        try:
            for event in answer():
                self._put(event)
                if isinstance(event, events.Audio):
                    self._released.wait()
                if self.is_cancelled:
                    break
        except BaseException as error:
            self._put(Failed(error))
        finally:
            self._put(None)

    def _put(self, event: Event | Failed | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is gone, and with it everybody who listened
            self.is_cancelled = True
            self.stop.set()


class AsyncEngine:
    """One engine, its scheduler, and the threads that tell replies. Work is shared out by lanes, see
    `work_queue`; without a lane it belongs to nobody in particular."""

    def __init__(self, engine: Engine, threads: int, asides: int = 2) -> None:
        """`asides`: how much is done at once of what no listener waits for."""
        self.engine = engine
        self.scheduler = Scheduler(engine)
        self.context_window = ContextWindow(engine.tokenizer, engine.model.config.llm.max_positions)
        self._answers = WorkQueue(threads, "echat-reply")
        self._asides = WorkQueue(asides, "echat-aside")
        self._shared = self._answers.lane(threads)

    def lane(self, width: int) -> Lane:
        """For the answers of one client, so many at once."""
        return self._answers.lane(width)

    def aside_lane(self, most_waiting: int) -> Lane:
        """For what a session wants besides its conversation, one after the other."""
        return self._asides.lane(1, most_waiting)

    def reply(
        self,
        turns: Sequence[Turn],
        task: str,
        *,
        is_speculative: bool = False,
        max_new_ids: int | None = None,
        lane: Lane | None = None,
        **settings: Any,
    ) -> AsyncReplyStream:
        """Answer the last turn; settings as for `Engine.reply`. `is_speculative`: no sound but the
        first piece is made before `release`."""
        stream = AsyncReplyStream(is_speculative)
        row = get_task(task)
        if max_new_ids is not None:
            usual = row.decoding_for(self.engine.profile)
            settings["decoding"] = replace(usual, max_new_ids=min(max_new_ids, usual.max_new_ids))

        def answer() -> Any:
            if stream.is_cancelled:
                return ()
            conversation = Conversation(self.context_window.fitting(turns))
            return self.scheduler.submit(
                conversation, task, stream=row.writes_speech, cancel=stream.stop, **settings
            )

        stream.withdraw = self._lane(lane).submit(lambda: stream.produce(answer))
        return stream

    async def transcribe(self, audio: Any, lane: Lane | None = None) -> str:
        """The words of a sound."""
        turn = UserTurn(audio=audio)
        return await self.call(lambda: self.scheduler.submit(Conversation([turn]), "asr").reply().text, lane)

    async def prefill(
        self, turns: Sequence[Turn], task: str, prompt_cache: PromptCache, lane: Lane | None = None
    ) -> PromptCache:
        """Read what is known before it is asked for, if there is time for it."""

        def read() -> PromptCache:
            try:
                fitting = self.context_window.fitting(turns)
            except ValueError:  # said when it is asked
                return prompt_cache
            return self.engine.prefill(fitting, task, prompt_cache)

        try:
            return await self.call(read, lane)
        except LaneFull:
            return prompt_cache

    async def call(self, work: Callable[[], Result], lane: Lane | None = None) -> Result:
        """Do some work in a thread."""
        return await self._lane(lane).call(work)

    def _lane(self, lane: Lane | None) -> Lane:
        return lane or request_lane.get() or self._shared

    def close(self) -> None:
        """Stop writing; replies under way end as cancelled."""
        self.scheduler.close()
        self._answers.close()
        self._asides.close()
