"""Packed models: the same answers within their precision, the same methods, and the original untouched."""

from __future__ import annotations

import copy

import pytest
import torch

import echat
from echat.dialogue.turns import Conversation, UserTurn
from echat.model.adapter import AdapterConfig
from echat.model.llm import LLMConfig
from echat.model.optimized import optimize
from echat.model.speech_encoder import EncoderConfig
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.verify.agreement import greedy_agreement

CONFIG = SpeechLLMConfig(
    encoder=EncoderConfig(dim=32, blocks=2, heads=2, ffn=64, max_frames=60, conv_kernel=3),
    adapter=AdapterConfig(dim=32, blocks=1, heads=2, ffn=64, max_frames=40),
    llm=LLMConfig(vocab_size=64, dim=64, layers=2, heads=4, kv_heads=2, mlp=96),
    speech_codec_size=20,
)
in_8_bits = pytest.mark.vnni
PRECISIONS = ["fp32", "bf16", *(pytest.param(name, marks=in_8_bits) for name in ("int8", "int4"))]
# Of hidden states against float32. Random weights have no structure to lose, so 4 bits cost more than in a
# trained model.
HIDDEN_ERROR = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.03, "int4": 0.25}


@pytest.fixture(scope="module")
def model() -> SpeechLLM:
    torch.manual_seed(0)
    return SpeechLLM(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=PRECISIONS)
def packed(request: pytest.FixtureRequest, model: SpeechLLM) -> tuple[str, SpeechLLM]:
    return request.param, optimize(model, request.param)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_packed_says_what_the_model_says(model: SpeechLLM, packed: tuple[str, SpeechLLM]) -> None:
    precision, twin = packed
    mel, lens = torch.randn(2, 70, 80), torch.tensor([70, 51])
    frames, frame_lens = model.encode(mel, lens)
    heard, heard_lens = twin.encode(mel, lens)
    assert torch.equal(heard_lens, frame_lens)
    keep = torch.arange(frames.shape[1])[None] < frame_lens[:, None]
    assert error(heard[keep], frames[keep]) < min(HIDDEN_ERROR[precision], 0.05)
    embeds = torch.randn(2, 23, 64)
    hidden, _ = model.hidden(embeds)
    thought, _ = twin.hidden(embeds)
    assert error(thought, hidden) < HIDDEN_ERROR[precision]
    assert thought.dtype == torch.float32
    for head in ("text_logits", "speech_logits", "combined_logits"):
        expected, found = getattr(model, head)(hidden), getattr(twin, head)(hidden)
        assert error(found, expected) < min(HIDDEN_ERROR[precision], 0.03), head
        # The last position of a prompt alone gives the same scores, as one row or as a vector.
        torch.testing.assert_close(getattr(twin, head)(hidden[0, -1]).float(), found[0, -1].float())


def test_packed_fp32_is_the_model(model: SpeechLLM) -> None:
    twin = optimize(model, "fp32")
    embeds = torch.randn(1, 9, 64)
    hidden, _ = model.hidden(embeds)
    torch.testing.assert_close(twin.hidden(embeds)[0], hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(twin.text_logits(hidden), model.text_logits(hidden), atol=1e-5, rtol=1e-5)
    mel, lens = torch.randn(1, 50, 80), torch.tensor([50])
    torch.testing.assert_close(twin.encode(mel, lens), model.encode(mel, lens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_cached_equals_whole(packed: tuple[str, SpeechLLM], chunk: int) -> None:
    _, twin = packed
    embeds = torch.randn(2, 23, 64)
    whole, _ = twin.hidden(embeds)
    cache, pieces = twin.llm.new_cache(2, capacity=4), []
    for start in range(0, 23, chunk):
        piece, cache = twin.llm.extend(embeds[:, start : start + chunk], cache)
        pieces.append(piece)
    assert cache.length == 23
    # bf16 rounds what comes in: a last bit of a sum may turn a rounding.
    tolerance = 1e-5 if packed[0] == "fp32" else 0.02
    assert error(torch.cat(pieces, dim=1), whole) < tolerance


def test_a_row_in_a_padded_batch_is_the_row_alone(packed: tuple[str, SpeechLLM]) -> None:
    precision, twin = packed
    alone = torch.randn(1, 17, 64)
    whole, _ = twin.hidden(alone)
    embeds = torch.cat([torch.zeros(1, 6, 64), alone], dim=1)
    embeds = torch.cat([embeds, 100 * torch.randn(1, 23, 64)])  # a loud neighbour
    mask = torch.stack([torch.arange(23) >= 6, torch.ones(23, dtype=torch.bool)])
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    together, _ = twin.hidden(embeds, mask, positions)
    assert error(together[:1, 6:], whole) < (1e-5 if precision == "fp32" else 0.02)


@in_8_bits
def test_packing_leaves_the_model_as_it_was(model: SpeechLLM) -> None:
    before = copy.deepcopy(model.state_dict())
    twin = optimize(model, "int8")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (
        optimize(model, "fp32").llm.text_embedding.weight.data_ptr()
        == model.llm.text_embedding.weight.data_ptr()
    )
    with pytest.raises(ValueError, match="save the model before packing"):
        twin.state_dict()
    with pytest.raises(ValueError, match="expected a model with plain weights"):
        optimize(twin, "int8")
    with pytest.raises(ValueError, match="int4_group: expected 32"):
        optimize(model, "int4", int4_group=48)


@in_8_bits
def test_packing_can_use_the_model_up(model: SpeechLLM) -> None:
    spent = copy.deepcopy(model).to(torch.bfloat16)
    twin = optimize(spent, "int8", consume=True)
    assert twin is spent
    assert sum(p.numel() for p in twin.llm.layers.parameters()) == 0
    kept = copy.deepcopy(model).to(torch.bfloat16)
    other = optimize(kept, "int8")
    assert kept.encoder.conv1.weight.dtype == torch.bfloat16  # the twin has its own in float32
    mel, lens = torch.randn(1, 30, 80), torch.tensor([30])
    assert torch.equal(twin.encode(mel, lens)[0], other.encode(mel, lens)[0])


@in_8_bits
def test_wrapped_weights_are_refused(model: SpeechLLM) -> None:
    class Wrapped(torch.nn.Linear):
        """An adapter that is not merged."""

    odd = copy.deepcopy(model)
    odd.llm.model.layers[0].mlp.up_proj = Wrapped(64, 96, bias=False)
    with pytest.raises(ValueError, match="found Wrapped; merge"):
        optimize(odd, "int8")


@in_8_bits
@pytest.mark.slow
def test_int8_chooses_what_float32_chooses() -> None:
    engine = echat.load("echat-tiny")
    assert engine.home is not None
    question = str(engine.home / "examples" / "question.wav")
    dialogues = [
        (Conversation([UserTurn(audio=question)]), "s2s"),
        (Conversation([UserTurn(audio=question)]), "understand"),
        (Conversation([UserTurn(text="my dog ran away today")]), "t2t"),
        (Conversation([UserTurn(text="what a lovely day for a walk in the park")]), "tts"),
    ]
    shares = {
        precision: greedy_agreement(engine, optimize(engine.model, precision), dialogues)
        for precision in ("fp32", "int8", "int4")
    }
    assert shares["fp32"] == (1.0, shares["int8"][1]) and shares["int8"][1] > 150
    assert shares["int8"][0] >= 0.95
    assert shares["int4"][0] >= 0.85
