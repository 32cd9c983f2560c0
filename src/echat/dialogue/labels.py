"""Labels of a voice (age, gender, emotion, sound event, style) and their ``<TAG>`` spelling.

A label is a lower-case canonical word, or ``None`` when it is unknown. The tag is how the model writes it.
Spelling varies between corpora and weights (``<ANGER>``/``<ANGRY>``, ``<screaming>``, ``<YOUTH>``), so
reading ignores letter case and knows the aliases; writing always uses one spelling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

AGES = ("child", "adult", "old")
GENDERS = ("male", "female")
EMOTIONS = ("neutral", "happy", "sad", "angry", "fear", "disgust", "surprise", "other")
SOUND_EVENTS = (
    "none",
    "laugh",
    "cough",
    "cry",
    "scream",
    "sigh",
    "throat_clearing",
    "sneeze",
    "breath",
    "other",
)
STYLES = ("新闻科普", "恐怖故事", "童话故事", "客服", "诗歌散文", "有声书", "日常口语", "其他")
REPLY_EMOTIONS = (
    "愉悦",
    "抱歉",
    "开心",
    "愤怒",
    "惊讶",
    "厌恶",
    "悲伤",
    "害怕",
    "哭腔",
    "安慰鼓励",
    "中立",
)
REPLY_EMOTIONS_IN_ENGLISH = {  # to be shown; models write the words above
    "愉悦": "cheerful",
    "抱歉": "sorry",
    "开心": "happy",
    "愤怒": "angry",
    "惊讶": "surprised",
    "厌恶": "disgusted",
    "悲伤": "sad",
    "害怕": "afraid",
    "哭腔": "tearful",
    "安慰鼓励": "comforting",
    "中立": "neutral",
}
STYLES_IN_ENGLISH = {
    "新闻科普": "news and science",
    "恐怖故事": "horror story",
    "童话故事": "fairy tale",
    "客服": "customer service",
    "诗歌散文": "poetry and prose",
    "有声书": "audiobook",
    "日常口语": "everyday speech",
    "其他": "other",
}
NEUTRAL_REPLY = "中立"
UNKNOWN_TAG = "<&&>"

LabelKind = Literal["age", "gender", "emotion", "sound_event", "style", "reply_emotion"]
KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
VALUES: dict[LabelKind, tuple[str, ...]] = {
    "age": AGES,
    "gender": GENDERS,
    "emotion": EMOTIONS,
    "sound_event": SOUND_EVENTS,
    "style": STYLES,
    "reply_emotion": REPLY_EMOTIONS,
}
# Where the tag is not simply the upper-case label.
_TAG_WORDS: dict[tuple[str, str], str] = {
    ("emotion", "angry"): "ANGER",
    ("sound_event", "scream"): "SCREAMING",
    ("sound_event", "throat_clearing"): "THROAT CLEARING",
}
_ALIASES: dict[LabelKind, dict[str, str]] = {
    "age": {"youth": "adult", "middle_age": "adult", "middle": "adult", "elderly": "old"},
    "gender": {"man": "male", "woman": "female"},
    "emotion": {"anger": "angry", "happiness": "happy", "sadness": "sad", "surprised": "surprise"},
    "sound_event": {
        "screaming": "scream",
        "laughter": "laugh",
        "crying": "cry",
        "throatclearing": "throat_clearing",
    },
    "style": {
        "朗读": "新闻科普",
        "科普百科": "新闻科普",
        "悬疑恐怖": "恐怖故事",
        "诗歌": "诗歌散文",
        "散文": "诗歌散文",
        "武侠评书": "有声书",
        "小说": "有声书",
        "历史": "有声书",
        "科幻": "有声书",
        "对话": "日常口语",
        "口语": "日常口语",
        "幽默": "其他",
    },
    "reply_emotion": {},
}
_TAG = re.compile(r"<([^<>]*)>")
_TRAILING_TAGS = re.compile(r"(?:\s*<[^<>]*>)+\s*$")


@dataclass(frozen=True)
class Labels:
    """What a voice tells besides its words.

    ``None`` is "not known"; ``sound_event="none"`` is "known to be absent".
    """

    age: str | None = None
    gender: str | None = None
    emotion: str | None = None
    sound_event: str | None = None
    style: str | None = None

    def __post_init__(self) -> None:
        for kind in ("age", "gender", "emotion", "sound_event", "style"):
            value = getattr(self, kind)
            if value is not None and value not in VALUES[kind]:
                raise ValueError(
                    f"label {kind}: expected one of {', '.join(VALUES[kind])} or None, found {value!r}; "
                    "canonical() turns other spellings into these"
                )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Labels:
        """Labels of a manifest row. Spellings are canonicalised; words no table knows become unknown.

        A row with words but without a sound event is speech alone, hence ``"none"``; without words the event
        is unknown.
        """
        event = canonical("sound_event", record.get("sound_event"))
        if event is None and not record.get("sound_event") and record.get("text"):
            event = "none"
        return cls(
            age=canonical("age", record.get("age")),
            gender=canonical("gender", record.get("gender")),
            emotion=canonical("emotion", record.get("emotion")),
            sound_event=event,
            style=canonical("style", record.get("style")),
        )


def canonical(kind: LabelKind, spelling: str | None) -> str | None:
    """The canonical label of a known spelling, with or without ``<>``; ``None`` for unknown, empty, ``&&``.

    Sound events are an open set in the released weights' data: a name outside the table is ``"other"``.
    """
    if spelling is None:
        return None
    word = spelling.strip().removeprefix("<").removesuffix(">").strip().lower()
    if word in ("", "&&", "null") or (word == "none" and kind != "sound_event"):
        return None
    key = re.sub(r"[\s-]+", "_", word)
    key = _ALIASES[kind].get(key, key)
    if key in VALUES[kind]:
        return key
    return "other" if kind == "sound_event" else None


def tag(kind: LabelKind, label: str | None) -> str:
    """``<TAG>`` of a canonical label, or the unknown placeholder for ``None``."""
    if label is None:
        return UNKNOWN_TAG
    if label not in VALUES[kind]:
        raise ValueError(f"label {kind}: expected one of {', '.join(VALUES[kind])}, found {label!r}")
    return f"<{_TAG_WORDS.get((kind, label), label.replace('_', ' ').upper())}>"


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
    """The known cues in English, e.g. ``"sad adult female cough"``; empty when nothing is known."""
    event = None if labels.sound_event == "none" else labels.sound_event
    words = (labels.emotion, labels.age, labels.gender, event.replace("_", " ") if event else None)
    return " ".join(word for word in words if word)


def in_english(label: str) -> str:
    """How a label is shown to people: models write some of them in Chinese."""
    return REPLY_EMOTIONS_IN_ENGLISH.get(label) or STYLES_IN_ENGLISH.get(label, label)
