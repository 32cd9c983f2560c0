from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from echat.cli import main
from echat.data.tools.text_tokenizer_training import SPECIAL, save_tokenizer, train_tokenizer

TOKENIZER = train_tokenizer(["i lost my keys", "where are my keys"] * 5, 380)


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_comes_back(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_and_the_unknown_label_are_single_ids():
    for token in (*SPECIAL, "&&"):
        assert len(TOKENIZER.encode(token, add_special_tokens=False).ids) == 1
    unknown = TOKENIZER.token_to_id("&&")
    assert TOKENIZER.encode("<&&>", add_special_tokens=False).ids.count(unknown) == 1


def test_size_is_kept():
    assert TOKENIZER.get_vocab_size() <= 380


def test_transformers_reads_the_folder(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(TOKENIZER, tmp_path / "bpe")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "bpe")
    text = "<|im_start|>user\ni lost my keys<|im_end|>"
    assert (
        loaded.encode(text, add_special_tokens=False) == TOKENIZER.encode(text, add_special_tokens=False).ids
    )
    assert loaded.eos_token == "<|im_end|>"


def test_the_command_trains_on_the_texts_of_manifests(tmp_path, capsys):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(
        '{"key": "a", "text": "where are my keys", "reply": "on the table", "lang": "en"}\n', "utf-8"
    )
    main(["data", "train-tokenizer", str(tmp_path / "bpe"), str(manifest), "--size", "380"], standalone=False)
    trained = Tokenizer.from_file(str(tmp_path / "bpe" / "tokenizer.json"))
    printed = capsys.readouterr().out
    assert printed == f"{tmp_path / 'bpe'}: {trained.get_vocab_size()} ids from 3 texts\n"
    assert trained.get_vocab_size() <= 380
