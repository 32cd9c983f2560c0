"""A conversation: user turns (audio or text) and assistant turns (thought, text, speech)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from echat.dialogue.labels import Labels
from echat.dialogue.thinking import Thought


@dataclass(frozen=True)
class UserTurn:
    """What the user said.

    ``text``: words, typed or known from a transcript. ``audio``: waveform, mel or any handle that the caller
    resolves; rendering only passes it through. ``prompt``: instruction before the sound; ``None`` takes the
    task's own, ``""`` none. ``labels``: of the voice, where known. ``is_pseudo_audio``: in a task with audio
    input, words and labels replace the audio as text (pre-training of the language model).
    """

    text: str | None = None
    audio: Any = None
    prompt: str | None = None
    labels: Labels | None = None
    is_pseudo_audio: bool = False


@dataclass(frozen=True)
class AssistantTurn:
    """What the assistant answered.

    ``text``: the reply alone, without thought or tags; ``None`` in a labelling task lets the target be
    composed from the user turn. ``speech_ids``: codec ids of the spoken reply, without begin and end.
    ``text_ids``: the very ids that a model generated for ``text``; they win over encoding ``text`` again when
    the turn is history. ``raw_speech_ids``: the very speech ids that it generated, boundaries wherever they
    stood; the history of the profile "reference" repeats them as they are.
    """

    text: str | None = None
    speech_ids: Sequence[int] | None = None
    thought: Thought | None = None
    text_ids: Sequence[int] | None = None
    raw_speech_ids: Sequence[int] | None = None


Turn = UserTurn | AssistantTurn


@dataclass(frozen=True)
class Conversation:
    """Alternating turns, the user first. Ends with a user turn to answer or an assistant turn as target."""

    turns: tuple[Turn, ...]

    def __init__(self, turns: Sequence[Turn]) -> None:
        object.__setattr__(self, "turns", tuple(turns))
        self._check()

    def _check(self) -> None:
        if not self.turns:
            raise ValueError("conversation: expected at least one user turn, found none")
        for position, turn in enumerate(self.turns):
            expected = UserTurn if position % 2 == 0 else AssistantTurn
            if not isinstance(turn, expected):
                raise ValueError(
                    f"conversation, turn {position}: expected {expected.__name__}, "
                    f"found {type(turn).__name__}; turns alternate and the user speaks first"
                )

    @property
    def target(self) -> AssistantTurn | None:
        """The answer to train on, or ``None`` when the answer is still to be generated."""
        last = self.turns[-1]
        return last if isinstance(last, AssistantTurn) else None

    @property
    def question(self) -> UserTurn:
        """The last user turn."""
        turn = self.turns[-1] if self.target is None else self.turns[-2]
        assert isinstance(turn, UserTurn)
        return turn

    @property
    def history(self) -> list[tuple[UserTurn, AssistantTurn]]:
        """Finished turns before the question, oldest first."""
        past = self.turns[: len(self.turns) - (1 if self.target is None else 2)]
        return [(past[i], past[i + 1]) for i in range(0, len(past), 2)]  # type: ignore[misc]

    def with_history(self, turns: int) -> Conversation:
        """The same question after the last `turns` finished turns at most."""
        begin = max(0, len(self.history) - turns) * 2
        return Conversation(self.turns[begin:]) if begin else self


def ask(*, text: str | None = None, audio: Any = None, prompt: str | None = None) -> Conversation:
    """A conversation of one question."""
    return Conversation([UserTurn(text=text, audio=audio, prompt=prompt)])
