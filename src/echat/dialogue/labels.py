"""Paralinguistic labels of a voice (age, gender, emotion, sound event, style) and their ``<TAG>`` form.

A label is a lower-case canonical word, or ``None`` when it is unknown. The tag is how the model writes it.
Tags vary between corpora and weights (``<ANGER>``/``<ANGRY>``, ``<screaming>``, ``<YOUTH>``), so parsing
ignores case and accepts the aliases; formatting always uses one tag. The kinds and all their values are the
table in ``label_kinds.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from echat.dialogue.label_kinds import LABEL_KINDS

LabelKind = str  # name of a row of the table
KINDS: tuple[LabelKind, ...] = tuple(LABEL_KINDS)
SHOWN_KINDS = tuple(sorted(KINDS, key=lambda kind: LABEL_KINDS[kind].shown))  # as people see them
VOICE_KINDS = tuple(kind for kind, row in LABEL_KINDS.items() if not row.of_reply)
CTC_KINDS = tuple(kind for kind, row in LABEL_KINDS.items() if row.is_ctc_target)
EVALUATED_KINDS = tuple(kind for kind in SHOWN_KINDS if LABEL_KINDS[kind].is_evaluated)
VALUES: dict[LabelKind, tuple[str, ...]] = {kind: row.values for kind, row in LABEL_KINDS.items()}
REPLY_EMOTIONS = VALUES["reply_emotion"]
REPLY_EMOTIONS_IN_ENGLISH = LABEL_KINDS["reply_emotion"].in_english
NEUTRAL_REPLY = "中立"
UNKNOWN_TAG = "<&&>"

_IN_ENGLISH = {label: word for row in LABEL_KINDS.values() for label, word in row.in_english.items()}
_TAG = re.compile(r"<([^<>]*)>")
_TRAILING_TAGS = re.compile(r"(?:\s*<[^<>]*>)+\s*$")


class LabelValues:
    """An immutable record: for each of ``kinds`` an attribute, its label or None where that is unknown."""

    kinds: ClassVar[tuple[LabelKind, ...]]

    def __init__(self, *values: str | None, **named: str | None) -> None:
        given = dict(zip(self.kinds, values)) | named
        if len(values) > len(self.kinds) or not given.keys() <= set(self.kinds):
            raise TypeError(f"expected labels of {', '.join(self.kinds)}, found {', '.join(given)}")
        vars(self).update({kind: given.get(kind) for kind in self.kinds})

    def __getattr__(self, name: str) -> str | None:
        raise AttributeError(f"{type(self).__name__} has no label {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed; replace() makes another one")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        known = (f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({', '.join(known)})"

    def as_dict(self) -> dict[str, str | None]:
        """Every field by name."""
        return dict(vars(self))

    def replace(self, **changes: str | None) -> Self:
        """The same with other values."""
        return type(self)(**{**vars(self), **changes})


class Labels(LabelValues):
    """Paralinguistic labels of a voice.

    ``None`` is "not known"; ``sound_event="none"`` is "known to be absent".
    """

    kinds = VOICE_KINDS

    def __init__(self, *values: str | None, **named: str | None) -> None:
        super().__init__(*values, **named)
        for kind, value in vars(self).items():
            if value is not None and value not in VALUES[kind]:
                raise ValueError(
                    f"label {kind}: expected one of {', '.join(VALUES[kind])} or None, found {value!r}; "
                    "canonical() turns other words into these"
                )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Labels:
        """Labels of a manifest row. Words are canonicalised; those that no table knows become unknown.

        A row with words but without a sound event is speech alone, hence ``"none"``; without words the event
        is unknown.
        """
        found = {kind: canonical(kind, record.get(kind)) for kind in VOICE_KINDS}
        if found["sound_event"] is None and not record.get("sound_event") and record.get("text"):
            found["sound_event"] = "none"
        return cls(**found)

    def has_any(self, kinds: tuple[LabelKind, ...]) -> bool:
        """Is a label of one of the kinds known?"""
        return any(getattr(self, kind) is not None for kind in kinds)


def canonical(kind: LabelKind, word: str | None) -> str | None:
    """The canonical label of a known word, with or without ``<>``; ``None`` for unknown, empty, ``&&``.

    Of a kind that is an open set (sound events) a name outside the table is ``"other"``.
    """
    if word is None:
        return None
    row = LABEL_KINDS[kind]
    word = word.strip().removeprefix("<").removesuffix(">").strip().lower()
    if word in ("", "&&", "null") or (word == "none" and word not in row.values):
        return None
    key = re.sub(r"[\s-]+", "_", word)
    key = row.aliases.get(key, key)
    return key if key in row.values else row.other


def tag(kind: LabelKind, label: str | None) -> str:
    """``<TAG>`` of a canonical label, or the unknown placeholder for ``None``."""
    if label is None:
        return UNKNOWN_TAG
    row = LABEL_KINDS[kind]
    if label not in row.values:
        raise ValueError(f"label {kind}: expected one of {', '.join(row.values)}, found {label!r}")
    return f"<{row.tag_words.get(label, label.replace('_', ' ').upper())}>"


def split_trailing_tags(text: str) -> tuple[str, list[str]]:
    """``"words<SAD> <OLD>"`` → ``("words", ["SAD", "OLD"])``: the tags at the end and what stands before."""
    found = _TRAILING_TAGS.search(text)
    if found is None:
        return text.strip(), []
    return text[: found.start()].strip(), _TAG.findall(found.group())


def split_reply_emotion(text: str) -> tuple[str | None, str]:
    """A reply's leading emotion tag and the rest. Other leading tags stay part of the reply."""
    found = _TAG.match(text)
    if found and found.group(1) in REPLY_EMOTIONS:
        return found.group(1), text[found.end() :]
    return None, text


def describe_voice(labels: Labels) -> str:
    """The known labels in English, e.g. ``"sad adult female cough"``; empty when nothing is known."""
    words = (getattr(labels, kind) for kind in SHOWN_KINDS if kind in CTC_KINDS)
    return " ".join(word.replace("_", " ") for word in words if word and word != "none")


def in_english(label: str) -> str:
    """How a label is shown to people: models write some of them in Chinese."""
    return _IN_ENGLISH.get(label, label)
