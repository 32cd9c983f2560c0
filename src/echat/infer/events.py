"""The events of a reply while it is generated, and the finished `Reply`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from echat.dialogue import thinking
from echat.dialogue.labels import Labels
from echat.dialogue.tasks import Task
from echat.dialogue.turns import AssistantTurn
from echat.dialogue.understanding import parse_understanding
from echat.infer.decoding import FinishReason
from echat.infer.prompt_cache import PromptCache

Defect = Literal["no text", "no speech", "unreadable thought"]


@dataclass(frozen=True)
class Thought:
    """The complete thought, before the reply. It is not synthesized."""

    thought: thinking.Thought
    wellformed: bool


@dataclass(frozen=True)
class ThoughtPiece:
    """The next characters of the thought, without its tags; only with `show_thinking`."""

    text: str


@dataclass(frozen=True)
class Text:
    """The whole text of the reply, without thought and emotion tag."""

    text: str
    reply_emotion: str | None = None


@dataclass(frozen=True)
class TextPiece:
    """The next words of the reply, to be displayed while it is generated.

    Pieces end between characters, contain no thought and no tag, and join to the `Text` that follows (to a
    prefix of it after a malformed thought).
    """

    text: str


@dataclass(frozen=True)
class SpeechIds:
    """The next codec ids of the spoken reply, 25 to the second."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Audio:
    """The next piece of synthesized speech."""

    waveform: Tensor  # (samples,) float32
    rate: int  # Hz


@dataclass(frozen=True)
class Reply:
    """A finished reply."""

    text: str
    raw_text: str  # as the model wrote it, thought and tags included
    thought: thinking.Thought | None = None
    reply_emotion: str | None = None
    wellformed: bool = True  # were thought and tags parsed without repair?
    defect: Defect | None = None  # what is missing of a reply to its task
    text_ids: tuple[int, ...] = ()  # ids of `raw_text`
    speech_ids: tuple[int, ...] = ()  # codec ids
    raw_speech_ids: tuple[int, ...] = ()  # as the model wrote them, boundaries included
    waveform: Tensor | None = None  # (samples,) float32
    rate: int | None = None  # Hz, of `waveform`
    finish_reason: FinishReason = "end"
    # Time spent: listen, read (the prompt), write, speak, synthesise, total; first_audio: from the start on.
    seconds: Mapping[str, float] = field(default_factory=dict)
    # Work done and spared: prefilled_tokens, cached_tokens, audio_tokens, mel_frames_encoded;
    # turns_left_out: of the history, truncated.
    counts: Mapping[str, int] = field(default_factory=dict)
    prompt_cache: PromptCache | None = field(
        default=None, repr=False, compare=False
    )  # if the request brought one

    @property
    def is_mute(self) -> bool:
        """Did generation end without an answer?"""
        return self.finish_reason in ("end", "loop") and self.defect in ("no text", "no speech")

    def as_turn(self) -> AssistantTurn:
        """The reply as history of the next question."""
        return AssistantTurn(
            text=self.text,
            speech_ids=self.speech_ids or None,
            thought=self.thought,
            text_ids=self.own_text_ids,
            raw_speech_ids=self.raw_speech_ids or None,
        )

    @property
    def own_text_ids(self) -> tuple[int, ...] | None:
        """The ids of `text`; None where they are mixed with those of a thought or tag."""
        return self.text_ids if self.thought is None and self.reply_emotion is None else None


@dataclass(frozen=True)
class Done:
    """The last event of every reply."""

    reply: Reply

    @property
    def finish_reason(self) -> FinishReason:
        """`end`: by the model; `length`, `loop`: by a limit; `cancelled`: by the caller."""
        return self.reply.finish_reason

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time spent, by stage."""
        return self.reply.seconds


Event = Thought | ThoughtPiece | TextPiece | Text | SpeechIds | Audio | Done


@dataclass(frozen=True)
class Understanding:
    """Transcript and labels of audio."""

    text: str
    labels: Labels
    raw_text: str
    reply: str | None = None  # of the task that transcribes, then answers
    finish_reason: FinishReason = "end"

    @classmethod
    def of(cls, task: Task, reply: Reply) -> "Understanding":
        """Parse the reply of an understanding task."""
        parsed = parse_understanding(task, reply.raw_text)
        return cls(parsed.text, parsed.labels, reply.raw_text, parsed.reply, reply.finish_reason)
