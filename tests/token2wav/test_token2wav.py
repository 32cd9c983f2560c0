"""Ids and a voice become a waveform: determinism, voices, and what is refused."""

import math
from pathlib import Path

import pytest
import torch

import echat
from echat.audio.waveform import read, write
from echat.token2wav.flow import FlowConfig
from echat.token2wav.token2wav import Token2Wav
from echat.token2wav.voice import VoicePrompt


def voice_of(g) -> VoicePrompt:
    return VoicePrompt(g["prompt_token"][0].long(), g["prompt_feat"][0], g["embedding"][0])


def test_a_seed_gives_the_same_samples_again(golden_token2wav, golden):
    g = golden("token2wav")
    first, again = (golden_token2wav.synthesize(g["token"], voice_of(g), seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, golden_token2wav.synthesize(g["token"], voice_of(g), seed=1))


@pytest.mark.parametrize(("n", "frames"), [(0, 0), (1, 3), (25, 86), (100, 344), (245, 844), (4480, 15434)])
def test_length(n, frames):
    assert FlowConfig().mel_frames(n) == frames


def test_no_ids_no_sound(golden_token2wav, golden):
    assert golden_token2wav.synthesize([], voice_of(golden("token2wav"))).shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 41])
def test_any_number_of_ids(golden_token2wav, golden, n):
    voice = voice_of(golden("token2wav")).without_prompt()
    waveform = golden_token2wav.synthesize([7] * n, voice)
    assert waveform.shape == (256 * golden_token2wav.config.flow.mel_frames(n),)
    assert waveform.abs().max() <= 0.99


@pytest.mark.parametrize("bad", [96, -1])
def test_ids_outside_the_codebook_are_named(golden_token2wav, golden, bad):
    with pytest.raises(ValueError, match=f"0..95, found {bad} at position 2"):
        golden_token2wav.synthesize([1, 2, bad], voice_of(golden("token2wav")))


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan, math.inf])
def test_impossible_speeds(golden_token2wav, golden, speed):
    with pytest.raises(ValueError, match="speed: expected"):
        golden_token2wav.synthesize([1, 2], voice_of(golden("token2wav")), speed=speed)


def test_a_folder_needs_nothing_else(golden_token2wav, golden, tmp_path):
    voice = voice_of(golden("token2wav"))
    golden_token2wav.voices["ann"] = voice
    try:
        golden_token2wav.save(tmp_path / "token2wav", dtype=None)
    finally:
        del golden_token2wav.voices["ann"]
    again = Token2Wav.from_folder(tmp_path / "token2wav")
    assert again.config == golden_token2wav.config
    assert torch.allclose(
        again.synthesize([3, 5, 8]), golden_token2wav.synthesize([3, 5, 8], voice), atol=1e-4
    )
    assert torch.equal(again.synthesize([3, 5, 8], "ann"), again.synthesize([3, 5, 8]))
    with pytest.raises(ValueError, match="'anne' is unknown, did you mean 'ann'"):
        again.synthesize([3], "anne")


def test_the_speaker_network_goes_along(golden_token2wav, tmp_path):
    golden_token2wav.save(tmp_path / "one", dtype=None)
    assert not (tmp_path / "one" / "campplus.onnx").exists()
    (tmp_path / "one" / "campplus.onnx").write_bytes(b"network")
    one = Token2Wav.from_folder(tmp_path / "one")
    one.save(tmp_path / "two", dtype=None)
    one.save(tmp_path / "one", dtype=None)  # onto itself
    for name in ("one", "two"):
        assert (tmp_path / name / "campplus.onnx").read_bytes() == b"network"


def test_voice_is_asked_for(golden_token2wav):
    with pytest.raises(ValueError, match="no default voice"):
        golden_token2wav.synthesize([1, 2])


class CountingTokenizer:
    """One id for every started 40 ms."""

    def encode(self, waveforms, lens=None):
        return [[3] * -(-len(w) // 640) for w in waveforms]


@pytest.fixture
def prompting(golden_token2wav):
    """A token2wav that can make voices of recordings."""
    model = Token2Wav(golden_token2wav.config.model_copy(update={"speaker": "mel_stats"}))
    model.use_tokenizer(CountingTokenizer())
    return model


def test_voice_of_a_recording(prompting, tmp_path):
    noise = torch.randn(24_000, generator=torch.Generator().manual_seed(0))
    recording = noise * torch.linspace(0.05, 0.2, 24_000)
    voice = prompting.voice_prompt(recording, 24_000)
    assert voice.speech_ids.shape == (25,)
    assert voice.mel.shape == (22_050 // 256, 80)
    assert voice.embedding.shape == (192,) and torch.isfinite(voice.embedding).all()
    voice.save(tmp_path / "a.safetensors")
    again = VoicePrompt.load(tmp_path / "a.safetensors")
    assert torch.equal(again.mel, voice.mel) and torch.equal(again.speech_ids, voice.speech_ids)
    louder = prompting.voice_prompt(recording * 1.5, 24_000)
    assert (louder.embedding - voice.embedding).abs().max() < 1e-3  # loudness is not part of a voice


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (16_000, 16_000, "at least 22050 Hz, found 16000"),
        (100, 22_050, "expected at least"),
        (31 * 22_050, 22_050, "at most 30"),
    ],
)
def test_recordings_that_make_no_voice(prompting, samples, rate, message):
    with pytest.raises(ValueError, match=message):
        prompting.voice_prompt(torch.sin(torch.arange(samples) * 0.05), rate)


def spoken(seconds: float) -> torch.Tensor:
    """The example of the shipped model at 24 kHz, from its first word on, repeated or cut."""
    waveform, _ = read(
        Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav", 24_000
    )
    begin = int((waveform.abs() > 0.05).nonzero()[0])
    return waveform[begin:].repeat(4)[: int(seconds * 24_000)]


@pytest.mark.parametrize(
    ("recording", "found"),
    [
        (spoken(0.2), "0.2 s"),
        (spoken(0.9), "0.9 s"),
        (torch.randn(72_000, generator=torch.Generator().manual_seed(0)) / 32768, "0.0 s of speech in 3.0 s"),
        (0.1 * torch.randn(72_000, generator=torch.Generator().manual_seed(0)), "0.0 s of speech in 3.0 s"),
        (torch.cat([spoken(0.3), 1e-4 * torch.randn(96_000)]), "s of speech in 4.3 s"),
    ],
    ids=["blink", "short", "dither", "noise", "a word in silence"],
)
def test_a_file_without_enough_speech_gives_no_voice(prompting, tmp_path, recording, found):
    pytest.importorskip("silero_vad", reason="needs the serve extra")
    write(tmp_path / "voice.wav", recording, 24_000, bits=32)
    with pytest.raises(ValueError, match=f"voice.wav: expected a voice with at least 1 s of speech.*{found}"):
        prompting.voice_from_file(tmp_path / "voice.wav")


@pytest.mark.parametrize("seconds", [2.0, 10.0])
def test_a_file_of_speech_gives_its_voice(prompting, tmp_path, seconds):
    write(tmp_path / "voice.wav", 0.02 * spoken(seconds), 24_000)
    voice = prompting.voice_from_file(tmp_path / "voice.wav")
    assert len(voice.speech_ids) == math.ceil(25 * len(spoken(seconds)) / 24_000)
