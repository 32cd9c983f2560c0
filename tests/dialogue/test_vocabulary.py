"""Special ids of any size of model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import echat
from echat.dialogue.thinking import LabelThought, format_thought
from echat.dialogue.turns import AssistantTurn, Conversation, UserTurn
from echat.dialogue.vocabulary import Vocabulary
from echat.model.text_tokenizer import TextTokenizer

ASSETS = Path(__file__).parent.parent / "assets" / "model"
EMBEDDED = Path(echat.__file__).parent / "models" / "echat-tiny"
IDS = json.loads((ASSETS / "config.json").read_text(encoding="utf-8"))["ids"]


def test_recorded_ids_come_out() -> None:
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(ASSETS / "llm"))
    vocabulary = Vocabulary.from_tokenizer(tokenizer, codec_size=40, text_size=416)
    assert vocabulary.text_end == IDS["text_eos"]
    assert vocabulary.unknown == IDS["unk_label"]
    assert vocabulary.speech_boundary == IDS["speech_start_and_end_label"]
    assert vocabulary.user_audio_begin == IDS["speech_embed_user_begin"]
    assert vocabulary.user_audio_end == IDS["speech_embed_user_end"]
    assert (vocabulary.speech_rows, vocabulary.speech_classes) == (43, 41)


@pytest.mark.parametrize("folder", [ASSETS / "llm", EMBEDDED / "tokenizer"])
def test_a_thought_leads_to_each_of_its_labels(folder: Path) -> None:
    """However a tokenizer cuts commas, tags and words: every slot is found, and a label may follow."""
    tokenizer = TextTokenizer.from_folder(folder)
    slots = Vocabulary.from_tokenizer(tokenizer, codec_size=40, text_size=len(tokenizer)).label_slots
    for words in ("a", "my old bag", "route 66", "我很好"):
        thought = LabelThought(words, "old", "male", "fear", "laugh")
        ids = tokenizer.encode(format_thought(thought))
        for trigger, allowed in slots:
            end = next(n for n in range(len(ids)) if tuple(ids[:n][-len(trigger) :]) == trigger)
            assert ids[end] in allowed


def test_released_sizes() -> None:
    released = Vocabulary(151936, 4096, text_end=151645, turn_start=151644, unknown=7672)
    assert (released.speech_boundary, released.user_audio_begin, released.user_audio_end) == (
        4096,
        4097,
        4098,
    )


def test_tokenizer_of_another_family_is_refused() -> None:
    class Bytes:
        def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
            return list(text.encode())

        def decode(self, ids: Any, /) -> str:
            return bytes(ids).decode()

        def __len__(self) -> int:
            return 256

    with pytest.raises(ValueError, match="to be one special token"):
        Vocabulary.from_tokenizer(Bytes(), codec_size=40)


def test_ids_outside_the_table_are_refused() -> None:
    with pytest.raises(ValueError, match="text_end: expected an id in 0..99"):
        Vocabulary(100, 40, text_end=402, turn_start=1)


def test_conversation_alternates_and_knows_its_parts() -> None:
    ask, answer = UserTurn(text="a"), AssistantTurn("b")
    assert Conversation([ask]).target is None
    assert Conversation([ask, answer]).target == answer
    assert Conversation([ask, answer, ask]).history == [(ask, answer)]
    assert Conversation([ask, answer, ask, answer]).history == [(ask, answer)]
    for turns in ([], [answer], [ask, ask]):
        with pytest.raises(ValueError, match="conversation"):
            Conversation(turns)
