"""Starts: the same numbers come out of our parts as of the library's, whatever layout the weights came in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from echat.dialogue.capabilities import Capabilities
from echat.model.llm import LLMConfig
from echat.model.model_folder import load_model, save_model
from echat.model.optimized import optimize
from echat.model.speech_encoder import EncoderConfig, SpeechEncoder
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.release.pretrained import read_llm, read_whisper
from echat.release.weight_sources import open_weight_source
from echat.train.recipe import load_recipe
from echat.train.trainer import train
from echat.train.weights.init_weights import (
    inherited_learned,
    init_from,
    init_has_ctc,
    initial_config,
)

ASSETS = Path(__file__).parents[2] / "assets"
SHAPE = {"n_mels": 80, "dim": 16, "blocks": 2, "heads": 2, "ffn": 64}


@pytest.fixture(scope="module")
def whisper():
    """A random Whisper of the library."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    return WhisperModel(WhisperConfig(
        vocab_size=60, num_mel_bins=80, d_model=16, encoder_layers=2, encoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        max_source_positions=50, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )).eval()  # fmt: skip


@pytest.fixture(scope="module")
def whisper_folder(whisper, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("starts") / "whisper"
    whisper.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory) -> Path:
    return llm_folder(tmp_path_factory.mktemp("starts") / "qwen", "qwen2")


def llm_folder(folder: Path, model_type: str, **others) -> Path:
    """A random language model of the library in several files, beside a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=408, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, **others,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    for path in (ASSETS / "model" / "llm").glob("token*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def openai_layout(whisper) -> dict:
    """The library's weights under the names of the original release."""
    renames = (
        ("layers.", "blocks."), ("self_attn_layer_norm", "attn_ln"), ("self_attn.q_proj", "attn.query"),
        ("self_attn.k_proj", "attn.key"), ("self_attn.v_proj", "attn.value"),
        ("self_attn.out_proj", "attn.out"),
        ("final_layer_norm", "mlp_ln"), ("fc1", "mlp.0"), ("fc2", "mlp.2"), ("layer_norm", "ln_post"),
        ("embed_positions.weight", "positional_embedding"),
    )  # fmt: skip
    state = {}
    for name, tensor in whisper.state_dict().items():
        for theirs, original in renames:
            name = name.replace(theirs, original)
        state[name] = tensor.half()
    dims = {"n_mels": 80, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 2, "n_audio_ctx": 50}
    return {"dims": dims, "model_state_dict": state}


def encoder_from(source: Path) -> SpeechEncoder:
    torch.manual_seed(1)
    holder = torch.nn.ModuleDict({"encoder": SpeechEncoder(EncoderConfig(**SHAPE, max_frames=50))})
    init_from(holder, {"encoder": str(source)})
    return holder["encoder"].eval()


def test_a_whisper_folder_hears_as_the_library_does(whisper, whisper_folder):
    assert read_whisper(whisper_folder).shape == SHAPE
    mel = torch.randn(2, 100, 80)
    with torch.no_grad():
        found, _ = encoder_from(whisper_folder)(mel, torch.tensor([100, 100]))
        wanted = whisper.encoder(mel.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_original_layout_holds_the_same_encoder(whisper, whisper_folder, tmp_path):
    torch.save(openai_layout(whisper), tmp_path / "small.pt")
    original, folder = read_whisper(tmp_path / "small.pt"), read_whisper(whisper_folder)
    assert original.shape == folder.shape and original.tensors.keys() == folder.tensors.keys()
    for name, tensor in folder.tensors.items():
        assert torch.equal(original.tensors[name], tensor.half()), name


def test_a_layer_mix_on_whisper_begins_fresh_and_even(whisper, whisper_folder):
    torch.manual_seed(1)
    shape = EncoderConfig(**SHAPE, max_frames=50, layer_mix=True)
    holder = torch.nn.ModuleDict({"encoder": SpeechEncoder(shape)})
    init_from(holder, {"encoder": str(whisper_folder)})
    mel = torch.randn(1, 100, 80)
    with torch.no_grad():
        found, _ = holder["encoder"].eval()(mel, torch.tensor([100]))
        depths = whisper.encoder(mel.transpose(1, 2), output_hidden_states=True)
    earlier = [torch.nn.functional.layer_norm(frames, (16,)) for frames in depths.hidden_states[:-1]]
    wanted = (sum(earlier) + depths.last_hidden_state) / 3
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_positions_of_another_kind_are_refused(whisper, tmp_path):
    state = openai_layout(whisper)
    state["model_state_dict"]["encoder.positional_embedding"] += 0.1
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="expected the sinusoids of Whisper"):
        open_weight_source(str(tmp_path / "odd.pt"))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_a_language_model_of_a_folder_thinks_as_the_library_does(model_type, tmp_path):
    from transformers import AutoModelForCausalLM

    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}  # so low that it matters here
    folder = llm_folder(tmp_path / "llm", model_type, **theta)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    start = open_weight_source(str(folder))
    shape = {"encoder": {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16}, "speech_codec_size": 32}
    shape["adapter"] = {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16}
    config, tokenizer = initial_config(SpeechLLMConfig.model_validate(shape), {"llm": str(folder)})
    assert (config.llm.architecture, config.llm.layers, config.llm.mlp) == (model_type, 2, 24)
    assert tokenizer == folder and start.model is None
    model = SpeechLLM(config).eval()
    init_from(model, {"llm": str(folder)})
    ids = torch.randint(0, 408, (2, 9))
    with torch.no_grad():
        expected = theirs(ids).logits
        embeds = model.llm.text_embedding(ids)
        hidden, _ = model.hidden(embeds)
        torch.testing.assert_close(model.text_logits(hidden), expected, atol=1e-5, rtol=1e-5)
        cached, _ = model.hidden(embeds, cache=model.llm.new_cache(2))
        torch.testing.assert_close(cached, hidden, atol=1e-5, rtol=1e-5)
        packed, _ = optimize(model, "fp32").hidden(embeds)
        torch.testing.assert_close(packed, hidden, atol=1e-5, rtol=1e-5)


