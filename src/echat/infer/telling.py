"""From a growing reply to events, and the time each stage took. Both are local to one reply."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from echat.dialogue import thinking
from echat.infer import events
from echat.infer.decoding import Plan, Writing
from echat.infer.events import Event

if TYPE_CHECKING:
    from echat.infer.engine import Engine

SPEECH_CHUNK = 25  # codec ids per event: one second
UNFINISHED = "\ufffd"  # what a decoder writes for a character of which the last bytes are still to come


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last call belongs to this stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def mark(self, moment: str) -> None:
        """Something happens for the first time: seconds since the start."""
        self.seconds.setdefault(moment, time.perf_counter() - self._start)

    def skip(self) -> None:
        """The time since the last call was somebody else's."""
        self._last = time.perf_counter()

    def total(self) -> dict[str, float]:
        """All stages and the time since the start."""
        return {**self.seconds, "total": time.perf_counter() - self._start}


class Teller:
    """Turns the ids of a reply into events. It keeps its own record of the reply, so that the ids may come
    from another thread."""

    def __init__(self, engine: "Engine", plan: Plan, show_thinking: bool = False) -> None:
        self.engine, self.task, self.show_thinking = engine, plan.task, show_thinking
        self.writing = Writing(plan)
        self.thought_told = not plan.task.thinks
        self.text_told = not plan.task.writes_text
        self.speech_told = 0
        self._raw = ""  # the text so far, up to its last whole character
        self._n_decoded = 0  # ids in it
        self._pieces = ""  # of the reply, as told
        self._thinking = ""  # of the thought, as told

    def take(self, id_: int) -> Iterator[Event]:
        """What becomes known with the next id."""
        self.writing.push(id_)
        yield from self._tell(self.writing.text_ended, len(self.writing.speech_ids) % SPEECH_CHUNK == 0)

    def end(self) -> Iterator[Event]:
        """What is left to tell when nothing more is written."""
        yield from self._tell(text_ended=True, speech_is_due=True)

    def _tell(self, text_ended: bool, speech_is_due: bool) -> Iterator[Event]:
        if not self.text_told:
            yield from self._tell_text(text_ended)
        if self.task.writes_speech and speech_is_due:
            ids = self.writing.codec_ids[self.speech_told :]
            self.speech_told += len(ids)
            if ids:
                yield events.SpeechIds(tuple(ids))

    def _tell_text(self, ended: bool) -> Iterator[Event]:
        has_grown = self._decode()
        if not (ended or has_grown):
            return
        if self.show_thinking and not self.thought_told:
            yield from self._tell_thinking()
        if not self.thought_told and (ended or thinking.THINK_END in self._raw):
            parsed = thinking.parse_reply(self.engine.decode(self.writing, self.task))
            if parsed.thought is not None:
                self.thought_told = True
                yield events.Thought(parsed.thought, parsed.wellformed)
        reply = self.engine.finish(self.writing, self.task) if ended else None
        so_far = reply.text if reply else self._reply_so_far()
        if so_far.startswith(self._pieces) and len(so_far) > len(self._pieces):
            piece, self._pieces = so_far[len(self._pieces) :], so_far
            yield events.TextPiece(piece)
        if reply:
            self.text_told = True
            yield events.Text(reply.text, reply.reply_emotion)

    def _tell_thinking(self) -> Iterator[Event]:
        so_far = thinking.unfinished_thought(self._raw)
        if len(so_far) > len(self._thinking) and so_far.startswith(self._thinking):
            piece, self._thinking = so_far[len(self._thinking) :], so_far
            yield events.ThoughtPiece(piece)

    def _decode(self) -> bool:
        """Bring `_raw` up to date; has it grown? Bytes of an unfinished character wait for the rest."""
        new = self.engine.told_ids(self.writing, self.task)[self._n_decoded :]
        text = self.engine.tokenizer.decode(new)
        if not text or text.endswith(UNFINISHED):
            return False
        self._raw += text
        self._n_decoded += len(new)
        return True

    def _reply_so_far(self) -> str:
        """The part of the text that is certainly reply, as it will stand in `Text`; "" while one cannot
        tell."""
        if self.task.understands:
            return self._raw.strip()
        begun = self._raw.lstrip()
        if thinking.THINK_END not in begun and (self.task.thinks or begun.startswith("<think")):
            return ""
        reply = thinking.parse_reply(begun).reply
        return "" if reply.startswith("<") and ">" not in reply else reply
