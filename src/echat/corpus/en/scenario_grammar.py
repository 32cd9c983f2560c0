"""Scenario grammar: a template grammar that generates labelled dialogues from everyday situations.

A folder of YAML files holds lists of situations (`Situation`: wordings with slots, and a reply to each cue).
`sample_dialogues` samples labelled dialogues from it; `sample_cue_pairs` samples cue pairs, the same words
twice with labels that need different replies. The same arguments give the same dialogues.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from echat.corpus.en.situation import CUE_OF_EMOTION, Situation
from echat.corpus.en.thought_template import DescribedUtterance, write_thought
from echat.corpus.synthesis.prosody import EMOTIONS
from echat.corpus.synthesis.sound_events import EVENTS
from echat.dialogue import labels

SPLITS = ("train", "dev", "test")
AGE_SHARES = {"adult": 0.5, "child": 0.25, "old": 0.25}
GENDERS = tuple(sorted(labels.VALUES["gender"]))  # this order: which dialogues a seed gives depends on it
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


@dataclass(frozen=True)
class Dialogue:
    """One generated dialogue, without audio; the fields are those of the corpus record."""

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
    accepted: list[str]  # every appropriate reply
    cue: str  # key of the reply in the situation


def load_scenarios(folder: Path | str | None = None) -> list[Situation]:
    """All situations of a folder of YAML files (by default the shipped ones), by file name and position.

    Raises ScenarioError when a file, a situation, or the collection breaks a rule: ids, replies and
    sentences are unique over all files.
    """
    return list(_load(Path(folder) if folder is not None else Path(__file__).parent / "scenarios"))


def appropriate_reply(situation: Situation, utterance: DescribedUtterance) -> tuple[str, str, str]:
    """(cue, reply, reply emotion) for an utterance. Precedence: sound event, child, old, emotion, neutral.

    A label that the situation has no reply for is passed over.
    """
    cues = (utterance.sound_event or "", utterance.age, CUE_OF_EMOTION[utterance.emotion], "neutral")
    cue = next(cue for cue in cues if cue in situation.replies)
    return cue, situation.replies[cue], REPLY_EMOTION[cue]


def sample_dialogues(
    split: str, count: int, seed: int = 0, situations: Sequence[Situation] | None = None
) -> Iterator[Dialogue]:
    """Sample `count` dialogues of a split: emotions and situations uniform, ages and events by their shares.

    train and dev use `patterns` and share no sentence; test uses `held_out` only.
    """
    sampler = _DialogueSampler(split, seed, situations)
    for index in range(count):
        utterance, situation, pattern = sampler.sample()
        yield _dialogue(f"{split}-{seed}-{index:06d}", situation, pattern, utterance)


def sample_cue_pairs(
    split: str, count: int, seed: int = 0, situations: Sequence[Situation] | None = None
) -> Iterator[tuple[Dialogue, Dialogue]]:
    """Sample `count` pairs of dialogues with the same words, one label apart, that need different replies.

    The label that differs is the emotion, the age (and with a child the gender) or the sound event.
    """
    sampler = _DialogueSampler(split, seed, situations)
    for index in range(count):
        utterance, situation, pattern = sampler.sample()
        first = _dialogue(f"{split}-pair-{seed}-{index:06d}-a", situation, pattern, utterance)
        other = sampler.change_one_label(utterance, situation, first.reply)
        yield first, _dialogue(f"{split}-pair-{seed}-{index:06d}-b", situation, pattern, other)


def _dialogue(key: str, situation: Situation, pattern: str, utterance: DescribedUtterance) -> Dialogue:
    cue, reply, reply_emotion = appropriate_reply(situation, utterance)
    return Dialogue(
        **vars(utterance),
        key=key,
        situation=situation.id,
        pattern=pattern,
        reply=reply,
        reply_emotion=reply_emotion,
        thought=write_thought(utterance, situation.summary, cue),
        accepted=[reply],
        cue=cue,
    )


def _shuffled_cycle(items: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Endless sampling without replacement: no item comes again before all others have."""
    while True:
        yield from reversed(rng.sample(items, len(items)))


class _DialogueSampler:
    """Samples words and labels evenly; the state of one stream of dialogues."""

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
            name: _shuffled_cycle(list(made), self.rng) for name, made in wordings.items() if made
        }
        self.sentences = {
            pattern: _shuffled_cycle(sentences, self.rng)
            for made in wordings.values()
            for pattern, sentences in made.items()
        }
        self.emotions = _shuffled_cycle(EMOTIONS, self.rng)
        self.used: Counter[str] = Counter()

    def sample(self) -> tuple[DescribedUtterance, Situation, str]:
        """Labels first, then the least used situation that has replies to them, then its wording."""
        able: list[Situation] = []
        while not able:
            emotion, event = next(self.emotions), self._event()
            able = [s for s in self.situations if emotion in s.emotions and event in (None, *s.events)]
        situation = min(able, key=lambda one: (self.used[one.id], self.rng.random()))
        self.used[situation.id] += 1
        pattern = next(self.patterns[situation.id])
        age = self.rng.choices(list(AGE_SHARES), list(AGE_SHARES.values()))[0]
        utterance = DescribedUtterance(next(self.sentences[pattern]), age, self._gender(age), emotion, event)
        return utterance, situation, pattern

    def change_one_label(
        self, utterance: DescribedUtterance, situation: Situation, reply: str
    ) -> DescribedUtterance:
        """The same words with one label changed such that `reply` is no longer appropriate."""
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
            [other for other in kind if appropriate_reply(situation, other)[1] != reply] for kind in changes
        ]
        return self.rng.choice(self.rng.choice([kind for kind in kinds if kind]))

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
    owners: dict[str, str] = {}  # what must be unique -> where it was found
    for path in paths:
        for situation in _read(path):
            _register(owners, path.name, situation)
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


def _register(owners: dict[str, str], file: str, situation: Situation) -> None:
    """Register ids, replies and sentences, which must be unique over all files."""
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