def test_a_tied_head_stored_twice_is_no_tensor_too_many(tmp_path):
    table = torch.randn(8, 4)
    save_file(
        {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()}, tmp_path / "model.safetensors"
    )
    found = read_llm(tmp_path, LLMConfig(vocab_size=8, dim=4, heads=2, kv_heads=1, tie_embeddings=True))
    assert list(found) == ["llm.model.embed_tokens.weight"]
    assert (
        len(read_llm(tmp_path, LLMConfig(vocab_size=8, dim=4, heads=2, kv_heads=1, tie_embeddings=False)))
        == 2
    )


def test_the_recipe_and_its_starts_must_agree(whisper_folder, qwen_folder):
    sources = {"encoder": str(whisper_folder), "llm": str(qwen_folder)}
    config, _ = initial_config(None, sources)
    assert (config.encoder.dim, config.encoder.heads, config.llm.dim, config.adapter.dim) == (16, 2, 16, 1024)
    given = SpeechLLMConfig(encoder=EncoderConfig(**{**SHAPE, "heads": 4}))
    with pytest.raises(ValueError, match=r"model.encoder.heads: expected 2 as .*whisper has it, found 4"):
        initial_config(given, sources)
    with pytest.raises(ValueError, match="expected a whole model, found only encoder"):
        initial_config(None, {"all": str(whisper_folder)})


def test_what_is_no_start_is_named(tmp_path, whisper_folder):
    with pytest.raises(ValueError, match="found nothing; check the path"):
        open_weight_source(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="found 0"):
        open_weight_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"expected tensors under llm\. in .*, found encoder"):
        init_from(torch.nn.ModuleDict({"llm": torch.nn.Linear(1, 1)}), {"llm": str(whisper_folder)})


def test_stage_one_starts_from_whisper_and_qwen(recipe, whisper_folder, qwen_folder, shape):
    model = {"adapter": shape["adapter"], "speech_codec_size": 32}
    path = recipe(
        "speech_llm",
        model=model,
        tokenizer=None,
        ctc=None,
        init_from={"encoder": str(whisper_folder), "llm": str(qwen_folder)},
        trainable=["encoder.*", "adapter.*", "subsampler.*", "projection.*"],
        budget={"steps": 2},
    )
    folder = train(path)
    loaded = load_model(folder)
    assert (loaded.config.model.encoder.ffn, loaded.config.model.llm.layers) == (64, 2)
    stored = load_recipe(folder.parent / "recipe.yaml")
    assert stored.model == loaded.config.model and stored.tokenizer == str(qwen_folder)


def test_a_released_file_is_a_whole_start(tmp_path):
    weights = ASSETS / "model" / "tiny_echat.pt"
    start = open_weight_source(str(weights))
    assert start.profile == "osum" and start.model is not None
    model = SpeechLLM(start.model)
    init_from(model, {"all": str(weights)})


def test_what_a_model_learned_is_declared_after_more_training_too(random_model: Path, tmp_path: Path) -> None:
    known = load_model(random_model)
    learned = Capabilities(history_turns=2, languages=("en",))
    save_model(tmp_path / "start", known.model, known.tokenizer, learned=learned)
    assert load_model(tmp_path / "start").config.learned == learned
    assert inherited_learned({"all": str(tmp_path / "start"), "llm": str(random_model)}) == learned
    assert inherited_learned({"llm": str(tmp_path / "start")}) == Capabilities()


@pytest.mark.parametrize("ctc", [True, False])
def test_a_model_with_ctc_keeps_it_after_more_training(random_model: Path, tmp_path: Path, ctc: bool) -> None:
    known = load_model(random_model)
    save_model(tmp_path / "start", known.model, known.tokenizer, ctc=ctc)
    assert init_has_ctc({"all": str(tmp_path / "start"), "llm": str(random_model)}) == ctc
    assert init_has_ctc({"llm": str(tmp_path / "start"), "projection": str(random_model)}) is False
