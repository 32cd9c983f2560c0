"""Looser texts for a language model that learns from few patterns: what it copies it must not know by heart.

`perturb_words` says a dialogue in a freer wording, `shuffle_words` in any order, so that the reply hangs on
the words that matter and not on a pattern; `random_words_row` makes texts of words in no order, so that
writing down what was said is learnt as copying.

The grammar knows some thousands of sentences. A model that hears only those soon guesses the rest of a
sentence from its beginning, and errs on any other. So `perturbed_dialogues` and `random_word_dialogues` are
spoken, too, which leaves nothing but the sound to go by.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from echat.corpus.en.scenario_grammar import AGES, GENDERS, Dialogue, load_scenarios, sample_dialogues
from echat.corpus.en.situation import EMOTIONS, EVENTS
from echat.corpus.recordings import recording_rows

OPENINGS = (
    "well", "so", "hey", "listen", "you know", "i mean", "guess what", "hello", "oh", "actually", "honestly",
    "by the way", "can you believe it", "i wanted to tell you", "the thing is", "what a day", "today",
)  # fmt: skip
ENDINGS = (
    "you know", "today", "again", "this week", "and that is that", "right now", "i think", "what do you say",
    "this morning", "last night", "after all", "as always", "and now", "at last",
)  # fmt: skip
MAX_DROPPED = 0.2  # share of a text's words that may go
MAX_DROPPED_SHUFFLED = 0.4  # the same for a text whose order is given up
MAX_INSERTED = 1  # words from elsewhere that may come in
PSEUDOWORD_SHARE = 0.25  # of the words of a jumble: made of halves of two words
RANDOM_WORDS = (3, 13)


def perturb_words(dialogue: Dialogue, words: Sequence[str], rng: random.Random) -> Dialogue:
    """The dialogue with words dropped, turned round, or put before and after; labels and reply stay."""
    said = dialogue.text.split()
    if rng.random() < 0.5:
        kept = [word for word in said if rng.random() > rng.uniform(0.0, MAX_DROPPED)]
        said = kept if len(kept) >= 3 else said
    if rng.random() < 0.25:
        turn = rng.randrange(len(said))
        said = said[turn:] + said[:turn]
    for _ in range(rng.randint(0, MAX_INSERTED)):
        said.insert(rng.randint(0, len(said)), rng.choice(words))
    if rng.random() < 0.35:
        said = [rng.choice(OPENINGS), *said]
    if rng.random() < 0.35:
        said = [*said, rng.choice(ENDINGS)]
    return _with_text(dialogue, said)


def shuffle_words(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """The dialogue with some words dropped and the others in any order; labels and reply stay."""
    said = dialogue.text.split()
    share = rng.uniform(0.0, MAX_DROPPED_SHUFFLED)
    kept = [word for word in said if rng.random() > share]
    said = kept if len(kept) >= 3 else said
    rng.shuffle(said)
    return _with_text(dialogue, said)


def _with_text(dialogue: Dialogue, said: Sequence[str]) -> Dialogue:
    text = " ".join(said)
    return replace(dialogue, text=text, thought=dialogue.thought.replace(dialogue.text, text))


def random_words_row(key: str, words: Sequence[str], rng: random.Random) -> dict[str, str | None]:
    """A record of random words and labels, without a reply."""
    count = rng.randint(*RANDOM_WORDS)
    said = [
        _pseudoword(words, rng) if rng.random() < PSEUDOWORD_SHARE else rng.choice(words)
        for _ in range(count)
    ]
    age = rng.choice(list(AGES))
    return {
        "key": key,
        "text": " ".join(said),
        "emotion": rng.choice(EMOTIONS),
        "gender": None if age == "child" else rng.choice(GENDERS),
        "age": age,
        "sound_event": rng.choice((None, *EVENTS)),
    }


def _pseudoword(words: Sequence[str], rng: random.Random) -> str:
    first, second = rng.choice(words), rng.choice(words)
    return first[: (len(first) + 1) // 2] + second[len(second) // 2 :]


# --- Words that no pattern foretells: what a small model must hear if it is not to learn sentences by heart.

SHUFFLED_SHARE = 0.5  # of the dialogues said otherwise; the rest is loosened


def known_words(data_pack: Path | None) -> list[str]:
    """Every word of the training sentences, of the replies and of the recordings for training, sorted."""
    texts = [text for one in load_scenarios() for made in one.wordings("train").values() for text in made]
    texts += [reply for one in load_scenarios() for reply in one.replies.values()]
    if data_pack is not None:
        rows = recording_rows(data_pack)
        texts += [row["text"] for row in rows if row["split"] == "train" and row["text"]]
    return sorted({word for text in texts for word in text.replace(",", " ").split()})


def perturbed_dialogues(count: int, seed: int, words: list[str]) -> Iterator[Dialogue]:
    """Dialogues whose words were loosened or scattered; labels and replies hold."""
    rng = random.Random(f"{seed} said otherwise")
    for index, dialogue in enumerate(sample_dialogues("train", count, seed + 3)):
        is_shuffled = rng.random() < SHUFFLED_SHARE
        perturbed = shuffle_words(dialogue, rng) if is_shuffled else perturb_words(dialogue, words, rng)
        yield replace(perturbed, key=f"free-{seed}-{index:06d}")


def random_word_dialogues(count: int, seed: int, words: list[str]) -> Iterator[Dialogue]:
    """Random words with random labels, to which nothing is answered."""
    rng = random.Random(f"{seed} jumbled")
    nothing: dict[str, Any] = dict.fromkeys(
        ("situation", "pattern", "reply", "reply_emotion", "thought", "cue"), ""
    )
    for index in range(count):
        row: dict[str, Any] = random_words_row(f"jumbled-{seed}-{index:06d}", words, rng)
        yield Dialogue(**row, **nothing, accepted=[])
