"""Loosened dialogues keep their labels, reply and a thought of the new words; jumbles know no order."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict

from echat.corpus.en.scenario_grammar import sample_dialogues
from echat.corpus.text_augmentation import RANDOM_WORDS, perturb_words, random_words_row, shuffle_words

WORDS = ("table", "river", "quickly", "seven")


def test_a_loosened_dialogue_says_the_same_in_other_words() -> None:
    rng = random.Random(3)
    changed = 0
    for dialogue in sample_dialogues("train", 200):
        loose = perturb_words(dialogue, WORDS, rng)
        assert len(loose.text.split()) >= 3 and loose.text in loose.thought
        same = {"text", "thought"}
        assert all(
            asdict(loose)[name] == value for name, value in asdict(dialogue).items() if name not in same
        )
        shared = set(loose.text.split()) & set(dialogue.text.split())
        assert len(shared) >= 0.5 * len(set(dialogue.text.split()))
        changed += loose.text != dialogue.text
    assert changed > 120


def test_a_scattered_dialogue_keeps_words_but_not_their_order() -> None:
    rng = random.Random(4)
    turned = 0
    for dialogue in sample_dialogues("train", 200):
        scattered = shuffle_words(dialogue, rng)
        left = Counter(scattered.text.split())
        assert left <= Counter(dialogue.text.split()) and left.total() >= 3
        assert scattered.reply == dialogue.reply and scattered.text in scattered.thought
        turned += scattered.text not in dialogue.text
    assert turned > 180


def test_jumbles_draw_words_and_labels_freely() -> None:
    rng = random.Random(5)
    rows = [random_words_row(str(index), WORDS, rng) for index in range(100)]
    assert all(RANDOM_WORDS[0] <= len(row["text"].split()) <= RANDOM_WORDS[1] for row in rows)
    assert len({row["text"] for row in rows}) == 100
    assert any(set(row["text"].split()) - set(WORDS) for row in rows)  # halves of two words
    assert all(row["gender"] is None for row in rows if row["age"] == "child")
