"""Filler texts: replies first, then every whole word of the vocabulary once, in sentences."""

import importlib.util
import json
import random
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

SCRIPT = Path(__file__).parents[2] / "scripts" / "filler_texts.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("filler_texts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    tokens = ["Ġgarden", "Ġthe", "Ġwinter", "Ġit", "in", "Ġporny", "ĠParis", "Ġ12", "Ġbridge", "Ġna\u00efve"]
    return Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=[]))


def test_only_words_that_stand_alone_are_said(script, tokenizer):
    assert script.whole_words(tokenizer) == ["garden", "the", "winter", "Paris", "bridge"]


def test_each_word_comes_once(script):
    words = [f"{a}{b}word" for a in "abcdefgh" for b in "ijkl"]
    texts = list(script.word_lists(words, random.Random(0)))
    said = [word.lower() for text in texts for word in re.findall(r"\w+word\b", text)]
    assert len(texts) == 8 and sorted(said) == sorted(words)
    assert all(text[0].isupper() or not text[0].isalpha() for text in texts)


@pytest.mark.slow
def test_replies_come_first_and_prompts_of_held_out_people_never(script, tokenizer, tmp_path):
    for name in script.PROMPT_SETS:
        (tmp_path / name).mkdir()
        rows = [
            {"split": split, "lang": "en", "text": f"{name} {split}"} for split in ("train", "dev", "test")
        ]
        rows.append({"split": "train", "lang": "zh", "text": "nothing"})
        (tmp_path / name / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = list(script.filler_rows(tokenizer, tmp_path))
    sources = [row["source"] for row in rows]
    replies = sources.count("grammar reply")
    assert replies > 500 and set(sources[:replies]) == {"grammar reply"}
    assert [row["text"] for row in rows[replies : replies + 2]] == [
        "kathleen train",
        "common_voice_multi train",
    ]
    assert {row["role"] for row in rows} == {"answers", "questions"}
    assert len({(row["role"], row["text"]) for row in rows}) == len(rows)
