"""The scenario grammar: everyday situations, their wordings, and the reply that fits each cue.

A folder of YAML files holds lists of situations (`Situation` says what one is and which rules it keeps).
`sample_dialogues` draws labelled dialogues from it, `sample_cue_pairs` the same words twice with cues that
need different replies. Everything is decided by the arguments: the same call gives the same dialogues.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import yaml
from pydantic import ValidationError

from echat.corpus.en.situation import CUE_OF_EMOTION, EMOTIONS, EVENTS, Situation
from echat.corpus.en.thought_template import DescribedUtterance, write_thought

SPLITS = ("train", "dev", "test")
AGES = {"adult": 0.5, "child": 0.25, "old": 0.25}  # share of each
GENDERS = ("female", "male")
NO_EVENT_SHARE = 0.55
# The tone of the spoken answer (the model's closed set), by the cue it answers.
REPLY_EMOTION = {
    "neutral": "中立",
    "distress": "安慰鼓励",
    "angry": "抱歉",
    "bright": "开心",
    "child": "愉悦",
    "old": "愉悦",
    "cough": "安慰鼓励",
    "laugh": "开心",
    "sigh": "安慰鼓励",
    "sneeze": "安慰鼓励",
}


class ScenarioError(ValueError):
    """A scenario file breaks a rule; the message names file, situation and field."""


class VoiceLabels(Protocol):
    """What the fitting reply depends on besides the words; `echat.dialogue` labels have this shape."""

    @property
    def age(self) -> str | None: ...
    @property
    def emotion(self) -> str | None: ...
    @property
    def sound_event(self) -> str | None: ...


@dataclass(frozen=True)
class Dialogue:
    """One made dialogue, before anybody speaks it; the fields are those of the corpus record."""

    key: str
    text: str  # the user's words: lower case, no punctuation
    emotion: str
    gender: str | None  # None for a child
    age: str
    sound_event: str | None
    situation: str
    pattern: str
    reply: str
    reply_emotion: str
    thought: str  # language form
    accepted: list[str]  # every reply that fits situation and cues
    cue: str  # key of the reply in the situation


def load_scenarios(folder: Path | str | None = None) -> list[Situation]:
    """All situations of a folder of YAML files (the shipped ones by default), in order of file and place.

    Raises ScenarioError when a file, a situation, or the collection breaks a rule: ids, replies and
    sentences are unique over all files.
    """
    return list(_load(Path(folder) if folder is not None else Path(__file__).parent / "scenarios"))


def appropriate_reply(situation: Situation, labels: VoiceLabels) -> tuple[str, str, str]:
    """(cue, reply, reply emotion) for the labels. Precedence: sound event, child, old, emotion.

    A sound or emotion that the situation has no reply for gives way to the next cue, in the end to neutral.
    """
    emotion = CUE_OF_EMOTION.get(labels.emotion or "neutral", "neutral")
    cues = (labels.sound_event, labels.age, emotion, "neutral")
    cue = next(cue for cue in cues if cue in situation.replies)
    assert cue is not None
    return cue, situation.replies[cue], REPLY_EMOTION[cue]


def accepted_replies(situation: Situation, labels: VoiceLabels) -> list[str]:
    """Every reply that fits the situation and the labels: the one the precedence rule names, and no other."""
    return [appropriate_reply(situation, labels)[1]]


def sample_dialogues(
    split: str, count: int, seed: int = 0, situations: Sequence[Situation] | None = None
) -> Iterator[Dialogue]:
    """Draw `count` dialogues of a split: emotions and situations uniform, ages and sounds by their shares.

    train and dev use `patterns` and share no sentence; test uses `held_out` only.
    """
    sampler = _DialogueSampler(split, seed, situations)
    for index in range(count):
        utterance, situation, pattern = sampler.draw()
        yield _dialogue(f"{split}-{seed}-{index:06d}", situation, pattern, utterance)


def sample_cue_pairs(
    split: str, count: int, seed: int = 0, situations: Sequence[Situation] | None = None
) -> Iterator[tuple[Dialogue, Dialogue]]:
    """Draw `count` pairs of dialogues with the same words, one label apart, that need different replies.

    The label that differs is the emotion, the age (and with a child the gender) or the sound event.
    """
    sampler = _DialogueSampler(split, seed, situations)
    for index in range(count):
        utterance, situation, pattern = sampler.draw()
        first = _dialogue(f"{split}-pair-{seed}-{index:06d}-a", situation, pattern, utterance)
        other = sampler.change_one_label(utterance, situation, first.reply)
        yield first, _dialogue(f"{split}-pair-{seed}-{index:06d}-b", situation, pattern, other)


def _dialogue(key: str, situation: Situation, pattern: str, utterance: DescribedUtterance) -> Dialogue:
    cue, reply, reply_emotion = appropriate_reply(situation, utterance)
    return Dialogue(
        key=key,
        text=utterance.text,
        emotion=utterance.emotion,
        gender=utterance.gender,
        age=utterance.age,
        sound_event=utterance.sound_event,
        situation=situation.id,
        pattern=pattern,
        reply=reply,
        reply_emotion=reply_emotion,
        thought=write_thought(utterance, situation.gist, cue),
        accepted=accepted_replies(situation, utterance),
        cue=cue,
    )


_Item = TypeVar("_Item")


class _ShuffledCycle(Generic[_Item]):
    """Endless draws in shuffled rounds: no card comes again before all others have."""

    def __init__(self, cards: Sequence[_Item], rng: random.Random) -> None:
        self.cards, self.rng = list(cards), rng
        self.round: list[_Item] = []

    def draw(self) -> _Item:
        if not self.round:
            self.round = self.rng.sample(self.cards, len(self.cards))
        return self.round.pop()


class _DialogueSampler:
    """Draws words and labels evenly; the state of one stream of dialogues."""

    def __init__(self, split: str, seed: int, situations: Sequence[Situation] | None) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {SPLITS}, found {split!r}")
        self.rng = random.Random(f"{split}:{seed}")
        known = situations if situations is not None else load_scenarios()
        wordings = {situation.id: situation.wordings(split) for situation in known}
        self.situations = [situation for situation in known if wordings[situation.id]]
        if not self.situations:
            raise ValueError(f"split {split}: expected at least one situation with sentences, found none")
        self.patterns = {
            name: _ShuffledCycle(list(made), self.rng) for name, made in wordings.items() if made
        }
        self.sentences = {
            pattern: _ShuffledCycle(sentences, self.rng)
            for made in wordings.values()
            for pattern, sentences in made.items()
        }
        self.emotions = _ShuffledCycle(EMOTIONS, self.rng)
        self.used: Counter[str] = Counter()

    def draw(self) -> tuple[DescribedUtterance, Situation, str]:
        """Labels first, then the least used situation that knows them, then its wording."""
        emotion, event = self.emotions.draw(), self._event()
        while not (
            able := [s for s in self.situations if emotion in s.emotions and event in (None, *s.events)]
        ):
            emotion, event = self.emotions.draw(), self._event()
        situation = min(able, key=lambda one: (self.used[one.id], self.rng.random()))
        self.used[situation.id] += 1
        pattern = self.patterns[situation.id].draw()
        age = self.rng.choices(list(AGES), list(AGES.values()))[0]
        utterance = DescribedUtterance(self.sentences[pattern].draw(), age, self._gender(age), emotion, event)
        return utterance, situation, pattern

    def change_one_label(
        self, utterance: DescribedUtterance, situation: Situation, reply: str
    ) -> DescribedUtterance:
        """The same words with one label changed such that `reply` no longer fits."""
        changes = [
            [replace(utterance, emotion=emotion) for emotion in situation.emotions],
            [
                replace(utterance, age=age, gender=utterance.gender or self._gender(age))
                for age in ("adult", "old")
            ]
            + [replace(utterance, age="child", gender=None)],
            [replace(utterance, sound_event=event) for event in (None, *situation.events)],
        ]
        kinds = [
            [other for other in kind if reply not in accepted_replies(situation, other)] for kind in changes
        ]
        return self.rng.choice(self.rng.choice([kind for kind in kinds if kind]))

    def _able(self, emotion: str, event: str | None) -> list[Situation]:
        """The situations that have a reply for both."""
        return [one for one in self.situations if emotion in one.emotions and event in (None, *one.events)]

    def _event(self) -> str | None:
        return None if self.rng.random() < NO_EVENT_SHARE else self.rng.choice(EVENTS)

    def _gender(self, age: str) -> str | None:
        return None if age == "child" else self.rng.choice(GENDERS)


@cache
def _load(folder: Path) -> tuple[Situation, ...]:
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ScenarioError(f"{folder}: expected a folder with scenario files (*.yaml), found none")
    situations: list[Situation] = []
    owners: dict[str, str] = {}  # what must be unique -> where it stands
    for path in paths:
        for situation in _read(path):
            _claim(owners, path.name, situation)
            situations.append(situation)
    return tuple(situations)


def _read(path: Path) -> list[Situation]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path.name}: expected YAML, found: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ScenarioError(f"{path.name}: expected a list of situations, found {type(rows).__name__}")
    return [_parse(path.name, index, row) for index, row in enumerate(rows)]


def _parse(file: str, index: int, row: dict[str, object]) -> Situation:
    try:
        return Situation.model_validate(row)
    except ValidationError as error:
        where = f"{file}, situation {row.get('id', f'number {index + 1}')}"
        faults = ((".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors())
        lines = [f"{where}, {field or 'situation'}: {message}" for field, message in faults]
        raise ScenarioError("\n".join(lines)) from error


def _claim(owners: dict[str, str], file: str, situation: Situation) -> None:
    """Ids, replies and sentences must be the only ones of their kind over all files."""
    claims = [("id", situation.id)]
    claims += [(f"replies.{cue}", reply) for cue, reply in situation.replies.items()]
    for field in ("patterns", "held_out"):
        claims += [(field, sentence) for sentence in set(situation.sentences(field))]
    for field, text in claims:
        where = f"{file}, situation {situation.id}, {field}"
        kind = {"id": "id", "patterns": "sentence", "held_out": "sentence"}.get(field, "reply")
        if claim := owners.get(f"{kind}: {text}"):
            raise ScenarioError(f"{where}: expected a new {kind}, found '{text}', already in {claim}")
        owners[f"{kind}: {text}"] = where
