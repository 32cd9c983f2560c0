"""What the engine says while it replies, and what is left when it is done."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from echat.dialogue import thinking
from echat.dialogue.labels import Labels
from echat.dialogue.turns import AssistantTurn
from echat.infer.decoding import FinishReason
from echat.infer.prompt_cache import PromptCache

Defect = Literal["no text", "no speech", "unreadable thought"]


@dataclass(frozen=True)
class Thought:
    """The thought is complete; the reply follows. None of it is meant to be spoken."""

    thought: thinking.Thought
    wellformed: bool


@dataclass(frozen=True)
class ThoughtPiece:
    """The next characters of the thought as the model writes it, without its tags; only with
    `show_thinking`."""

    text: str


@dataclass(frozen=True)
class Text:
    """The whole text of the reply, without thought and emotion tag."""

    text: str
    reply_emotion: str | None = None


@dataclass(frozen=True)
class TextPiece:
    """The next words of the reply, to be shown while it is written.

    Pieces end between characters, hold no thought and no tag, and add up to the `Text` that follows (to its
    beginning, where a malformed thought let nobody know better).
    """

    text: str


@dataclass(frozen=True)
class SpeechIds:
    """The next codec ids of the spoken reply, 25 to the second."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Audio:
    """The next piece of the spoken reply."""

    waveform: Tensor  # (samples,) float32
    rate: int  # Hz


@dataclass(frozen=True)
class Reply:
    """A finished reply."""

    text: str
    raw_text: str  # as the model wrote it, thought and tags included
    thought: thinking.Thought | None = None
    reply_emotion: str | None = None
    wellformed: bool = True  # could thought and tags be read without guessing?
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
    # turns_left_out: of the history, beyond what the model learned or has positions for.
    counts: Mapping[str, int] = field(default_factory=dict)
    prompt_cache: PromptCache | None = field(
        default=None, repr=False, compare=False
    )  # if the request brought one

    @property
    def is_mute(self) -> bool:
        """Did the model come to an end without an answer?"""
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
        """`end`: the model came to an end; `length`, `loop`: it was cut; `cancelled`: it was told to stop."""
        return self.reply.finish_reason

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time spent, by stage."""
        return self.reply.seconds


Event = Thought | ThoughtPiece | TextPiece | Text | SpeechIds | Audio | Done


@dataclass(frozen=True)
class Understanding:
    """Words and cues of a sound."""

    text: str
    labels: Labels
    raw_text: str
    reply: str | None = None  # of the task that transcribes, then answers
    finish_reason: FinishReason = "end"
