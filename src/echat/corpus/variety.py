"""Words that no pattern foretells: what a small model must hear if it is not to learn sentences by heart.

The grammar knows some thousands of sentences. A model that hears only those soon guesses the rest of a
sentence from its beginning, and errs on any other. So the same words are also said in freer wordings, in any
order, and drawn at random with labels drawn at random, which leaves nothing but the sound to go by.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from echat.corpus.loosening import jumble, loosen, scatter
from echat.corpus.real import real_rows
from echat.corpus.scenarios import Dialogue, dialogues, load_scenarios

SCATTERED_SHARE = 0.5  # of the dialogues said otherwise; the rest is loosened


def known_words(data_pack: Path | None) -> list[str]:
    """Every word of the training sentences, of the replies and of the recordings for training, sorted."""
    texts = [text for one in load_scenarios() for made in one.wordings("train").values() for text in made]
    texts += [reply for one in load_scenarios() for reply in one.replies.values()]
    if data_pack is not None:
        rows = real_rows(data_pack)
        texts += [row["text"] for row in rows if row["split"] == "train" and row["text"]]
    return sorted({word for text in texts for word in text.replace(",", " ").split()})


def said_otherwise(count: int, seed: int, words: list[str]) -> Iterator[Dialogue]:
    """Dialogues whose words were loosened or scattered; labels and replies hold."""
    rng = random.Random(f"{seed} said otherwise")
    for index, dialogue in enumerate(dialogues("train", count, seed + 3)):
        scatters = rng.random() < SCATTERED_SHARE
        free = scatter(dialogue, rng) if scatters else loosen(dialogue, words, rng)
        yield replace(free, key=f"free-{seed}-{index:06d}")


def jumbled(count: int, seed: int, words: list[str]) -> Iterator[Dialogue]:
    """Random words with random labels, to which nothing is answered."""
    rng = random.Random(f"{seed} jumbled")
    nothing: dict[str, Any] = dict.fromkeys(
        ("situation", "pattern", "reply", "reply_emotion", "thought", "cue"), ""
    )
    for index in range(count):
        row: dict[str, Any] = jumble(f"jumbled-{seed}-{index:06d}", words, rng)
        yield Dialogue(**row, **nothing, accepted=[])
