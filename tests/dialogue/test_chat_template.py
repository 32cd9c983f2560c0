"""Another chat template is configuration: layouts follow it, prompts stay prefixes of training sequences."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from echat.dialogue.rendering import Segment, TextSegment, plain_ids, render
from echat.dialogue.tasks import TASKS, Profile, Task
from echat.dialogue.thinking import LabelThought, LanguageThought
from echat.dialogue.turns import AssistantTurn, Conversation, UserTurn
from echat.dialogue.vocabulary import CHATML, ChatTemplate
from echat.model.text_tokenizer import TextTokenizer

LLAMA = ChatTemplate(
    begin="<|begin_of_text|>", turn_start="<|start_header_id|>", role_end="<|end_header_id|>\n\n",
    turn_end="<|eot_id|>", turn_gap="", document_end="<|end_of_text|>",
)  # fmt: skip
SPECIAL = (*LLAMA.special_tokens, "<|begin_of_text|>", "<|end_header_id|>", "&&")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    """Bytes, and the special tokens of the template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inside = Tokenizer(models.BPE({character: id_ for id_, character in enumerate(alphabet)}, []))
    inside.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inside.decoder = decoders.ByteLevel()
    inside.add_tokens([AddedToken(token, special=False) for token in SPECIAL])
    return TextTokenizer(inside, template=LLAMA)


def written_out(segments: list[Segment], tokenizer: TextTokenizer) -> str:
    texts = [
        tokenizer.decode(s.ids) if isinstance(s, TextSegment) else f"[{type(s).__name__}]" for s in segments
    ]
    return "".join(texts)


def answer_of(task: Task) -> AssistantTurn:
    label = LabelThought("hi", "old", "male", "sad", "none")
    thought = {None: None, "label": label, "language": LanguageThought("hm")}[task.thinks]
    return AssistantTurn("fine", list(range(40)) * 6 if task.writes_speech else None, thought)


def test_turns_are_written_as_the_template_says(tokenizer: TextTokenizer) -> None:
    vocabulary = tokenizer.vocabulary(codec_size=40, text_size=len(tokenizer))
    talk = [UserTurn(text="hi"), AssistantTurn("hello"), UserTurn(text="and you")]
    system = TASKS["t2t"].system_for("echat")
    prompt = written_out(render(Conversation(talk), "t2t", tokenizer, vocabulary), tokenizer)
    assert prompt == (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nand you<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    trained = render(Conversation([*talk, AssistantTurn("well")]), "t2t", tokenizer, vocabulary)
    assert written_out(trained, tokenizer) == prompt + "well<|eot_id|>"


@pytest.mark.parametrize("profile", get_args(Profile))
def test_the_prompt_is_a_prefix_of_the_training_sequence(tokenizer: TextTokenizer, profile: Profile) -> None:
    vocabulary = tokenizer.vocabulary(codec_size=40, text_size=len(tokenizer))
    for task in TASKS.values():
        question = UserTurn(text="hi", audio=None if task.input_modality == "text" else "sound")
        past = [question, answer_of(task)]
        prompt = render(Conversation([*past, question]), task, tokenizer, vocabulary, profile)
        whole = render(Conversation([*past, question, answer_of(task)]), task, tokenizer, vocabulary, profile)
        assert plain_ids(whole)[: len(plain_ids(prompt))] == plain_ids(prompt), task.name
        assert "<|im_" not in written_out(whole, tokenizer)


def test_the_template_lies_beside_the_tokenizer(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "llama")
    again = TextTokenizer.from_folder(tmp_path / "llama")
    assert again.template == LLAMA
    again.save(tmp_path / "copy")
    assert TextTokenizer.from_folder(tmp_path / "copy").vocabulary(40, 500).template == LLAMA
    (tmp_path / "copy" / "chat_template.yaml").write_text("turn_begin: '<s>'")
    with pytest.raises(ValueError, match="unknown key 'turn_begin'"):
        TextTokenizer.from_folder(tmp_path / "copy")
    with pytest.raises(ValueError, match=r"expected '<\|im_end\|>' to be one special token"):
        TextTokenizer(tokenizer._tokenizer, template=CHATML).vocabulary(40, 500)
