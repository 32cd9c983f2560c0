"""One everyday situation of the scenario grammar: wordings, emotions and replies, validated on loading."""

import hashlib
import itertools
import re
from string import Formatter
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from echat.corpus.synthesis.prosody import EMOTIONS
from echat.corpus.synthesis.sound_events import EVENTS

# A cue is the paralinguistic label, or group of emotions, that decides which reply is appropriate.
CUE_OF_EMOTION = {
    "neutral": "neutral",
    "sad": "distress",
    "fear": "distress",
    "angry": "angry",
    "happy": "bright",
    "surprise": "bright",
}
CUES = ("neutral", "distress", "angry", "bright", "child", "old", *EVENTS)
DEV_ONE_IN = 12  # of the sentences made by `patterns`, one in so many is kept for dev
MIN_SENTENCES = 60

_SENTENCE = re.compile(r"[a-z']+( [a-z']+)*")
_REPLY = re.compile(r"[a-z']+(,? [a-z']+)*")


class Situation(BaseModel):
    """One everyday situation: how people word it, which emotions it allows, and the reply to each cue."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    topic: str
    summary: str = Field(alias="gist")  # follows "The user" in a thought
    slots: dict[str, list[str]]
    patterns: list[str]
    held_out: list[str]  # wordings never used in training
    emotions: list[str]
    replies: dict[str, str]  # by cue

    @field_validator("id")
    @classmethod
    def _id_is_snake_case(cls, value: str) -> str:
        _require(re.fullmatch(r"[a-z]+(_[a-z]+)*", value), "a snake_case name", value)
        return value

    @field_validator("summary")
    @classmethod
    def _summary_is_short(cls, value: str) -> str:
        _require(_SENTENCE.fullmatch(value) and _words(value) <= 8, "1 to 8 plain words", value)
        return value

    @field_validator("slots")
    @classmethod
    def _slot_values_are_plain(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, values in value.items():
            varied = len(set(values)) == len(values) >= 2
            _require(varied, f"at least 2 different values in slot {name}", values)
            for text in values:
                _require(_SENTENCE.fullmatch(text), f"plain lower-case words in slot {name}", text)
        return value

    @field_validator("emotions")
    @classmethod
    def _emotions_are_varied(cls, value: list[str]) -> list[str]:
        given = set(value)
        _require(given <= set(EMOTIONS) and len(given) == len(value), f"different ones of {EMOTIONS}", value)
        _require(len(given) >= 4 and "neutral" in given, "at least 4, with neutral", value)
        _require(given & {"sad", "fear"}, "sad or fear among them", value)
        _require(given & {"angry", "happy", "surprise"}, "angry, happy or surprise among them", value)
        return value

    @field_validator("replies")
    @classmethod
    def _replies_are_speakable(cls, value: dict[str, str]) -> dict[str, str]:
        for cue, reply in value.items():
            _require(cue in CUES, f"one of the cues {CUES}", cue)
            _require(_REPLY.fullmatch(reply), f"lower-case words and commas in {cue}", reply)
            _require(5 <= _words(reply) <= 13, f"5 to 13 words in {cue}", reply)
        return value

    @model_validator(mode="after")
    def _wordings_are_enough(self) -> Self:
        for field, least, most in (("patterns", 10, 99), ("held_out", 3, 3)):
            given = getattr(self, field)
            expected = f"{field}: {least} different wordings" + (" or more" if most > least else "")
            _require(least <= len(set(given)) == len(given) <= most, expected, given)
            for pattern in given:
                self._check_pattern(field, pattern)
        count = len(set(self.sentences("patterns")))
        _require(count >= MIN_SENTENCES, f"patterns: {MIN_SENTENCES} distinct sentences or more", count)
        shared = set(self.sentences("patterns")) & set(self.sentences("held_out"))
        _require(not shared, "held_out: sentences that no pattern makes", sorted(shared))
        return self

    def _check_pattern(self, field: str, pattern: str) -> None:
        names = slot_names(pattern)
        unknown = set(names) - set(self.slots)
        _require(not unknown, f"{field}: slots {sorted(self.slots)} in '{pattern}'", sorted(unknown))
        _require(len(set(names)) == len(names), f"{field}: each slot once", pattern)
        for sentence in self.expand(pattern):
            plain = _SENTENCE.fullmatch(sentence)
            _require(plain, f"{field}: lower-case words and apostrophes only", sentence)
            _require(4 <= _words(sentence) <= 12, f"{field}: sentences of 4 to 12 words", sentence)

    @model_validator(mode="after")
    def _replies_match_emotions(self) -> Self:
        needed = {"child", "old"} | {CUE_OF_EMOTION[emotion] for emotion in self.emotions} | {"distress"}
        found = set(self.replies) - set(EVENTS)
        _require(found == needed, f"replies: the cues {sorted(needed)} besides sounds", sorted(found))
        _require(len(self.events) >= 2, f"replies: at least two of the sounds {EVENTS}", self.events)
        return self

    @property
    def events(self) -> tuple[str, ...]:
        """The sound events this situation has a reply for."""
        return tuple(event for event in EVENTS if event in self.replies)

    def expand(self, pattern: str) -> list[str]:
        """Every sentence a wording makes with the values of its slots."""
        names = slot_names(pattern)
        values = itertools.product(*(self.slots[name] for name in names))
        return [pattern.format(**dict(zip(names, chosen, strict=True))) for chosen in values]

    def sentences(self, field: str) -> list[str]:
        """Every sentence of `patterns` or `held_out`."""
        return [sentence for pattern in getattr(self, field) for sentence in self.expand(pattern)]

    def wordings(self, split: str) -> dict[str, list[str]]:
        """Pattern id -> its sentences in a split; patterns without any are left out."""
        if split == "test":
            return {f"{self.id}.h{i}": self.expand(pattern) for i, pattern in enumerate(self.held_out)}
        made = {f"{self.id}.p{i}": self.expand(pattern) for i, pattern in enumerate(self.patterns)}
        kept = {name: [s for s in made[name] if _is_dev(s) == (split == "dev")] for name in made}
        return {name: sentences for name, sentences in kept.items() if sentences}


def slot_names(pattern: str) -> list[str]:
    """The slots of a wording, in order."""
    return [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]


def _words(text: str) -> int:
    return len(text.split())


def _is_dev(sentence: str) -> bool:
    """Whether a sentence is in the dev split: by a hash of it, so that train and dev never share one."""
    return int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4]) % DEV_ONE_IN == 0


def _require(holds: Any, expected: str, found: object) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, found {found!r}")
