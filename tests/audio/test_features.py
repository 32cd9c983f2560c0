"""Lengths and bounds of features; `echat verify` compares their values with golden arrays."""

from __future__ import annotations

import pytest
import torch

from echat.audio import features


@pytest.mark.parametrize("samples", [201, 400, 16_000, 16_079, 16_159])
def test_log_mel_has_the_stated_number_of_frames(samples: int) -> None:
    assert len(features.log_mel(torch.ones(samples), 80)) == features.mel_frames(samples)


def test_log_mel_is_bounded_and_two_below_its_maximum() -> None:
    mel = features.log_mel(torch.randn(16_000, generator=torch.Generator().manual_seed(0)), 80)
    assert mel.max() - mel.min() <= 2.0 + 1e-6


@pytest.mark.parametrize(
    "feature", [lambda waveform: features.log_mel(waveform, 80), features.vocoder_mel, features.kaldi_fbank]
)
def test_features_refuse_short_and_batched_input(feature) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        feature(torch.zeros(20))
    with pytest.raises(ValueError, match="expected one mono waveform"):
        feature(torch.zeros(2, 16_000))
