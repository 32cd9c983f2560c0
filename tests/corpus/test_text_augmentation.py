"""Text augmentation: paraphrased and shuffled dialogues keep labels and reply; random words have none."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict

from echat.corpus.en.scenario_grammar import sample_dialogues
from echat.corpus.text_augmentation import RANDOM_WORDS, paraphrase, random_words_row, shuffle_words

WORDS = ("table", "river", "quickly", "seven")


def test_a_paraphrase_keeps_half_of_the_words_the_labels_and_the_reply() -> None:
    rng = random.Random(3)
    changed = 0
    for dialogue in sample_dialogues("train", 200):
        changed_dialogue = paraphrase(dialogue, WORDS, rng)
        assert len(changed_dialogue.text.split()) >= 3 and changed_dialogue.text in changed_dialogue.thought
        same = {"text", "thought"}
        assert all(
            asdict(changed_dialogue)[name] == value
            for name, value in asdict(dialogue).items()
            if name not in same
        )
        shared = set(changed_dialogue.text.split()) & set(dialogue.text.split())
        assert len(shared) >= 0.5 * len(set(dialogue.text.split()))
        changed += changed_dialogue.text != dialogue.text
    assert changed > 120


def test_a_shuffled_dialogue_keeps_words_but_not_their_order() -> None:
    rng = random.Random(4)
    turned = 0
    for dialogue in sample_dialogues("train", 200):
        shuffled = shuffle_words(dialogue, rng)
        left = Counter(shuffled.text.split())
        assert left <= Counter(dialogue.text.split()) and left.total() >= 3
        assert shuffled.reply == dialogue.reply and shuffled.text in shuffled.thought
        turned += shuffled.text not in dialogue.text
    assert turned > 180


def test_random_words_have_random_labels() -> None:
    rng = random.Random(5)
    rows = [random_words_row(str(index), WORDS, rng) for index in range(100)]
    assert all(RANDOM_WORDS[0] <= len(row["text"].split()) <= RANDOM_WORDS[1] for row in rows)
    assert len({row["text"] for row in rows}) == 100
    assert any(set(row["text"].split()) - set(WORDS) for row in rows)  # halves of two words
    assert all(row["gender"] is None for row in rows if row["age"] == "child")
