"""Formatting and parsing of the output of understanding tasks: transcript and labels as one string."""

from __future__ import annotations

from dataclasses import dataclass

from echat.dialogue.labels import VALUES, LabelKind, Labels, canonical, split_trailing_tags, tag
from echat.dialogue.tasks import Task

REPLY_BEGIN = "<开始回答>"


@dataclass(frozen=True)
class ParsedUnderstanding:
    """Words, labels and (transcribe-then-answer only) reply of an understanding output."""

    text: str
    labels: Labels
    reply: str | None = None


def format_understanding(
    task: Task, text: str | None, labels: Labels | None, reply: str | None = None
) -> str:
    """The target, e.g. ``i am home<HAPPY><ADULT><FEMALE>``; unknown labels become the placeholder."""
    if not task.transcribes:
        words = ""
    elif text is None:
        raise ValueError(
            f"task {task.name}: expected the words of the user turn, found none; give UserTurn(text=...)"
        )
    else:
        words = text
    if task.target == "answered":
        if reply is None:
            raise ValueError(f"task {task.name}: expected a reply, found none; give AssistantTurn(text=...)")
        return words + REPLY_BEGIN + reply
    known = labels or Labels()
    return words + "".join(tag(kind, getattr(known, kind)) for kind in task.labels)


def parse_understanding(task: Task, text: str) -> ParsedUnderstanding:
    """Parse an understanding output; never raises. Missing and unreadable tags are unknown labels.

    As many tags as the task asks for are read in its order; otherwise each tag goes to the first open kind
    that knows it.
    """
    words, begin, reply = text.partition(REPLY_BEGIN)
    if begin:
        return ParsedUnderstanding(words.strip(), Labels(), reply.strip())
    if not task.labels:
        return ParsedUnderstanding(text.strip(), Labels())
    words, tags = split_trailing_tags(text)
    return ParsedUnderstanding(words, _assign(task.labels, tags))


def _assign(kinds: tuple[LabelKind, ...], tags: list[str]) -> Labels:
    if len(tags) == len(kinds):
        pairs = list(zip(kinds, tags, strict=True))
    else:
        pairs, left = [], list(kinds)
        for word in tags:
            home = next((kind for kind in left if canonical(kind, word) in _closed(kind)), None)
            if home is not None:
                left.remove(home)
                pairs.append((home, word))
    return Labels(**{kind: canonical(kind, word) for kind, word in pairs})


def _closed(kind: LabelKind) -> tuple[str, ...]:
    """Values that identify the kind; ``other`` could be anything's."""
    return tuple(value for value in VALUES[kind] if value != "other")
