"""Async engine: the bridge between an event loop and the engine; each reply is an asynchronous stream,
produced in a worker thread.

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

# The lane of the present HTTP request, for jobs that are submitted deep below the handler.
request_lane: ContextVar[Lane | None] = ContextVar("request_lane", default=None)


@dataclass(frozen=True)
class Failed:
    """The reply ended with an exception."""

    error: BaseException


class AsyncReplyStream:
    """The events of one reply. Iterate once, in the event loop that requested it."""

    def __init__(self, is_speculative: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Failed | None] = asyncio.Queue()
        self.stop = threading.Event()  # cancels the reply; the engine sets it too, at the end
        self.is_cancelled = False
        self.withdraw: Callable[[], None] = lambda: (
            None
        )  # removes the job from its lane, if it has not started
        self._released = threading.Event()
        if not is_speculative:
            self._released.set()

    def release(self) -> None:
        """The speculative reply is accepted: synthesize all of its audio."""
        self._released.set()

    def cancel(self) -> None:
        """Stop the reply. Iteration ends at once, events that wait are dropped."""
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

    # --- in the worker thread

    def produce(self, answer: Callable[[], Any]) -> None:
        """Post every event; a speculative reply waits after its first piece of audio."""
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
        except RuntimeError:  # the loop is closed
            self.is_cancelled = True
            self.stop.set()


class AsyncEngine:
    """One engine, its scheduler, and the worker threads that produce replies. Jobs are scheduled fairly by
    lanes, see `work_queue`; those without a lane share one."""

    def __init__(self, engine: Engine, threads: int, asides: int = 2) -> None:
        """`asides`: jobs with low priority that run at once, such as prefills."""
        self.engine = engine
        self.scheduler = Scheduler(engine)
        self.context_window = ContextWindow(engine.tokenizer, engine.model.config)
        self._answers = WorkQueue(threads, "echat-reply")
        self._asides = WorkQueue(asides, "echat-aside")
        self._shared = self._answers.lane(threads)

    def lane(self, width: int) -> Lane:
        """A lane for the replies of one client, of which `width` run at once."""
        return self._answers.lane(width)

    def aside_lane(self, most_waiting: int) -> Lane:
        """A lane for the jobs of a session beside its conversation, one after the other."""
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
        """Answer the last turn; settings as for `Engine.reply`. `is_speculative`: only the first piece of
        audio is synthesized before `release`."""
        stream = AsyncReplyStream(is_speculative)
        row = get_task(task)
        if max_new_ids is not None:
            usual = row.decoding_for(self.engine.profile)
            settings["decoding"] = replace(usual, max_new_ids=min(max_new_ids, usual.max_new_ids))

        def answer() -> Any:
            if stream.is_cancelled:
                return ()
            conversation = Conversation(self.context_window.truncate(turns))
            return self.scheduler.submit(
                conversation, task, stream=row.writes_speech, cancel=stream.stop, **settings
            )

        stream.withdraw = self._lane(lane).submit(lambda: stream.produce(answer))
        return stream

    async def transcribe(self, audio: Any, lane: Lane | None = None) -> str:
        """Transcript of a recording."""
        turn = UserTurn(audio=audio)
        return await self.call(lambda: self.scheduler.submit(Conversation([turn]), "asr").reply().text, lane)

    async def prefill(
        self, turns: Sequence[Turn], task: str, prompt_cache: PromptCache, lane: Lane | None = None
    ) -> PromptCache:
        """Prefill a prompt into a prompt cache; skipped where the lane is full."""

        def read() -> PromptCache:
            try:
                kept = self.context_window.truncate(turns)
            except ValueError:  # reported when the turn is answered
                return prompt_cache
            return self.engine.prefill(kept, task, prompt_cache)

        try:
            return await self.call(read, lane)
        except LaneFull:
            return prompt_cache

    async def call(self, work: Callable[[], Result], lane: Lane | None = None) -> Result:
        """Run a function in a worker thread."""
        return await self._lane(lane).call(work)

    def _lane(self, lane: Lane | None) -> Lane:
        return lane or request_lane.get() or self._shared

    def close(self) -> None:
        """Stop the scheduler and the threads; running replies end as cancelled."""
        self.scheduler.close()
        self._answers.close()
        self._asides.close()
