"""Special tokens of both id spaces, each a named property, and the chat template that the text ones are of.

Text ids index the text table (``text_size`` rows). Speech ids index the speech table: codec ids first, then
one shared begin/end, then two markers around the user's sound that are read but never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from echat.config import Config
from echat.dialogue.labels import VALUES, LabelKind, tag
from echat.dialogue.thinking import SLOTS

UNKNOWN = "&&"

PAD, TEXT, SPEECH, AUDIO = 0, 1, 2, 3  # what stands at a position of the language model
IGNORE = -100  # label of a position that predicts nothing, as in torch's cross-entropy


class ChatTemplate(Config):
    """Chat template: strings around the turns that the language model was trained with (default ChatML)."""

    begin: str = ""  # of every sequence
    turn_start: str = "<|im_start|>"  # one token
    role_end: str = "\n"  # between the name of a role and what it says
    turn_end: str = "<|im_end|>"  # one token, which ends every text
    turn_gap: str = "\n"  # behind `turn_end`
    document_end: str = "<|endoftext|>"  # one token; also pads, and is the blank of CTC
    system: str = "system"
    user: str = "user"
    assistant: str = "assistant"

    def turn_of(self, role: str) -> str:
        """What opens a turn."""
        return self.turn_start + role + self.role_end

    @property
    def turn_close(self) -> str:
        """What closes a turn."""
        return self.turn_end + self.turn_gap

    @property
    def special_tokens(self) -> tuple[str, str, str]:
        """The tokens of a tokenizer made for this template, in the order of their ids."""
        return self.document_end, self.turn_start, self.turn_end


CHATML = ChatTemplate()


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that dialogue needs."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, ids: Any, /) -> str: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and special ids of one model."""

    text_size: int
    """Rows of the text table and of the text head."""
    codec_size: int
    """Number of codec ids, 0 .. codec_size - 1."""
    text_end: int
    """Ends every text; after it only speech follows."""
    turn_start: int
    """Opens a turn of any role."""
    unknown: int | None = None
    """Placeholder of an unknown label, itself never a target; None when the tokenizer has no such id."""
    age_trigger: tuple[int, ...] = ()
    """Ids after which the label thought must name an age (decoding constraint of the released weights)."""
    age_allowed: tuple[int, ...] = ()
    """First ids of the ages that may follow ``age_trigger``."""
    label_slots: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    """Of each label of a thought: the ids before it, and the first ids of words that may stand there."""
    template: ChatTemplate = CHATML
    """Strings around the turns."""

    def __post_init__(self) -> None:
        if self.codec_size < 1:
            raise ValueError(f"vocabulary, codec_size: expected at least 1, found {self.codec_size}")
        for name in ("text_end", "turn_start", "unknown"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.text_size:
                raise ValueError(
                    f"vocabulary, {name}: expected an id in 0..{self.text_size - 1}, found {value}"
                )

    @property
    def speech_boundary(self) -> int:
        """Begins and ends spoken output; the only non-codec id that the speech head can write."""
        return self.codec_size

    @property
    def user_audio_begin(self) -> int:
        """Row before the user's sound; input only."""
        return self.codec_size + 1

    @property
    def user_audio_end(self) -> int:
        """Row after the user's sound; input only."""
        return self.codec_size + 2

    @property
    def speech_rows(self) -> int:
        """Rows of the speech table."""
        return speech_rows(self.codec_size)

    @property
    def speech_classes(self) -> int:
        """Outputs of the speech head."""
        return speech_classes(self.codec_size)

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Tokenizer,
        codec_size: int,
        text_size: int | None = None,
        template: ChatTemplate = CHATML,
    ) -> Vocabulary:
        """Look the special ids up. ``text_size``: rows of the text table, if more than tokens."""
        unknown = tokenizer.encode(UNKNOWN, add_special_tokens=False)
        return cls(
            text_size=text_size if text_size is not None else len(tokenizer),
            codec_size=codec_size,
            text_end=_single_id(tokenizer, template.turn_end),
            turn_start=_single_id(tokenizer, template.turn_start),
            unknown=unknown[0] if len(unknown) == 1 else None,
            age_trigger=tuple(tokenizer.encode(f"{SLOTS['age']}<", add_special_tokens=False)),
            age_allowed=_first_ids(tokenizer, "age"),
            label_slots=tuple(  # the first stands behind words, the others behind a tag
                _slot(tokenizer, kind, f"{'>' if number else 'a'},{name}<")
                for number, (kind, name) in enumerate(SLOTS.items())
            ),
            template=template,
        )


def speech_classes(codec_size: int) -> int:
    """Outputs of the speech head: codec ids and the boundary."""
    return codec_size + 1


def speech_rows(codec_size: int) -> int:
    """Rows of the speech table: the outputs, and two markers around the user's sound that are only read."""
    return codec_size + 3


def _slot(tokenizer: Tokenizer, kind: LabelKind, before: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that lead to a label, and first ids of the labels. `before` stands before it in a thought."""
    return _trigger(tokenizer, before), tuple(dict.fromkeys(_first_ids(tokenizer, kind)))


def _first_ids(tokenizer: Tokenizer, kind: LabelKind) -> tuple[int, ...]:
    """Of the word of each label of a kind."""
    words = (tag(kind, value)[1:-1] for value in VALUES[kind])
    return tuple(tokenizer.encode(word, add_special_tokens=False)[0] for word in words)


def _trigger(tokenizer: Tokenizer, before: str) -> tuple[int, ...]:
    """The ids of what follows the last comma; the comma as well where it is one id with a character."""
    ids = tokenizer.encode(before, add_special_tokens=False)
    other = before[: before.rindex(",") + 1]
    whole = [n for n in range(len(ids)) if other.startswith(tokenizer.decode(ids[:n]))]
    return tuple(ids[whole[-1] :])


def _single_id(tokenizer: Tokenizer, token: str) -> int:
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(
            f"tokenizer: expected {token!r} to be one special token, found ids {ids}; "
            "use the tokenizer folder that belongs to the model"
        )
    return ids[0]
