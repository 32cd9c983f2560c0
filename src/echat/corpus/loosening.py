"""Looser texts for a language model that learns from few patterns: what it copies it must not know by heart.

`loosen` says a dialogue in a freer wording, `scatter` in any order, so that the reply hangs on the words that
matter and not on a pattern; `jumble` makes texts of words in no order, so that writing down what was said is
learnt as copying. None is ever spoken.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from echat.corpus.scenarios import AGES, GENDERS, Dialogue
from echat.corpus.situation import EMOTIONS, EVENTS

OPENINGS = (
    "well", "so", "hey", "listen", "you know", "i mean", "guess what", "hello", "oh", "actually", "honestly",
    "by the way", "can you believe it", "i wanted to tell you", "the thing is", "what a day", "today",
)  # fmt: skip
ENDINGS = (
    "you know", "today", "again", "this week", "and that is that", "right now", "i think", "what do you say",
    "this morning", "last night", "after all", "as always", "and now", "at last",
)  # fmt: skip
MAX_DROPPED = 0.2  # share of a text's words that may go
MAX_SCATTERED = 0.4  # the same for a text whose order is given up
MAX_STRANGE = 1  # words from elsewhere that may come in
PSEUDO_SHARE = 0.25  # of the words of a jumble: made of halves of two words
JUMBLE_WORDS = (3, 13)


def loosen(dialogue: Dialogue, words: Sequence[str], rng: random.Random) -> Dialogue:
    """The dialogue with words dropped, turned round, or put before and after; labels and reply stay."""
    said = dialogue.text.split()
    if rng.random() < 0.5:
        kept = [word for word in said if rng.random() > rng.uniform(0.0, MAX_DROPPED)]
        said = kept if len(kept) >= 3 else said
    if rng.random() < 0.25:
        turn = rng.randrange(len(said))
        said = said[turn:] + said[:turn]
    for _ in range(rng.randint(0, MAX_STRANGE)):
        said.insert(rng.randint(0, len(said)), rng.choice(words))
    if rng.random() < 0.35:
        said = [rng.choice(OPENINGS), *said]
    if rng.random() < 0.35:
        said = [*said, rng.choice(ENDINGS)]
    return _saying(dialogue, said)


def scatter(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """The dialogue with some words dropped and the others in any order; labels and reply stay."""
    said = dialogue.text.split()
    share = rng.uniform(0.0, MAX_SCATTERED)
    kept = [word for word in said if rng.random() > share]
    said = kept if len(kept) >= 3 else said
    rng.shuffle(said)
    return _saying(dialogue, said)


def _saying(dialogue: Dialogue, said: Sequence[str]) -> Dialogue:
    text = " ".join(said)
    return replace(dialogue, text=text, thought=dialogue.thought.replace(dialogue.text, text))


def jumble(key: str, words: Sequence[str], rng: random.Random) -> dict[str, str | None]:
    """A record of random words and labels, without a reply."""
    count = rng.randint(*JUMBLE_WORDS)
    said = [_pseudo(words, rng) if rng.random() < PSEUDO_SHARE else rng.choice(words) for _ in range(count)]
    age = rng.choice(list(AGES))
    return {
        "key": key,
        "text": " ".join(said),
        "emotion": rng.choice(EMOTIONS),
        "gender": None if age == "child" else rng.choice(GENDERS),
        "age": age,
        "sound_event": rng.choice((None, *EVENTS)),
    }


def _pseudo(words: Sequence[str], rng: random.Random) -> str:
    first, second = rng.choice(words), rng.choice(words)
    return first[: (len(first) + 1) // 2] + second[len(second) // 2 :]
