"""A vocoder of 24 kHz with another hop: synthesis, streaming, voices and a model folder follow its rate."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import echat
from echat.audio.features import MelFormat, vocoder_mel
from echat.audio.waveform import read
from echat.dialogue.tasks import DecodingDefaults
from echat.dialogue.turns import ask
from echat.model_files import TOKEN2WAV_FOLDER
from echat.token2wav.flow import FlowConfig
from echat.token2wav.hift.vocoder import F0PredictorConfig, VocoderConfig
from echat.token2wav.optimized.token2wav import optimize
from echat.token2wav.streaming import StreamConfig, speak_stream
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig

QUESTION = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"
RATE, HOP, IDS_PER_SECOND = 24_000, 240, 20
MEL = MelFormat(RATE, HOP)


class TwentyPerSecond:
    """A speech tokenizer of another rate."""

    def encode(self, waveforms):
        return [[1] * (len(waveform) * IDS_PER_SECOND // 16_000) for waveform in waveforms]


@pytest.fixture(scope="module")
def token2wav() -> Token2Wav:
    torch.manual_seed(0)
    sizes = {"input_size": 16, "output_size": 16, "attention_heads": 2, "linear_units": 16, "num_blocks": 1}
    estimator = {"channels": [8], "attention_head_dim": 4, "num_heads": 1, "n_blocks": 1, "num_mid_blocks": 1}
    flow = {
        "sampling_rate": RATE, "hop": HOP, "input_frame_rate": IDS_PER_SECOND, "vocab_size": 32,
        "input_size": 16, "encoder": sizes, "estimator": estimator, "steps": 1, "temperature": 0.5,
    }  # fmt: skip
    vocoder = VocoderConfig(
        sampling_rate=RATE, upsample_rates=(10, 6), upsample_kernel_sizes=(20, 12), istft_hop=4,
        base_channels=8, f0_predictor=F0PredictorConfig(cond_channels=8), refinement=1,
        resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1,),),
        source_resblock_kernel_sizes=(3, 3), source_resblock_dilation_sizes=((1,), (1,)),
    )  # fmt: skip
    config = Token2WavConfig(speaker="mel_stats", flow=FlowConfig.model_validate(flow), vocoder=vocoder)
    model = Token2Wav(config).eval().requires_grad_(False)
    model.use_tokenizer(TwentyPerSecond())
    model.voices["guest"] = model.voice_prompt(*read(QUESTION, RATE))
    return model


def test_lengths_follow_rate_and_hop(token2wav: Token2Wav) -> None:
    assert token2wav.rate == RATE
    assert token2wav.config.flow.mel_frames(20) == 100  # one second
    assert token2wav.synthesize([1] * 20).shape == (RATE,)
    assert optimize(token2wav).synthesize([1] * 20).shape == (RATE,)


def test_a_voice_has_the_mel_of_the_flow(token2wav: Token2Wav) -> None:
    waveform, _ = read(QUESTION, RATE)
    torch.testing.assert_close(token2wav.voices["guest"].mel, vocoder_mel(waveform, MEL))
    assert len(token2wav.voices["guest"].mel) == len(waveform) // HOP
    assert len(token2wav.voices["guest"].embedding) == 192


@pytest.mark.parametrize("size", [1, 7, 30])
def test_pieces_are_as_long_as_the_whole(token2wav: Token2Wav, size: int) -> None:
    ids = [n % 32 for n in range(30)]
    slices = [ids[start : start + size] for start in range(0, 30, size)]
    pieces = StreamConfig(pieces=(5, 9), context=6, lookahead=2)
    sound = torch.cat(list(speak_stream(token2wav, slices, config=pieces)))
    assert sound.shape == token2wav.synthesize(ids).shape == (RATE * 30 // IDS_PER_SECOND,)


def test_a_model_folder_with_it_speaks(token2wav: Token2Wav, random_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(random_model, tmp_path / "model")
    token2wav.save(folder / TOKEN2WAV_FOLDER)
    engine = echat.load(folder)
    reply = engine.run(ask(text="hello"), "tts", seed=0, decoding=DecodingDefaults(max_new_ids=40))
    n = len(reply.speech_ids)
    assert n and reply.rate == RATE
    assert reply.waveform is not None and len(reply.waveform) == HOP * token2wav.config.flow.mel_frames(n)
    again = replace(engine, token2wav=token2wav).run(
        ask(text="hello"), "tts", seed=0, decoding=DecodingDefaults(max_new_ids=40)
    )
    assert again.speech_ids == reply.speech_ids


def test_flow_and_vocoder_must_agree() -> None:
    with pytest.raises(ValueError, match="expected to make 80 mel bins of 256 samples at 24000 Hz, .* found"):
        Token2WavConfig(vocoder=VocoderConfig(sampling_rate=RATE))
    assert not {"sampling_rate", "hop"} & FlowConfig().model_dump().keys()
