"""Features equal the golden arrays, and their lengths follow the stated arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from echat.audio import features
from echat.audio.resampling import resample

ASSETS = Path(__file__).parents[1] / "assets" / "audio"


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(ASSETS / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


@pytest.mark.parametrize("case", ["wave_a", "wave_b", "silence", "stereo24k"])
def test_log_mel_equals_the_golden_frontend(case: str) -> None:
    arrays = golden("frontend")
    waveform = (arrays[f"{case}_pcm"].float() / 32768).mean(dim=0)
    waveform = resample(waveform, int(arrays[f"{case}_rate"]), features.SAMPLE_RATE)
    if f"{case}_resampled" in arrays:
        torch.testing.assert_close(waveform, arrays[f"{case}_resampled"], atol=1e-5, rtol=0)
    mel = features.log_mel(waveform, features.N_MELS)
    assert len(mel) == int(arrays[f"{case}_len"]) == features.mel_frames(len(waveform))
    torch.testing.assert_close(mel, arrays[f"{case}_logmel"], atol=1e-4, rtol=0)


def test_mel_filters_equal_the_golden_ones() -> None:
    bank = features.mel_filterbank(80, 400, 16_000)
    torch.testing.assert_close(bank, golden("frontend")["mel_filters"], atol=1e-7, rtol=0)
    bank = features.mel_filterbank(80, 1024, 22_050)
    torch.testing.assert_close(bank, golden("mel22k")["mel_basis"], atol=1e-7, rtol=0)


def test_log_mel_of_128_bins_equals_the_golden_one() -> None:
    arrays = golden("whisper128")
    mel = features.log_mel(arrays["wav0"][0], n_mels=128)
    torch.testing.assert_close(mel.T[None], arrays["logmel0"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["0", "1"])
def test_vocoder_mel_equals_the_golden_one(case: str) -> None:
    arrays = golden("mel22k")
    mel = features.mel_22k(arrays[f"wav{case}"][0])
    torch.testing.assert_close(mel.T[None], arrays[f"mel{case}"], atol=1e-5, rtol=0)


def test_kaldi_fbank_equals_the_golden_one() -> None:
    waveform = golden("whisper128")["wav0"][0]
    arrays = golden("fbank80")
    torch.testing.assert_close(features.kaldi_fbank(waveform), arrays["fbank0"], atol=5e-4, rtol=0)
    centred = features.kaldi_fbank(waveform, subtract_mean=True)
    torch.testing.assert_close(centred, arrays["fbank_cmn0"], atol=5e-4, rtol=0)


def test_llm_frames_halves_then_quarters_rounding_up() -> None:
    assert [features.llm_frames(n) for n in (0, 1, 8, 9, 16, 17, 161)] == [0, 1, 1, 2, 2, 3, 21]
    assert all(features.llm_frames(n) == -(-n // features.MEL_FRAMES_PER_LLM_FRAME) for n in range(2000))


def test_log_mel_is_bounded_and_two_below_its_maximum() -> None:
    mel = features.log_mel(torch.randn(16_000, generator=torch.Generator().manual_seed(0)), 80)
    assert mel.max() - mel.min() <= 2.0 + 1e-6


@pytest.mark.parametrize(
    "feature", [lambda waveform: features.log_mel(waveform, 80), features.mel_22k, features.kaldi_fbank]
)
def test_features_refuse_short_and_batched_input(feature) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        feature(torch.zeros(20))
    with pytest.raises(ValueError, match="expected one mono waveform"):
        feature(torch.zeros(2, 16_000))
