"""SmolLM2 from GGUF: the library's arithmetic comes back, and a cut vocabulary keeps what is needed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from echat.dialogue.vocabulary import Vocabulary
from echat.model.llm import LLMConfig
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.model.text_tokenizer import TextTokenizer
from echat.release.weight_sources import open_weight_source
from echat.train.weights.init_weights import init_from

SCRIPT = Path(__file__).parents[2] / "scripts" / "smollm2_from_gguf.py"
TEXT = """the kitchen tap keeps dripping and i can't make it stop. turn the little valve under the sink and
you'll have quiet tonight. what will you be making? bread mostly, they start at four in the morning. 1234"""


def load():
    spec = importlib.util.spec_from_file_location("smollm2_from_gguf", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT_MODULE = load()


def trained() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a small BPE that splits text as SmolLM2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True) for token in SCRIPT_MODULE.SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    return sorted(vocab, key=vocab.get), merges


def fits(size: int) -> bool:
    """Is there room for what must stay?"""
    try:
        return bool(SCRIPT_MODULE.cut(TOKENS, MERGES, [], size))
    except ValueError:
        return False


ENDS = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
TOKENS, MERGES = trained()
ROOM = next(size for size in range(256, 420) if fits(size))  # ids of bytes, prompts and labels


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(TEXT.split(" ")), min_size=1, max_size=6).map(" ".join),
    st.integers(ROOM + 30, 419),
)
def test_texts_keep_their_ids_whatever_is_cut(text, size):
    kept = SCRIPT_MODULE.cut(TOKENS, MERGES, [text], size)
    assert len(kept) <= size and kept == sorted(set(kept))
    small = SCRIPT_MODULE.cut_tokenizer(TOKENS, MERGES, kept)
    whole = SCRIPT_MODULE.make_tokenizer(TOKENS, MERGES)
    assert SCRIPT_MODULE.share_changed(whole, small, kept, [text]) == 0
    assert [kept[number] for number in small.encode(text).ids] == whole.encode(text).ids


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.text(max_size=20))
def test_any_other_text_is_still_encoded(text):
    kept = SCRIPT_MODULE.cut(TOKENS, MERGES, ["the tap"], 300)
    small = SCRIPT_MODULE.cut_tokenizer(TOKENS, MERGES, kept)
    assert small.decode(small.encode(text).ids, skip_special_tokens=False) == text


def test_what_texts_use_most_stays_where_not_all_fits():
    often, rare = "kitchen tap", "bread mostly quiet tonight morning"
    fixed = SCRIPT_MODULE.cut(TOKENS, MERGES, [], len(TOKENS))
    size = ROOM + 12
    kept = SCRIPT_MODULE.cut(TOKENS, MERGES, [often] * 5 + [rare], size)
    whole, small = (
        SCRIPT_MODULE.make_tokenizer(TOKENS, MERGES),
        SCRIPT_MODULE.cut_tokenizer(TOKENS, MERGES, kept),
    )
    assert len(kept) == size < len(fixed)
    assert SCRIPT_MODULE.share_changed(whole, small, kept, [often]) == 0
    assert SCRIPT_MODULE.share_changed(whole, small, kept, [often, rare]) == 0.5


def test_prompts_and_labels_need_room():
    with pytest.raises(ValueError, match=r"expected room for the \d+ ids of prompts and labels, found 200"):
        SCRIPT_MODULE.cut(TOKENS, MERGES, [], 200)


def gguf_of(model, path: Path) -> None:
    """The weights of a Llama of the library as llama.cpp lays them out."""
    from gguf import GGUFWriter

    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_token_list(TOKENS)
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    names = {theirs: own for own, theirs in SCRIPT_MODULE._NAMES.items()}
    for name, tensor in model.model.state_dict().items():
        values = tensor.numpy()
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            if part.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
                shape = (heads, 2, -1, values.shape[1])
                values = np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2).reshape(values.shape))
            name = f"blk.{layer}.{names[part]}.{kind}"
        writer.add_tensor(ENDS.get(name, name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_folder_thinks_as_the_library_does(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )).eval()  # fmt: skip
    gguf_of(theirs, tmp_path / "model.gguf")
    (tmp_path / "texts.jsonl").write_text(
        json.dumps({"text": "quiet tonight", "turns": [{"reply": "bread"}]}) + "\n"
    )
    new = SCRIPT_MODULE.new_tokens()
    kept, changed = SCRIPT_MODULE.convert(
        tmp_path / "model.gguf", tmp_path / "llm", [tmp_path / "texts.jsonl"], len(TOKENS)
    )
    assert json.loads((tmp_path / "llm" / "kept_ids.json").read_text()) == kept and len(kept) == len(
        TOKENS
    ) - len(new)
    assert changed == 0
    start = open_weight_source(str(tmp_path / "llm"))
    shape = {"encoder": {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16}, "speech_codec_size": 32}
    shape |= {"adapter": {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16}, "llm": start.parts["llm"]}
    model = SpeechLLM(SpeechLLMConfig.model_validate(shape)).eval()
    init_from(model, {"llm": str(tmp_path / "llm")})
    tokenizer = TextTokenizer.from_folder(tmp_path / "llm")
    vocabulary = Vocabulary.from_tokenizer(tokenizer, 32, model.config.llm.vocab_size)
    assert vocabulary.unknown == len(kept) + len(new) - 1 and vocabulary.text_size % 64 == 0
    assert [len(tokenizer.encode(word)) for word in new] == [1] * len(new)
    ids = tokenizer.encode("quiet tonight")
    with torch.no_grad():
        hidden, _ = model.hidden(model.llm.text_embedding(torch.tensor([ids])))
        found = model.text_logits(hidden)[..., : len(kept)]
        wanted = theirs(torch.tensor([[kept[number] for number in ids]])).logits[..., kept]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert isinstance(model.config.llm, LLMConfig) and model.config.llm.rope_theta == 500.0
