"""The request scheduler: one worker thread serves the replies of many threads by continuous batching.

with Scheduler(engine) as scheduler:
    handle = scheduler.submit(conversation, "s2s", stream=True)
    for event in handle: ...        # as those of Engine.reply
    handle.cancel()                 # from any thread
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from echat.dialogue.tasks import Task, get_task
from echat.dialogue.turns import Conversation
from echat.infer import events
from echat.infer.continuous_batching import ROWS, ContinuousBatch
from echat.infer.events import Event, Reply
from echat.infer.generation import PREFILL_CHUNK, GeneratedId, SequenceState
from echat.infer.prompt_cache import PromptCache
from echat.infer.reply_stream import ReplyRequest, StageTimer, emit

if TYPE_CHECKING:
    from echat.infer.engine import Engine


class ReplyHandle:
    """The caller's side of one request. Iterate over it once, in one thread: text is detokenized and speech
    synthesized there, so that neither blocks the worker."""

    def __init__(
        self, engine: "Engine", request: ReplyRequest, sequence: SequenceState, timer: StageTimer
    ) -> None:
        self._engine, self._request, self._sequence, self._timer = engine, request, sequence, timer
        self._steps: queue.SimpleQueue[GeneratedId | BaseException | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Event]:
        """The events of `Engine.reply`. Leaving the loop early cancels the reply."""
        try:
            engine, steps = self._engine, self._received()
            yield from emit(
                engine.tokenizer, engine.token2wav, self._request, self._sequence, steps, self._timer
            )
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop generation, and synthesis of a reply that is already generated."""
        assert self._request.cancel is not None
        self._request.cancel.set()

    def reply(self) -> Reply:
        """Wait for the finished reply."""
        *_, done = self
        assert isinstance(done, events.Done)
        return done.reply

    def _received(self) -> Iterator[GeneratedId]:
        """Ids from the worker, to the end of the sequence."""
        while (step := self._steps.get()) is not None:
            if isinstance(step, BaseException):
                raise RuntimeError("the scheduler stopped, and this reply with it") from step
            yield step

    def _put(self, step: GeneratedId | BaseException | None) -> None:
        self._steps.put(step)


class Scheduler:
    """One worker thread and its requests."""

    def __init__(self, engine: "Engine", rows: int = ROWS, prefill_chunk: int = PREFILL_CHUNK) -> None:
        """At most `rows` replies generate at once, the others wait in a queue. Between two ids running
        replies wait for `prefill_chunk` positions of a new prompt, and of a long one only at times."""
        self.engine = engine
        # Both are used by the worker alone.
        self._batch = ContinuousBatch(engine.model, rows, prefill_chunk, balance_prefill=True)
        self._handles: dict[SequenceState, ReplyHandle] = {}
        self._inbox: list[ReplyHandle] = []
        self._shared_prefixes: dict[Task, PromptCache] = {}
        self._is_open = True
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="echat-scheduler", daemon=True)
        self._worker.start()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, conversation: Conversation, task: str | Task, **settings: Any) -> ReplyHandle:
        """Request a reply; settings as for `Engine.reply`.

        New audio is encoded here, in the calling thread. System prompts are prefilled once for all requests.
        """
        timer = StageTimer()
        settings["cancel"] = settings.get("cancel") or threading.Event()
        request = ReplyRequest(conversation, get_task(task), **settings)
        (sequence,) = self.engine.new_sequences([request], [self._shared_prefix(request.task)])
        timer.lap("listen")
        handle = ReplyHandle(self.engine, request, sequence, timer)
        with self._changed:
            if not self._is_open:
                raise RuntimeError("scheduler: expected an open one, found it closed; make another")
            self._inbox.append(handle)
            self._changed.notify()
        return handle

    def close(self) -> None:
        """Stop the worker; running replies end as cancelled."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._worker.join()

    def _shared_prefix(self, task: Task) -> PromptCache:
        """The cache of the system prompt of a task. Two threads may both make it at first; either will do."""
        if task not in self._shared_prefixes:
            self._shared_prefixes[task] = self.engine.prefill((), task)
        return self._shared_prefixes[task]

    # --- the worker

    def _work(self) -> None:
        try:
            while self._admit():
                self._deliver(self._batch.step())
            for sequence in self._batch.clear():
                sequence.state.finish_reason = "cancelled"
                self._handles.pop(sequence)._put(None)
        except BaseException as error:  # no thread may wait for a worker that has ended
            with self._changed:
                self._is_open = False
                waiting = [*self._handles.values(), *self._inbox]
            for handle in waiting:
                handle._put(error)
            raise

    def _admit(self) -> bool:
        """Queue new requests, waiting for one while there is nothing to do; False: it is closed."""
        with self._changed:
            while self._is_open and not self._inbox and self._batch.is_idle:
                self._changed.wait()
            new, self._inbox = self._inbox, []
            for handle in new:
                self._handles[handle._sequence] = handle
                self._batch.add(handle._sequence)
            return self._is_open

    def _deliver(self, emitted: Sequence[tuple[SequenceState, GeneratedId | None]]) -> None:
        """Pass every step to its handle; None ends it."""
        for sequence, step in emitted:
            handle = self._handles[sequence] if step else self._handles.pop(sequence)
            handle._put(step and GeneratedId(step.id, step.is_speech))  # without the logits
