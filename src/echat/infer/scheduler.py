"""Many conversations at once on one model: a thread writes all replies side by side, each asker listens to
its own.

    with Scheduler(engine) as scheduler:
        answer = scheduler.submit(conversation, "s2s", stream=True)
        for event in answer: ...        # as those of Engine.reply
        answer.cancel()                 # from any thread
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from echat.dialogue.tasks import Task, get_task
from echat.dialogue.turns import Conversation
from echat.infer import events
from echat.infer.batch import ROWS, Batch
from echat.infer.events import Event, Reply
from echat.infer.generation import READ_CHUNK, Strand, Written
from echat.infer.memory import Memory
from echat.infer.replying import Request, tell
from echat.infer.telling import Clock

if TYPE_CHECKING:
    from echat.infer.engine import Engine


class Answer:
    """A reply that a scheduler writes. Iterate over it once, in one thread: that is where texts are decoded
    and sound is made, so that neither holds up the other replies."""

    def __init__(self, engine: "Engine", request: Request, strand: Strand, clock: Clock) -> None:
        self._engine, self._request, self._strand, self._clock = engine, request, strand, clock
        self._steps: queue.SimpleQueue[Written | BaseException | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Event]:
        """The events of `Engine.reply`. To leave the loop early is to cancel."""
        try:
            yield from tell(self._engine, self._request, self._strand, self._taken(), self._clock)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Write no further id; a reply that is already written is not spoken any further."""
        assert self._request.cancel is not None
        self._request.cancel.set()

    def reply(self) -> Reply:
        """Wait for the finished reply."""
        *_, done = self
        assert isinstance(done, events.Done)
        return done.reply

    def _taken(self) -> Iterator[Written]:
        """Ids as they come, to the end of the strand."""
        while (step := self._steps.get()) is not None:
            if isinstance(step, BaseException):
                raise RuntimeError("the scheduler stopped, and this reply with it") from step
            yield step

    def _put(self, step: Written | BaseException | None) -> None:
        self._steps.put(step)


class Scheduler:
    """One worker thread and the replies in its care."""

    def __init__(self, engine: "Engine", rows: int = ROWS, read_chunk: int = READ_CHUNK) -> None:
        """At most `rows` replies are written at once, the others wait in line; between two ids running
        replies wait for `read_chunk` positions of a new prompt, and of a long one only now and then."""
        self.engine = engine
        self._batch = Batch(engine.model, rows, read_chunk, shares_time=True)  # of the worker alone
        self._answers: dict[Strand, Answer] = {}  # of the worker alone
        self._inbox: list[Answer] = []
        self._stems: dict[Task, Memory] = {}
        self._is_open = True
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="echat-scheduler", daemon=True)
        self._worker.start()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, conversation: Conversation, task: str | Task, **settings: Any) -> Answer:
        """Ask for a reply; settings as for `Engine.reply`.

        New sounds are encoded here, in the thread that asks. System prompts are read once for all.
        """
        clock = Clock()
        settings["cancel"] = settings.get("cancel") or threading.Event()
        request = Request(conversation, get_task(task), **settings)
        (strand,) = self.engine.strands([request], [self._stem(request.task)])
        clock.lap("listen")
        answer = Answer(self.engine, request, strand, clock)
        with self._changed:
            if not self._is_open:
                raise RuntimeError("scheduler: expected an open one, found it closed; make another")
            self._inbox.append(answer)
            self._changed.notify()
        return answer

    def close(self) -> None:
        """Stop the worker; what it was writing ends as cancelled."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._worker.join()

    def _stem(self, task: Task) -> Memory:
        """The system prompt of a task. Two threads may both read it at first; either result will do."""
        if task not in self._stems:
            self._stems[task] = self.engine.read_ahead((), task)
        return self._stems[task]

    # --- the worker

    def _work(self) -> None:
        try:
            while self._take_in():
                self._pass_on(self._batch.step())
            for strand in self._batch.clear():
                strand.writing.finish_reason = "cancelled"
                self._answers.pop(strand)._put(None)
        except BaseException as error:  # nobody may wait for a worker that is gone
            with self._changed:
                self._is_open = False
                waiting = [*self._answers.values(), *self._inbox]
            for answer in waiting:
                answer._put(error)
            raise

    def _take_in(self) -> bool:
        """Put new replies in line, waiting for one while there is nothing to do; False: it is closed."""
        with self._changed:
            while self._is_open and not self._inbox and self._batch.is_idle:
                self._changed.wait()
            new, self._inbox = self._inbox, []
            for answer in new:
                self._answers[answer._strand] = answer
                self._batch.add(answer._strand)
            return self._is_open

    def _pass_on(self, told: Sequence[tuple[Strand, Written | None]]) -> None:
        """Hand every step to the reply that it belongs to; None ends it."""
        for strand, step in told:
            answer = self._answers[strand] if step else self._answers.pop(strand)
            answer._put(step and Written(step.id, step.is_speech))  # the scores stay here
