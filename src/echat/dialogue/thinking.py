"""Thoughts (reasoning before the reply), in two forms: formatting and parsing of the text of a model.

Label form: ``<think>`` words, age, gender, emotion, sound event, reply emotion ``<think end>``, then the
reply emotion as a tag, then the reply. Language form: ``<think>`` free text ``<think end>``, then the reply.
The Chinese frame of the label form is what the released weights were trained on. The split is made on the
decoded string: byte-pair merges cross the edges of the tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from echat.dialogue.label_kinds import LABEL_KINDS
from echat.dialogue.labels import (
    NEUTRAL_REPLY,
    UNKNOWN_TAG,
    VOICE_KINDS,
    LabelKind,
    Labels,
    LabelValues,
    canonical,
    split_reply_emotion,
    tag,
)

THINK_BEGIN = "<think>"
THINK_END = "<think end>"
_WORDS = "用户说的话是:"
QUOTE_IN_LABELS, QUOTE_IN_LANGUAGE = _WORDS, '"'  # stand before the user's own words
SLOTS = {kind: row.thought_slot for kind, row in LABEL_KINDS.items() if row.thought_slot is not None}
VOICE_SLOTS = tuple(kind for kind in SLOTS if kind in VOICE_KINDS)
_CLOSING = "我应该综合用户的语义和副语言信息给出专业且对应的回答"

_LABEL_FORM = re.compile(
    re.escape(_WORDS)
    + r"(?P<transcript>.*),"
    + ",".join(f"{name}<(?P<{kind}>[^<>]*)>" for kind, name in SLOTS.items())
    + ","
    + re.escape(_CLOSING),
    re.DOTALL,
)
_SALVAGE = {kind: re.compile(rf"{name[:-1]}\s*[:：]\s*<?([^<>,，]*)>?") for kind, name in SLOTS.items()}
_SALVAGE_WORDS = re.compile(
    rf"{_WORDS[:-1]}\s*[:：](.*?)(?:[,，]\s*{next(iter(SLOTS.values()))[:-1]}|$)", re.DOTALL
)
_BEGIN_LIKE = re.compile(r"\s*<\s*think\s*>")
_CUT_TAG = re.compile(r"<[^<>\s]*")
_END_LIKE = re.compile(r"<\s*/?\s*think[\s_]*end\s*>|<\s*/\s*think\s*>")


class LabelThought(LabelValues):
    """A thought of transcript and labels. ``None`` is unknown; without ``reply_emotion`` it is neutral."""

    kinds = ("transcript", *SLOTS)
    transcript: str

    def __init__(self, transcript: str, *values: str | None, **named: str | None) -> None:
        super().__init__(transcript, *values, **named)

    @classmethod
    def from_labels(cls, transcript: str, labels: Labels, reply_emotion: str | None = None) -> LabelThought:
        voice = {kind: getattr(labels, kind) for kind in VOICE_SLOTS}
        return cls(transcript, **voice, reply_emotion=reply_emotion)

    @property
    def labels(self) -> Labels:
        return Labels(**{kind: getattr(self, kind) for kind in VOICE_SLOTS})


@dataclass(frozen=True)
class LanguageThought:
    """A thought of free text about words and voice."""

    text: str

    def as_dict(self) -> dict[str, str | None]:
        return {"text": self.text}


Thought = LabelThought | LanguageThought


@dataclass(frozen=True)
class ParsedReply:
    """Parsed output of a model. ``wellformed`` is False when the thought had to be repaired."""

    thought: Thought | None
    reply_emotion: str | None
    reply: str
    wellformed: bool


def format_thought(thought: Thought) -> str:
    """The thought as text, with both think tags."""
    return THINK_BEGIN + _inner(thought) + THINK_END


def format_reply(thought: Thought | None, reply: str) -> str:
    """Thought and reply as one target text. Only the label form puts an emotion tag before the reply."""
    if thought is None:
        return reply
    emotion = f"<{thought.reply_emotion or NEUTRAL_REPLY}>" if isinstance(thought, LabelThought) else ""
    return format_thought(thought) + emotion + reply


def unknown_slots(thought: LabelThought) -> list[LabelKind]:
    """The slots that hold the placeholder, in the order written."""
    return [kind for kind in SLOTS if UNKNOWN_TAG in _slot_tag(thought, kind)]


def parse_reply(text: str) -> ParsedReply:
    """Parse thought, reply emotion and reply of any output of a model; never raises.

    The reply is what follows the last end tag. Without an end tag the reply of a label thought follows its
    closing sentence; an unfinished language thought has no reply, because reasoning must not be spoken, and
    neither has a text that was cut in the middle of a tag.
    """
    before, rest, exact = _split(text)
    if _is_cut_tag(rest.strip(), before is None):
        rest, exact = "", False
    if before is None:
        emotion, reply = split_reply_emotion(rest.strip())
        return ParsedReply(None, emotion, reply.strip(), exact)
    thought, whole = _parse_inner(before)
    emotion, reply = split_reply_emotion(rest.strip())
    return ParsedReply(thought, emotion, reply.strip(), exact and whole)


def unfinished_thought(text: str) -> str:
    """The inside of a thought that may be incomplete, up to its last whole tag; "" without a thought."""
    begin = _BEGIN_LIKE.match(text)
    if begin is None:
        return ""
    end = _END_LIKE.search(text, begin.end())
    if end is not None:
        return text[begin.end() : end.start()]
    inside = text[begin.end() :]
    opened = inside.rfind("<")
    return inside if opened < 0 or ">" in inside[opened:] else inside[:opened]


def unfinished_labels(text: str) -> LabelThought | None:
    """The labels so far in the inside of a label thought that may be incomplete; None for the other form."""
    thought, _ = _parse_inner(text)
    return thought if isinstance(thought, LabelThought) else None


def _inner(thought: Thought) -> str:
    if isinstance(thought, LanguageThought):
        return thought.text
    slots = [f"{name}{_slot_tag(thought, kind)}" for kind, name in SLOTS.items()]
    return ",".join([_WORDS + thought.transcript, *slots, _CLOSING])


def _slot_tag(thought: LabelThought, kind: LabelKind) -> str:
    value = getattr(thought, kind)
    return tag(kind, value or NEUTRAL_REPLY if kind == "reply_emotion" else value)


def _split(text: str) -> tuple[str | None, str, bool]:
    """(inside of the thought or None, the rest, were both tags exact?)"""
    begin = _BEGIN_LIKE.match(text)
    body = text[begin.end() :] if begin else text
    inside, end, rest = body.rpartition(THINK_END)
    if end:
        return inside, rest, begin is not None and begin.group().strip() == THINK_BEGIN
    ends = list(_END_LIKE.finditer(body))
    if ends:
        return body[: ends[-1].start()], body[ends[-1].end() :], False
    if begin is None:
        return None, text, True
    inside, closing, rest = body.rpartition(_CLOSING)
    if closing:
        return inside + closing, rest, False
    return body, "", False


def _is_cut_tag(rest: str, is_start: bool) -> bool:
    """Is the rest a part of a tag alone: of a thought, of its end, or of the reply's emotion?"""
    if is_start:
        return bool(rest) and THINK_BEGIN.startswith(rest)
    return bool(rest) and (THINK_END.startswith(rest) or _CUT_TAG.fullmatch(rest) is not None)


def _parse_inner(inside: str) -> tuple[Thought, bool]:
    if not inside.lstrip().startswith(_WORDS[:-1]):
        return LanguageThought(inside.strip()), bool(inside.strip())
    found = _LABEL_FORM.fullmatch(inside.strip())
    if found:
        slots = {kind: canonical(kind, found[kind]) for kind in SLOTS}
        readable = all(slots[kind] is not None or found[kind] == "&&" for kind in SLOTS)
        return LabelThought(found["transcript"], **slots), readable
    words = _SALVAGE_WORDS.search(inside)
    matches = {kind: pattern.search(inside) for kind, pattern in _SALVAGE.items()}
    slots = {kind: canonical(kind, match[1]) if match else None for kind, match in matches.items()}
    return LabelThought(words[1].strip() if words else "", **slots), False
