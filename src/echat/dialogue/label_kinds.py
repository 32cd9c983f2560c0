"""THE table of label kinds: paralinguistic labels of the user's voice, and the emotion of the reply.

A new kind is one row. Everything else derives from it: fields of manifests and published records, statistics,
which tasks a record can serve, the slots of a label thought, the heads and CTC targets of the encoder, the
evaluation of understanding, what the studio shows. (The web page repeats order and captions; a test holds it
equal. A task that asks for the kind is a row of ``tasks.py``.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LabelSpec:
    """One row: a kind of label, its values, and where it occurs."""

    name: str
    """Also its field of a manifest and of a wire event."""
    values: tuple[str, ...]
    """Canonical labels, in the order of the classes of the encoder's head."""
    shown: int
    """Rank in what people see: page, studio, reports, a voice described in words."""
    caption: str
    """Heading on the web page."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other words -> label."""
    tag_words: Mapping[str, str] = field(default_factory=dict)
    """Label -> word of its tag, where that is not the upper-case label."""
    in_english: Mapping[str, str] = field(default_factory=dict)
    """Label -> how it is shown, for labels in Chinese."""
    of_reply: bool = False
    """Is it about the reply instead of the user's voice?"""
    other: str | None = None
    """Label of words that are not in the table; None: unknown."""
    unmarked: str | None = None
    """Label that calls for no reply of its own; None: the kind never does."""
    osum_field: str | None = None
    """Field of ``extra`` in a published record."""
    osum_respelled: bool = False
    """Does published training text write aliases as the label's own tag?"""
    thought_slot: str | None = None
    """What stands before the label in a label thought; None: the thought does not name it."""
    is_ctc_target: bool = False
    """Does the encoder predict it: by a head, and in front of the words of its CTC target?"""
    is_evaluated: bool = False
    """Does the evaluation of understanding ask for it, by the task of this kind alone?"""


_ROWS = (
    LabelSpec(
        "age",
        ("child", "adult", "old"),
        shown=2,
        caption="age",
        aliases={"youth": "adult", "middle_age": "adult", "middle": "adult", "elderly": "old"},
        unmarked="adult",
        osum_field="age",
        osum_respelled=True,
        thought_slot="年龄为:",
        is_ctc_target=True,
        is_evaluated=True,
    ),
    LabelSpec(
        "gender",
        ("male", "female"),
        shown=3,
        caption="voice",
        aliases={"man": "male", "woman": "female"},
        osum_field="gender",
        thought_slot="性别为:",
        is_ctc_target=True,
        is_evaluated=True,
    ),
    LabelSpec(
        "emotion",
        ("neutral", "happy", "sad", "angry", "fear", "disgust", "surprise", "other"),
        shown=1,
        caption="feeling",
        aliases={"anger": "angry", "happiness": "happy", "sadness": "sad", "surprised": "surprise"},
        tag_words={"angry": "ANGER"},
        unmarked="neutral",
        osum_field="q_emotion",
        thought_slot="情感为:",
        is_ctc_target=True,
        is_evaluated=True,
    ),
    LabelSpec(
        "sound_event",
        ("none", "laugh", "cough", "cry", "scream", "sigh", "throat_clearing", "sneeze", "breath", "other"),
        shown=4,
        caption="sound",
        aliases={
            "screaming": "scream",
            "laughter": "laugh",
            "crying": "cry",
            "throatclearing": "throat_clearing",
        },
        tag_words={"scream": "SCREAMING"},
        other="other",  # an open set in the data of the released weights
        unmarked="none",
        osum_field="caption",
        thought_slot="声音事件为:",
        is_ctc_target=True,
        is_evaluated=True,
    ),
    LabelSpec(
        "style",
        ("新闻科普", "恐怖故事", "童话故事", "客服", "诗歌散文", "有声书", "日常口语", "其他"),
        shown=5,
        caption="style",
        aliases={
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
        in_english={
            "新闻科普": "news and science",
            "恐怖故事": "horror story",
            "童话故事": "fairy tale",
            "客服": "customer service",
            "诗歌散文": "poetry and prose",
            "有声书": "audiobook",
            "日常口语": "everyday speech",
            "其他": "other",
        },
        osum_respelled=True,
    ),
    LabelSpec(
        "reply_emotion",
        (
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
        ),
        shown=6,
        caption="answer",
        in_english={
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
        },
        of_reply=True,
        thought_slot="推测使用的回复情感为:",
    ),
)

LABEL_KINDS: dict[str, LabelSpec] = {row.name: row for row in _ROWS}
