"""LLM architectures by configuration: training path, cached path and int8 path say what transformers says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from echat.model import llm as llm_module
from echat.model.adapter import AdapterConfig
from echat.model.llm import LanguageModel, LLMConfig
from echat.model.optimized import optimize
from echat.model.speech_encoder import EncoderConfig
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig, model_on_meta

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
    "rope_theta": 300.0, "tie_word_embeddings": True,
}  # fmt: skip
# What a config.json of the family states beside the sizes; `mistral` is a family that only this test knows.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": False, "sliding_window": 32768, "hidden_act": "silu"},
    "qwen3": {"head_dim": 16, "attention_bias": False, "rope_scaling": None, "hidden_act": "silu"},
    "llama": {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None},
    "mistral": {"head_dim": 12, "sliding_window": None, "hidden_act": "silu"},
}
in_8_bits = pytest.mark.vnni


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(llm_module.ARCHITECTURES, "mistral", 1e4)
    return request.param


def speech_llm(config: LLMConfig) -> SpeechLLM:
    torch.manual_seed(0)
    shape = SpeechLLMConfig(
        encoder=EncoderConfig(dim=16, blocks=1, heads=2, ffn=16, max_frames=40),
        adapter=AdapterConfig(dim=16, blocks=1, heads=2, ffn=16, max_frames=20),
        llm=config,
        speech_codec_size=20,
    )
    model = SpeechLLM(shape).eval().requires_grad_(False)
    for name, parameter in model.llm.named_parameters():
        if "norm" in name or name.endswith("bias"):  # fresh ones are 1 and 0, which hides a norm left out
            parameter.add_(torch.rand_like(parameter) - 0.5)
    return model


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_the_weights_of_transformers_give_its_scores(family: str) -> None:
    raw = {"model_type": family, **SIZES, **FAMILIES[family]}
    theta = {"rope_type": "default", "rope_theta": 300.0}
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**(raw | {"rope_parameters": theta, "sliding_window": None}))
    ).eval()
    ours = LanguageModel(LLMConfig.from_transformers(raw)).eval()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    ours.load_state_dict(state, strict=True)
    ids = torch.randint(0, 64, (2, 9))
    scores = ours.logits(ours(ours.text_embedding(ids)))
    torch.testing.assert_close(scores, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_cached_equals_whole(family: str, chunk: int) -> None:
    model = speech_llm(LLMConfig.from_transformers({"model_type": family, **SIZES, **FAMILIES[family]}))
    embeds = torch.randn(2, 17, 32)
    whole, _ = model.hidden(embeds)
    cache, pieces = model.llm.new_cache(2, capacity=4), []
    for start in range(0, 17, chunk):
        piece, cache = model.llm.extend(embeds[:, start : start + chunk], cache)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), pytest.param("int8", 0.03, marks=in_8_bits)])
def test_packed_equals_plain_within_its_precision(family: str, precision: Any, most: float) -> None:
    model = speech_llm(LLMConfig.from_transformers({"model_type": family, **SIZES, **FAMILIES[family]}))
    embeds = torch.randn(2, 17, 32)
    expected, _ = model.hidden(embeds)
    found, _ = optimize(model, precision).hidden(embeds)
    assert error(found, expected) < most


def test_layouts_of_published_folders_are_read() -> None:
    qwen3 = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False,
        "vocab_size": 151936,
    }  # fmt: skip
    config = LLMConfig.from_transformers(qwen3)
    assert (config.architecture, config.dim, config.heads, config.head_dim) == ("qwen3", 1024, 16, 128)
    shapes = {
        name: tuple(t.shape) for name, t in model_on_meta(SpeechLLMConfig(llm=config)).named_parameters()
    }
    assert shapes["llm.model.layers.27.self_attn.q_proj.weight"] == (2048, 1024)
    assert shapes["llm.model.layers.27.self_attn.q_norm.weight"] == (128,)
    del qwen3["head_dim"]
    assert LLMConfig.from_transformers(qwen3).head_dim == 128  # the default of the family
    llama = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 2048, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "vocab_size": 32000,
    }  # fmt: skip
    config = LLMConfig.from_transformers(llama)
    assert (config.head_dim, config.head_width, config.tie_embeddings) == (None, 64, False)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("qwen3", "attention_bias", True),
        ("qwen3", "use_sliding_window", True),
        ("qwen3", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("qwen3", "head_dim", 7),
        ("llama", "hidden_act", "gelu"),
        ("llama", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("llama", "model_type", "qwen3_moe"),
    ],
)
def test_a_variant_that_computes_otherwise_is_refused(family: str, field: str, value: object) -> None:
    raw = {"model_type": family, **SIZES, **FAMILIES[family]}
    with pytest.raises(ValueError, match=r"config\.json.*expected .*, found"):
        LLMConfig.from_transformers(raw | {field: value})


def test_a_configuration_without_head_dim_is_stored_as_before() -> None:
    assert "head_dim" not in LLMConfig().model_dump()
    qwen3 = LLMConfig(architecture="qwen3", head_dim=64)
    assert qwen3.model_dump()["head_dim"] == 64 and LLMConfig.model_validate(qwen3.model_dump()) == qwen3
    with pytest.raises(ValueError, match="architecture: 'qwen4' is unknown"):
        LLMConfig(architecture="qwen4")
