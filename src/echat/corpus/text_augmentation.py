"""Text augmentation of dialogues: paraphrases, shuffled words, and random words without a reply.

A small model that is trained on the few thousand sentences of the grammar memorises them: it completes a
sentence from its beginning, and errs on any other. `paraphrase` and `shuffle_words` change the wording and
keep labels and reply; texts of random words can only be transcribed from the audio.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from echat.config import Config
from echat.corpus.en.phrases import ENDINGS, OPENINGS
from echat.corpus.en.scenario_grammar import AGE_SHARES, GENDERS, Dialogue, load_scenarios, sample_dialogues
from echat.corpus.recordings import recording_rows
from echat.corpus.synthesis.prosody import EMOTIONS
from echat.corpus.synthesis.sound_events import EVENTS


class AugmentationConfig(Config):
    """How much augmented text a corpus has, written and spoken."""

    paraphrased_share: float = Field(0.5, ge=0, le=1)  # of the dialogues of the set `text`
    shuffled: int = Field(60000, ge=0)  # dialogues without audio, words in random order (text/shuffled.jsonl)
    random_words: int = Field(20000, ge=0)  # texts of random words without audio, in text/manifest.jsonl
    spoken_paraphrases: int = Field(0, ge=0)  # questions of the set `paraphrased`: half of them shuffled
    spoken_random_words: int = Field(0, ge=0)  # texts of the set `random_words`


NO_AUGMENTATION = AugmentationConfig(paraphrased_share=0, shuffled=0, random_words=0)

MAX_DROPPED = 0.2  # share of a text's words that may go
MAX_DROPPED_SHUFFLED = 0.4  # the same for a text whose words are shuffled
MAX_INSERTED = 1  # words from elsewhere that may come in
PSEUDOWORD_SHARE = 0.25  # of random words: made of halves of two words
RANDOM_WORDS = (3, 13)  # fewest and most in a text
SHUFFLED_SHARE = 0.5  # of the set `paraphrased`


def paraphrase(dialogue: Dialogue, words: Sequence[str], rng: random.Random) -> Dialogue:
    """The dialogue with words dropped, rotated, inserted, or put before and after; labels and reply stay."""
    spoken = dialogue.text.split()
    if rng.random() < 0.5:
        kept = [word for word in spoken if rng.random() > rng.uniform(0.0, MAX_DROPPED)]
        spoken = kept if len(kept) >= 3 else spoken
    if rng.random() < 0.25:
        turn = rng.randrange(len(spoken))
        spoken = spoken[turn:] + spoken[:turn]
    for _ in range(rng.randint(0, MAX_INSERTED)):
        spoken.insert(rng.randint(0, len(spoken)), rng.choice(words))
    if rng.random() < 0.35:
        spoken = [rng.choice(OPENINGS), *spoken]
    if rng.random() < 0.35:
        spoken = [*spoken, rng.choice(ENDINGS)]
    return _with_text(dialogue, spoken)


def shuffle_words(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """The dialogue with some words dropped and the others in any order; labels and reply stay."""
    spoken = dialogue.text.split()
    share = rng.uniform(0.0, MAX_DROPPED_SHUFFLED)
    kept = [word for word in spoken if rng.random() > share]
    spoken = kept if len(kept) >= 3 else spoken
    rng.shuffle(spoken)
    return _with_text(dialogue, spoken)


def _with_text(dialogue: Dialogue, spoken: Sequence[str]) -> Dialogue:
    text = " ".join(spoken)
    return replace(dialogue, text=text, thought=dialogue.thought.replace(dialogue.text, text))


def random_words_row(key: str, words: Sequence[str], rng: random.Random) -> dict[str, str | None]:
    """A record of random words and labels, without a reply."""
    count = rng.randint(*RANDOM_WORDS)
    spoken = [
        _pseudoword(words, rng) if rng.random() < PSEUDOWORD_SHARE else rng.choice(words)
        for _ in range(count)
    ]
    age = rng.choice(list(AGE_SHARES))
    return {
        "key": key,
        "text": " ".join(spoken),
        "emotion": rng.choice(EMOTIONS),
        "gender": None if age == "child" else rng.choice(GENDERS),
        "age": age,
        "sound_event": rng.choice((None, *EVENTS)),
    }


def _pseudoword(words: Sequence[str], rng: random.Random) -> str:
    first, second = rng.choice(words), rng.choice(words)
    return first[: (len(first) + 1) // 2] + second[len(second) // 2 :]


def known_words(data_pack: Path | None) -> list[str]:
    """Every word of the training sentences, of the replies and of the recordings for training, sorted."""
    texts = [text for one in load_scenarios() for made in one.wordings("train").values() for text in made]
    texts += [reply for one in load_scenarios() for reply in one.replies.values()]
    if data_pack is not None:
        rows = recording_rows(data_pack)
        texts += [row["text"] for row in rows if row["split"] == "train" and row["text"]]
    return sorted({word for text in texts for word in text.replace(",", " ").split()})


def paraphrased_dialogues(count: int, seed: int, words: list[str]) -> Iterator[Dialogue]:
    """Dialogues with paraphrased or shuffled words; labels and replies stay."""
    rng = random.Random(f"{seed} said otherwise")
    for index, dialogue in enumerate(sample_dialogues("train", count, seed + 3)):
        is_shuffled = rng.random() < SHUFFLED_SHARE
        changed = shuffle_words(dialogue, rng) if is_shuffled else paraphrase(dialogue, words, rng)
        yield replace(changed, key=f"free-{seed}-{index:06d}")


def random_word_dialogues(count: int, seed: int, words: list[str]) -> Iterator[Dialogue]:
    """Random words with random labels, without a reply."""
    rng = random.Random(f"{seed} jumbled")
    empty: dict[str, Any] = dict.fromkeys(
        ("situation", "pattern", "reply", "reply_emotion", "thought", "cue"), ""
    )
    for index in range(count):
        row: dict[str, Any] = random_words_row(f"jumbled-{seed}-{index:06d}", words, rng)
        yield Dialogue(**row, **empty, accepted=[])
