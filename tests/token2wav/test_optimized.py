"""A prepared token2wav says the same, with fewer products."""

from __future__ import annotations

import pytest
import torch

from echat.token2wav.estimator import EstimatorConfig
from echat.token2wav.flow import FlowConfig, FlowMatching
from echat.token2wav.optimized.token2wav import OptimizedFlowMatching, optimize
from echat.token2wav.streaming import StreamConfig, speak_stream
from echat.token2wav.voice import VoicePrompt


@pytest.fixture(scope="module")
def voice(golden) -> VoicePrompt:
    g = golden("token2wav")
    return VoicePrompt(g["prompt_token"][0].long(), g["prompt_feat"][0], g["embedding"][0])


@pytest.fixture(scope="module")
def optimized(golden_token2wav):
    return optimize(golden_token2wav)


def test_golden_mel(optimized, golden, voice, close):
    g = golden("token2wav")
    with torch.inference_mode():
        mel = optimized.mel(optimized.check_ids(g["token"]), voice, g["z"])
        close(mel, g["mel"], 1e-4)
        close(optimized.vocoder.f0_predictor(g["mel"]), g["f0"], 1e-3)
        hift = golden("hift")
        close(optimized.vocoder.spectrum(hift["mel"], hift["source"]), hift["conv_post_out"], 5e-4)


@pytest.mark.parametrize("n", [1, 2, 9])  # odd and even numbers of frames
def test_the_same_sound(golden_token2wav, optimized, voice, close, n):
    ids = list(range(n))
    close(optimized.synthesize(ids, voice), golden_token2wav.synthesize(ids, voice), 3e-3)
    bare = voice.without_prompt()
    close(optimized.synthesize(ids, bare), golden_token2wav.synthesize(ids, bare), 3e-3)


@pytest.mark.parametrize("channels", [(16,), (16, 24), (16, 8, 16)])
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_other_shapes(channels, guidance, close):
    torch.manual_seed(0)
    estimator = EstimatorConfig(
        in_channels=32, out_channels=8, channels=channels, attention_head_dim=4, num_heads=2,
        n_blocks=1, num_mid_blocks=1, masked_norm=len(channels) == 2,
    )  # fmt: skip
    config = FlowConfig(output_size=8, inference_cfg_rate=guidance, steps=3, estimator=estimator)
    plain = FlowMatching(config).eval().requires_grad_(False)
    (x0, mu, cond), spks = torch.randn(3, 1, 8, 13).unbind(), torch.randn(1, 8)
    with torch.inference_mode():
        expected = plain.solve(x0, mu, spks, cond)
        close(OptimizedFlowMatching(plain, "fp32").solve(x0, mu, spks, cond), expected, 1e-4)


def test_guidance_of_nothing_costs_nothing(golden_token2wav, monkeypatch):
    plain = golden_token2wav.flow.decoder
    free = FlowMatching(plain.config.model_copy(update={"inference_cfg_rate": 0.0})).eval()
    free.load_state_dict(plain.state_dict())
    x, mu, cond = torch.randn(3, 1, 80, 6, generator=torch.Generator().manual_seed(0)).unbind()
    spks, t = torch.ones(1, 80), torch.tensor(0.3)
    rows = []
    free.estimator.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with torch.inference_mode():
        velocity = free.field(mu, spks, cond)(x, 0, t)
        guided = plain.field(mu, spks, cond)(x, 0, t)
        unconditional = free.field(0 * mu, 0 * spks, 0 * cond)(x, 0, t)
    assert rows == [1, 1]
    assert torch.allclose(guided, 1.7 * velocity - 0.7 * unconditional, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded(golden_token2wav, golden, voice, precision):
    g = golden("token2wav")
    rounded = optimize(golden_token2wav, precision)
    with torch.inference_mode():
        mel = rounded.mel(rounded.check_ids(g["token"]), voice, g["z"])
    error = (mel - g["mel"]).abs()
    assert 0 < error.mean() < 0.05 * g["mel"].std()


def test_it_only_speaks(golden_token2wav, optimized, voice, tmp_path):
    assert not list(optimized.flow.decoder.parameters())
    assert golden_token2wav.flow.decoder.estimator is not None
    with pytest.raises(ValueError, match="cannot be saved"):
        optimized.save(tmp_path)
    with pytest.raises(ValueError, match="expected weights in float32, found torch.float64"):
        optimize(type(golden_token2wav)(golden_token2wav.config).double())


def test_streams_too(golden_token2wav, optimized, voice, close):
    config = StreamConfig(pieces=(5, 7), context=8, lookahead=2)
    plain, fast = (
        torch.cat(list(speak_stream(model, [list(range(9))], voice, config=config)))
        for model in (golden_token2wav, optimized)
    )
    close(fast, plain, 3e-3)
