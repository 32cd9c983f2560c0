"""Between an event loop and the engine: replies as asynchronous streams, each told in a thread of its own.

desk = Desk(engine, threads=32)
stream = desk.reply(turns, "s2s", seed=0)
async for event in stream: ...      # as those of Engine.reply
stream.cancel()
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from echat.audio.features import SAMPLE_RATE
from echat.dialogue.tasks import get_task
from echat.dialogue.turns import Conversation, Turn, UserTurn
from echat.infer import events
from echat.infer.events import Event
from echat.infer.memory import Memory
from echat.infer.scheduler import Scheduler
from echat.model.speech_encoder import LLM_FRAME_SECONDS

if TYPE_CHECKING:
    from echat.infer.engine import Engine

SAMPLES_PER_POSITION = round(LLM_FRAME_SECONDS * SAMPLE_RATE)
ANSWER_POSITIONS = 1024  # of the model's context that stay free for an answer


@dataclass(frozen=True)
class Failed:
    """The reply ended with an error of its own."""

    error: BaseException


class ReplyStream:
    """One reply. Iterate once, in the loop that asked for it."""

    def __init__(self, held: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Failed | None] = asyncio.Queue()
        self.stop = threading.Event()  # for the engine, which sets it itself when a reply is over
        self.is_cancelled = False
        self._released = threading.Event()
        if not held:
            self._released.set()

    def release(self) -> None:
        """A reply on trial is wanted: make all of its sound."""
        self._released.set()

    def cancel(self) -> None:
        """Stop. What waits is not told any more; iteration ends at once."""
        self.is_cancelled = True
        self.stop.set()
        self._released.set()
        self._events.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None and not self.is_cancelled:
            if isinstance(event, Failed):
                raise event.error
            yield event

    # --- from the thread that tells the reply

    def tell(self, answer: Callable[[], Any]) -> None:
        """Post every event; a reply on trial waits behind its first sound."""
        try:
            for event in answer():
                self._post(event)
                if isinstance(event, events.Audio):
                    self._released.wait()
                if self.is_cancelled:
                    break
        except BaseException as error:
            self._post(Failed(error))
        finally:
            self._post(None)

    def _post(self, event: Event | Failed | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is gone, and with it everybody who listened
            self.is_cancelled = True
            self.stop.set()


class Desk:
    """One engine, its scheduler, and the threads that tell replies."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine = engine
        self.scheduler = Scheduler(engine)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="echat-reply")

    def reply(
        self,
        turns: Sequence[Turn],
        task: str,
        *,
        held: bool = False,
        max_new_ids: int | None = None,
        **settings: Any,
    ) -> ReplyStream:
        """Answer the last turn; settings as for `Engine.reply`. `held`: on trial, no sound but the first
        piece is made before `release`."""
        stream = ReplyStream(held)
        row = get_task(task)
        if max_new_ids is not None:
            usual = row.decoding_for(self.engine.profile)
            settings["decoding"] = replace(usual, max_new_ids=min(max_new_ids, usual.max_new_ids))

        def answer() -> Any:
            if stream.is_cancelled:
                return ()
            conversation = Conversation(self.fitting(turns, task))
            return self.scheduler.submit(
                conversation, task, stream=row.writes_speech, cancel=stream.stop, **settings
            )

        self._threads.submit(stream.tell, answer)
        return stream

    async def transcribe(self, audio: Any) -> str:
        """The words of a sound."""
        turn = UserTurn(audio=audio)
        return await self.call(lambda: self.scheduler.submit(Conversation([turn]), "asr").reply().text)

    async def read_ahead(self, turns: Sequence[Turn], task: str, memory: Memory) -> Memory:
        """Read what is known before it is asked for."""
        fitting = self.fitting(turns, task)
        if len(fitting) < len(turns):
            return memory  # about to be cut: nothing read now would fit later
        return await self.call(lambda: self.engine.read_ahead(fitting, task, memory))

    async def call(self, work: Callable[[], Any]) -> Any:
        """Do some work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def fitting(self, turns: Sequence[Turn], task: str) -> list[Turn]:
        """The newest turns that fit into the model's positions; the question always stays."""
        room = self.engine.model.config.llm.max_positions - ANSWER_POSITIONS
        left = list(turns)
        while len(left) > 2 and sum(self._positions(turn) for turn in left) > room:
            del left[:2]  # a question and its answer
        return left

    def _positions(self, turn: Turn) -> int:
        """About how many positions a turn takes."""
        n_text = len(self.engine.tokenizer.encode(turn.text)) if turn.text else 0
        if isinstance(turn, UserTurn):
            sound = sum(len(piece) for piece in turn.audio.pieces) if turn.audio is not None else 0
            return n_text + sound // SAMPLES_PER_POSITION + 8
        return n_text + len(turn.speech_ids or ()) + 8

    def close(self) -> None:
        """Stop writing; replies under way end as cancelled."""
        self.scheduler.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
