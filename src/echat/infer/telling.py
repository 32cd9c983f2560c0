"""From a growing reply to events, and the time each stage took. Both are local to one reply."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from echat.dialogue import thinking
from echat.dialogue.tasks import Task
from echat.infer import events
from echat.infer.decoding import Writing
from echat.infer.events import Event

if TYPE_CHECKING:
    from echat.infer.engine import Engine

SPEECH_CHUNK = 25  # codec ids per event: one second


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now

    def total(self) -> dict[str, float]:
        return {**self.seconds, "total": time.perf_counter() - self._start}


class Teller:
    """Turns a growing reply into events. Local to one reply."""

    def __init__(self, engine: "Engine", task: Task) -> None:
        self.engine, self.task = engine, task
        self.thought_told = not task.thinks
        self.text_told = not task.writes_text
        self.speech_told = 0

    def tell(self, writing: Writing, is_last: bool = False) -> Iterator[Event]:
        """What has become known since the last call."""
        text_ended = writing.text_ended or is_last
        if not self.thought_told and (text_ended or self._may_end_thought(writing)):
            parsed = thinking.parse_reply(self.engine.decode(writing, self.task))
            if parsed.thought is not None:
                self.thought_told = True
                yield events.Thought(parsed.thought, parsed.wellformed)
        if not self.text_told and text_ended:
            self.text_told = True
            reply = self.engine.finish(writing, self.task)
            yield events.Text(reply.text, reply.reply_emotion)
        if self.task.writes_speech and (is_last or len(writing.speech_ids) % SPEECH_CHUNK == 0):
            ids = writing.codec_ids[self.speech_told :]
            self.speech_told += len(ids)
            if ids:
                yield events.SpeechIds(tuple(ids))

    def _may_end_thought(self, writing: Writing) -> bool:
        """Cheap test before the whole text is decoded."""
        last = writing.text_ids[-1:]
        return (
            bool(last)
            and ">" in self.engine.tokenizer.decode(last)
            and thinking.THINK_END in self.engine.decode(writing, self.task)
        )
